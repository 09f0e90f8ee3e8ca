//! The same tests over each lower level: what a zone offers it offers over either.

use pagealloc::{Source, Zone, ZoneError};
use rcu_core::cpu::Cpus;

/// Makes [`Zone::new`], which is for the default lower level, the name for a zone over another one, too.
#[allow(dead_code, reason = "not every file needs all of it")]
pub(crate) trait New<C, S>: Sized {
    fn new(cpus: C, source: S) -> Result<Self, ZoneError>;

    #[cfg(feature = "guard")]
    fn with_guards(cpus: C, source: S, guards: pagealloc::Guards) -> Result<Self, ZoneError>;
}

#[cfg(target_has_atomic = "64")]
impl<C: Cpus, S: Source> New<C, S> for Zone<C, S, pagealloc::BitTree> {
    fn new(cpus: C, source: S) -> Result<Self, ZoneError> {
        Self::with_lower(cpus, source)
    }

    #[cfg(feature = "guard")]
    fn with_guards(cpus: C, source: S, guards: pagealloc::Guards) -> Result<Self, ZoneError> {
        Self::with_lower_and_guards(cpus, source, guards)
    }
}

/// Makes a module of the items for each lower level. In there `Zone` is one over `Lower`; `IS_BUDDIES` says whether pageblocks have types, and
/// there is a lock, and so a stash for those who may not wait for it; and what is in `over_buddies!` is about nothing but these.
macro_rules! over_each_lower {
    ($($item:item)*) => {
        mod buddies {
            #[allow(unused_imports, reason = "not every file needs them")]
            use super::*;
            #[allow(unused_imports, reason = "as above")]
            use super::each::kept as over_buddies;

            #[allow(dead_code, reason = "as above")]
            type Lower = pagealloc::Buddies;
            #[allow(dead_code, reason = "as above")]
            type Zone<C, S> = super::Zone<C, S, Lower>;
            #[allow(dead_code, reason = "as above")]
            const IS_BUDDIES: bool = true;

            $($item)*
        }

        #[cfg(target_has_atomic = "64")]
        mod bit_tree {
            #[allow(unused_imports, reason = "as above")]
            use super::*;
            #[allow(unused_imports, reason = "as above")]
            use super::each::New as _;
            #[allow(unused_imports, reason = "as above")]
            use super::each::left_out as over_buddies;

            #[allow(dead_code, reason = "as above")]
            type Lower = pagealloc::BitTree;
            #[allow(dead_code, reason = "as above")]
            type Zone<C, S> = super::Zone<C, S, Lower>;
            #[allow(dead_code, reason = "as above")]
            const IS_BUDDIES: bool = false;

            $($item)*
        }
    };
}

#[allow(unused_macros, reason = "not every file needs it")]
macro_rules! kept {
    ($($item:item)*) => { $($item)* };
}

#[allow(unused_macros, reason = "as above")]
macro_rules! left_out {
    ($($item:item)*) => {};
}

#[allow(unused_imports, reason = "not every file needs them")]
pub(crate) use {kept, left_out};
