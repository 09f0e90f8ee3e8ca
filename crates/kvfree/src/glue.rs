//! Functions that drop and free foreign objects, and what is done with many of them at once.
//!
//! Objects of one type share one function, so a block names it once for as long as they follow one another, and a function
//! that takes many ([`DropManyFn`]) is called once for all of them: dropping them is a loop that the compiler sees
//! through, with the layout a constant, and not a call through a pointer each.

use crate::block::{Freed, Kind};
use crate::objects::{DropFn, DropManyFn};
use core::ptr::NonNull;

/// How many objects of a mixed block are gathered for one call.
const GATHER: usize = 64;

/// Room for four times the objects of a block; of larger pages' blocks, the duplicates are not looked for.
const TABLE: usize = 2048;

/// What frees a foreign object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Glue {
    /// One at a time.
    Each(DropFn),
    /// Many at a time.
    Many(DropManyFn),
    /// Many at a time, by giving memory back: no destructor is run.
    Plain(DropManyFn),
}

impl Glue {
    /// The kind of the blocks that such objects wait in.
    pub(crate) const fn kind(self) -> Kind {
        match self {
            Self::Each(_) => Kind::Glue,
            Self::Many(_) => Kind::Typed,
            Self::Plain(_) => Kind::Plain,
        }
    }

    /// The function as a block holds it.
    pub(crate) fn word(self) -> *mut () {
        match self {
            Self::Each(drop) => drop as *mut (),
            Self::Many(drop) | Self::Plain(drop) => drop as *mut (),
        }
    }

    /// The glue behind a word.
    ///
    /// # Safety
    /// 1. The word came from [`Self::word`] of glue of this kind.
    pub(crate) unsafe fn of(kind: Kind, word: *mut ()) -> Self {
        match kind {
            Kind::Typed | Kind::Plain => {
                // SAFETY: made from such a function (1).
                Self::Many(unsafe { core::mem::transmute::<*mut (), DropManyFn>(word) })
            }
            // SAFETY: made from such a function (1).
            _ => Self::Each(unsafe { core::mem::transmute::<*mut (), DropFn>(word) }),
        }
    }

    /// Drops and frees the objects by the glue behind a word; returns how many destructors panicked.
    ///
    /// # Safety
    /// 1. Those of [`Self::of`] and [`Self::free`].
    pub(crate) unsafe fn free_by(kind: Kind, word: *mut (), objects: &mut [NonNull<u8>]) -> usize {
        // SAFETY: 1.
        let glue = unsafe { Self::of(kind, word) };
        // SAFETY: 1.
        unsafe { glue.free(objects) }
    }

    /// Drops and frees the objects; returns how many destructors panicked.
    ///
    /// # Safety
    /// 1. The function may be called with each of them, once.
    #[inline]
    pub(crate) unsafe fn free(self, objects: &mut [NonNull<u8>]) -> usize {
        match self {
            // SAFETY: 1.
            Self::Each(drop) => each_contained(objects, |object| unsafe { drop(object) }),
            // SAFETY: 1.
            Self::Many(drop) | Self::Plain(drop) => unsafe { drop(objects) },
        }
    }
}

/// Runs `f`; 1 if it panicked and that was contained. What it panicked with is dropped, or leaked if even that panics.
pub(crate) fn contained(f: impl FnOnce()) -> usize {
    #[cfg(feature = "std")]
    {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        let Err(payload) = catch_unwind(AssertUnwindSafe(f)) else {
            return 0;
        };
        if let Err(again) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
            core::mem::forget(again);
        }
        1
    }
    #[cfg(not(feature = "std"))]
    {
        f();
        0
    }
}

/// Calls `f` with each object, and goes on with the next one when it panics (contained under `std`): what a [`DropManyFn`] is
/// made of. Returns how often it did.
pub fn each_contained(objects: &[NonNull<u8>], mut f: impl FnMut(NonNull<u8>)) -> usize {
    let (mut next, mut panicked) = (0, 0);
    while next < objects.len() {
        panicked += contained(|| {
            while let Some(&object) = objects.get(next) {
                next += 1;
                f(object);
            }
        });
    }
    panicked
}

/// Frees a mixed block: those of one [`DropManyFn`] together, function by function; those with a [`DropFn`] in the block's order.
///
/// # Safety
/// 1. Each pair is an object that nobody sees any more, and the word of a function of this kind that frees it.
pub(crate) unsafe fn free_pairs(pairs: &mut [[*mut (); 2]], kind: Kind) -> Freed {
    let mut freed = Freed::default();
    let mut rest = pairs;
    if kind != Kind::Glue {
        let kept = keep_first(rest, |pair| pair[0].cast(), &mut freed);
        rest = &mut rest[..kept];
    }
    while let Some(&[_, word]) = rest.first() {
        let n = if kind == Kind::Glue {
            rest.iter().take_while(|pair| pair[1] == word).count()
        } else {
            bring_forward(rest, word)
        };
        let (same, others) = rest.split_at_mut(n);
        for some in same.chunks(GATHER) {
            let mut objects = [NonNull::<u8>::dangling(); GATHER];
            let mut n = 0;
            for object in some.iter().filter_map(|pair| NonNull::new(pair[0].cast())) {
                objects[n] = object;
                n += 1;
            }
            // SAFETY: objects of this function (1).
            freed.panicked += unsafe { Glue::free_by(kind, word, &mut objects[..n]) };
        }
        rest = others;
    }
    freed
}

/// Moves the pairs with this function to the front, and says how many they are. A pass for each function of a block, of which there
/// are few: sorting takes ten nanoseconds an object.
pub(crate) fn bring_forward(pairs: &mut [[*mut (); 2]], word: *mut ()) -> usize {
    let mut n = 0;
    for i in 0..pairs.len() {
        if pairs[i][1] == word {
            pairs.swap(n, i);
            n += 1;
        }
    }
    n
}

/// Moves what is there once, and the first of what is there more often, to the front, in order; says how many these are, and
/// notes the others.
pub(crate) fn keep_first<T: Copy>(
    entries: &mut [T],
    object_of: impl Fn(T) -> *mut u8,
    freed: &mut Freed,
) -> usize {
    let mut kept = entries.len();
    if kept > TABLE / 4 || !is_any_twice(entries, &object_of) {
        return kept;
    }
    kept = 0;
    for i in 0..entries.len() {
        let object = object_of(entries[i]);
        if entries[..kept].iter().any(|&e| object_of(e) == object) {
            if let Some(object) = NonNull::new(object) {
                freed.note_double(object);
            }
        } else {
            entries[kept] = entries[i];
            kept += 1;
        }
    }
    kept
}

/// Whether an object is there more than once. A table of positions, at most a quarter full, so that few look twice: two nanoseconds an
/// object, where sorting would take ten.
fn is_any_twice<T: Copy>(entries: &[T], object_of: impl Fn(T) -> *mut u8) -> bool {
    let mut places = [0_u16; TABLE];
    for (i, &entry) in entries.iter().enumerate() {
        let object = object_of(entry);
        // Fibonacci hashing: the low bits of addresses are mostly zero.
        let hash = (object.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut at = (hash >> (u64::BITS - TABLE.ilog2())) as usize;
        while places[at] != 0 {
            if object_of(entries[usize::from(places[at]) - 1]) == object {
                return true;
            }
            at = (at + 1) % TABLE;
        }
        places[at] = i as u16 + 1;
    }
    false
}

#[cfg(test)]
mod tests;
