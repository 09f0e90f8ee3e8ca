//! A few objects of a ripe block at a time.
//!
//! Who retires as fast as it allocates gets its memory back in the same rhythm: what it frees is what its next calls of the allocator
//! find at hand. A block as a whole is hundreds of objects, more than an allocator keeps for a thread.

use super::{Block, Freed, Kind, State};
use crate::glue::{Glue, bring_forward, keep_first};
use core::ptr::{self, NonNull};

/// Objects of one portion.
pub(crate) const PORTION: usize = 8;

/// Objects that one function frees, taken out of a block.
#[derive(Debug)]
pub(crate) struct Portion {
    objects: [NonNull<u8>; PORTION],
    len: usize,
    glue: Glue,
    /// What was in the block twice: found as the first portion of it is taken.
    pub(crate) freed: Freed,
    /// Objects that count as freed from now on: all of the block's, with its first portion.
    pub(crate) counted: usize,
    pub(crate) bytes: usize,
    /// What was charged for them.
    pub(crate) charged: usize,
    /// The block, if this was the last of it.
    pub(crate) emptied: Option<NonNull<Block>>,
}

impl Portion {
    /// None.
    #[inline]
    pub(crate) fn none() -> Self {
        unsafe fn never(_: NonNull<u8>) {}
        Self {
            objects: [NonNull::dangling(); PORTION],
            len: 0,
            glue: Glue::Each(never),
            freed: Freed::default(),
            counted: 0,
            bytes: 0,
            charged: 0,
            emptied: None,
        }
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The objects.
    #[inline]
    pub(crate) fn objects(&self) -> &[NonNull<u8>] {
        &self.objects[..self.len]
    }

    /// Drops and frees them; says how many destructors panicked.
    ///
    /// # Safety
    /// 1. Their grace period is over. Once.
    #[inline]
    pub(crate) unsafe fn free(&mut self) -> usize {
        // SAFETY: objects of this function, which nobody sees any more (1).
        unsafe { self.glue.free(&mut self.objects[..self.len]) }
    }
}

impl Block {
    /// Takes out up to [`PORTION`] objects that one function frees, into an empty portion. The block has some, is one of foreign objects, ripe,
    /// and in line.
    #[inline]
    pub(crate) fn pop_portion(&mut self, portion: &mut Portion) {
        debug_assert!(self.kind.is_foreign() && self.len > 0 && portion.is_empty());
        portion.counted = self.nr_uncounted();
        if self.state != State::Drained {
            self.state = State::Drained;
            self.put_in_order(&mut portion.freed);
        }
        let nr = self.nr_objects();
        let len = self.len as usize;
        // SAFETY: the first `len` entries were written by `push`.
        let words = unsafe { self.entries[..len].assume_init_ref() };
        let (objects, mut taken, mut word) = (&mut portion.objects, 0, self.func);
        if word.is_null() {
            let (pairs, _) = words.as_chunks::<2>();
            word = pairs.last().map_or(ptr::null_mut(), |pair| pair[1]);
            let same = pairs.iter().rev().take_while(|pair| pair[1] == word);
            for (object, &[at, _]) in objects.iter_mut().zip(same) {
                // SAFETY: `push` wrote a pointer that is not null.
                *object = unsafe { NonNull::new_unchecked(at.cast()) };
                taken += 1;
            }
            self.len -= 2 * taken as u16;
        } else {
            for (object, &at) in objects.iter_mut().zip(words.iter().rev()) {
                // SAFETY: `push` wrote a pointer that is not null.
                *object = unsafe { NonNull::new_unchecked(at.cast()) };
                taken += 1;
            }
            self.len -= taken as u16;
        }
        portion.len = taken;
        // SAFETY: a word of glue of this kind, as `push` wrote it.
        portion.glue = unsafe { Glue::of(self.kind, word) };
        portion.bytes = if taken == nr {
            self.bytes
        } else {
            self.bytes / nr * taken
        };
        self.bytes -= portion.bytes;
    }

    /// Removes what is there twice, and brings objects of one function together. Of those with a [`DropFn`](crate::DropFn) each stays, and
    /// the block is turned round, so that they are taken in the order in which they came, as when a block is freed as a whole.
    #[cold]
    #[inline(never)]
    fn put_in_order(&mut self, freed: &mut Freed) {
        let len = self.len as usize;
        let (is_run, is_each) = (!self.func.is_null(), self.kind == Kind::Glue);
        // SAFETY: the first `len` entries were written by `push`.
        let words = unsafe { self.entries[..len].assume_init_mut() };
        if is_run {
            if is_each {
                words.reverse();
            } else {
                self.len = keep_first(words, <*mut ()>::cast, freed) as u16;
            }
            return;
        }
        let (pairs, _) = words.as_chunks_mut::<2>();
        if is_each {
            pairs.reverse();
            return;
        }
        let kept = keep_first(pairs, |pair| pair[0].cast(), freed);
        let mut rest = &mut pairs[..kept];
        while let Some(&[_, word]) = rest.first() {
            let n = bring_forward(rest, word);
            rest = &mut rest[n..];
        }
        self.len = 2 * kept as u16;
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{give_back, number, page};
    use super::*;
    use rcu_core::Cookie;
    use std::vec::Vec;

    unsafe fn one(_: &mut [NonNull<u8>]) -> usize {
        1
    }

    unsafe fn two(_: &mut [NonNull<u8>]) -> usize {
        2
    }

    unsafe fn each(_: NonNull<u8>) {}

    /// What comes out of a block of these objects, portion by portion: the function's word, and the numbers.
    fn portions(kind: Kind, objects: &[(usize, Glue)]) -> (Vec<(*mut (), Vec<usize>)>, Freed) {
        // SAFETY: a page's worth of memory.
        let mut at = unsafe { Block::init(page(), kind) };
        // SAFETY: this test's own.
        let block = unsafe { at.as_mut() };
        for &(n, glue) in objects {
            block.push(number(n), Some(glue), 24, Cookie::COMPLETED);
        }
        let (mut out, mut freed, mut counted, mut bytes) = (Vec::new(), Freed::default(), 0, 0);
        while block.nr_objects() > 0 {
            let mut portion = Portion::none();
            block.pop_portion(&mut portion);
            let numbers = portion.objects().iter().map(|o| o.addr().get());
            assert!((1..=PORTION).contains(&portion.objects().len()));
            out.push((portion.glue.word(), numbers.collect()));
            freed.doubles += portion.freed.doubles;
            freed.double = portion.freed.double.or(freed.double);
            counted += portion.counted;
            bytes += portion.bytes;
            assert_eq!(block.nr_uncounted(), 0);
        }
        assert_eq!((counted, bytes), (objects.len(), 24 * objects.len()));
        assert_eq!(block.bytes(), 0);
        give_back(at);
        (out, freed)
    }

    fn all(out: &[(*mut (), Vec<usize>)], word: *mut ()) -> Vec<usize> {
        let of_word = out.iter().filter(|(w, _)| *w == word);
        let mut all: Vec<usize> = of_word.flat_map(|(_, n)| n.iter().copied()).collect();
        all.sort_unstable();
        all
    }

    /// The word of an object whose number leaves `rest` over two. As it was retired: a function may have several addresses.
    fn word_of(objects: &[(usize, Glue)], rest: usize) -> *mut () {
        let object = objects.iter().find(|(n, _)| n % 2 == rest);
        object.map(|(_, glue)| glue.word()).unwrap()
    }

    #[test]
    fn a_run_goes_by_portions() {
        let many = Glue::Many(one);
        let objects: Vec<_> = (1..=100).map(|n| (n, many)).collect();
        let (out, freed) = portions(Kind::Typed, &objects);
        assert_eq!((out.len(), freed.doubles), (100_usize.div_ceil(PORTION), 0));
        assert_eq!(
            all(&out, word_of(&objects, 1)),
            (1..=100).collect::<Vec<_>>()
        );
    }

    #[test]
    fn each_function_gets_its_own() {
        let turns = |n| [Glue::Many(one), Glue::Many(two)][n % 2];
        let objects: Vec<_> = (1..=100).map(|n| (n, turns(n))).collect();
        let (out, freed) = portions(Kind::Typed, &objects);
        assert_eq!(
            (out.len(), freed.doubles),
            (2 * 50_usize.div_ceil(PORTION), 0)
        );
        for of in 0..2 {
            let wanted: Vec<_> = (1..=100).filter(|n| n % 2 == of).collect();
            assert_eq!(all(&out, word_of(&objects, of)), wanted);
        }
    }

    #[test]
    fn k18_what_is_twice_comes_out_once() {
        let many = Glue::Many(one);
        let objects: Vec<_> = (1..=60).chain([7, 60]).map(|n| (n, many)).collect();
        let (out, freed) = portions(Kind::Typed, &objects);
        assert_eq!(
            all(&out, word_of(&objects, 1)),
            (1..=60).collect::<Vec<_>>()
        );
        assert_eq!((freed.doubles, freed.double), (2, Some(number(60))));
        let turns = |n| [Glue::Many(one), Glue::Many(two)][n % 2];
        let objects: Vec<_> = (1..=60).chain([7, 60]).map(|n| (n, turns(n))).collect();
        let (out, freed) = portions(Kind::Typed, &objects);
        let numbers = out.iter().map(|(_, n)| n.len()).sum::<usize>();
        assert_eq!((numbers, freed.doubles), (60, 2));
    }

    #[test]
    fn those_with_a_function_each_keep_their_order() {
        let glue = Glue::Each(each);
        let objects: Vec<_> = (1..=50).chain([9, 50]).map(|n| (n, glue)).collect();
        let (out, freed) = portions(Kind::Glue, &objects);
        let numbers: Vec<usize> = out.into_iter().flat_map(|(_, n)| n).collect();
        let wanted: Vec<usize> = objects.iter().map(|o| o.0).collect();
        assert_eq!((numbers, freed.doubles), (wanted, 0));
    }
}
