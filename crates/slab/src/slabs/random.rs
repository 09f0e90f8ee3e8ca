//! Free objects in random order ([`Checks::RANDOM`](crate::Checks::RANDOM)).

use super::{Shape, Slab, Slabs, WORDS};
use core::mem::MaybeUninit;
use core::ptr::NonNull;

impl Slabs {
    /// The next of a row of numbers that looks random (splitmix64, Steele et al. 2014).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// As [`Slab::take`], any free object as likely as any other.
    pub(super) fn take_random(
        &mut self,
        slab: NonNull<Slab>,
        shape: &Shape,
        out: &mut [MaybeUninit<NonNull<u8>>],
    ) -> usize {
        let free = shape.nr_objects - usize::from(self.slab(slab).inuse);
        let got = out.len().min(free);
        for (place, left) in out.iter_mut().zip((free - got + 1..=free).rev()) {
            let nth = (self.next_random() % left as u64) as usize;
            let this = self.slab(slab);
            let index = nth_free(&this.free, nth);
            this.free[index / 64] &= !(1 << (index % 64));
            // SAFETY: bits are set for the slab's objects only (I1).
            place.write(unsafe { this.object(shape, index) });
        }
        self.slab(slab).inuse += got as u16;
        got
    }
}

/// The index of the set bit that has `nth` set ones below it.
pub(super) fn nth_free(free: &[u64; WORDS], mut nth: usize) -> usize {
    for (i, &word) in free.iter().enumerate() {
        let ones = word.count_ones() as usize;
        if nth < ones {
            let rest = (0..nth).fold(word, |rest, _| rest & (rest - 1));
            return i * 64 + rest.trailing_zeros() as usize;
        }
        nth -= ones;
    }
    unreachable!("fewer free objects than `inuse` says (I1)")
}
