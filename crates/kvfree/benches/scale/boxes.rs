//! Boxes of the global allocator, retired through the default stack.

use crate::engines::{Engine, read_ours};
use kvfree::stack::Global;
use rcu_core::GracePeriod;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::AtomicPtr;

pub(crate) struct Boxes;

impl Boxes {
    pub(crate) fn new() -> Self {
        kvfree::front();
        Self
    }
}

struct Payload<const WORDS: usize>(MaybeUninit<[u64; WORDS]>);

/// Calls `$f::<WORDS>` for the smallest type of at least `$size` bytes.
macro_rules! by_size {
    ($size:expr, $f:ident $args:tt) => {
        by_size!(@ $size, $f $args,
            [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024])
    };
    (@ $size:expr, $f:ident $args:tt, [$($words:literal),*]) => {
        match $size {
            $(n if n <= 8 * $words => $f::<$words> $args,)*
            n => unreachable!("a box of {n} bytes: sizes are checked before"),
        }
    };
}

fn alloc_box<const WORDS: usize>() -> NonNull<u8> {
    NonNull::from(Box::leak(Box::<Payload<WORDS>>::new_uninit())).cast()
}

/// # Safety
/// From `alloc_box` with as many words, given up.
unsafe fn retire_box<const WORDS: usize>(object: NonNull<u8>) {
    // SAFETY: as the caller owes; any bytes are a payload.
    unsafe { kvfree::retire_box(object.cast::<Payload<WORDS>>()) };
}

// SAFETY: boxes of at least the size.
unsafe impl Engine for Boxes {
    #[inline]
    fn alloc(&self, size: usize) -> NonNull<u8> {
        by_size!(size, alloc_box())
    }

    #[inline]
    unsafe fn retire(&self, object: NonNull<u8>, size: usize) {
        // SAFETY: as the caller owes; the same type as in `alloc`.
        unsafe { by_size!(size, retire_box(object)) };
    }

    fn finish(&self, _retired: usize) {
        kvfree::barrier();
    }

    fn outstanding(&self, _retired: usize, _in_use: &[NonNull<u8>]) -> Option<usize> {
        Some(kvfree::front().stats().objects_waiting)
    }

    fn waiting_bytes(&self, _retired: usize, _size: usize) -> usize {
        // Counting visits every slot, which a measurement is not to do to what it measures.
        0
    }

    fn grace_periods(&self) -> Option<usize> {
        Some(Global.grace_periods())
    }

    #[inline]
    fn read(&self, cell: &AtomicPtr<usize>) {
        read_ours(cell);
    }
}
