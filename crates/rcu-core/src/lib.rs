#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(feature = "std", test, loom)), no_std)]

pub mod contract;
pub mod cpu;
pub mod fence;
mod guard;
mod head;
mod seq;
pub mod sync;

pub use contract::{Domain, GracePeriod, NoReaders, Rcu};
pub use guard::{Guard, read_lock};
pub use head::{Callback, HasHead, Head, HeadFn, HeadOffset, MAX_OFFSET_WORDS};
pub use seq::{Cookie, Seq};
