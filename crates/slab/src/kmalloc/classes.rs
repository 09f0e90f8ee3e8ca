//! Size classes: which there are, and which one serves a layout.
//!
//! Source: Linux `mm/slab_common.c`, `kmalloc_info` (facts and constants only). Linux has powers of two and 96 and 192; here every
//! doubling above 64 bytes has four steps, as in most allocators of user space, so that no class wastes more than a fifth of an
//! object (or a quarter of the request). They go on above two pages, Linux's limit, up to 64 KiB: programs have many buffers of 16 to 64 KiB, and a
//! run of pages takes a lock of the page allocator's each time.
//!
//! # Invariants
//! - I1. A class is aligned to the largest power of two that divides its size, up to 8 KiB, and serves no more; so the class for a size that was rounded up to a multiple of
//!   its alignment is aligned enough, for between two powers of two all classes are multiples of a quarter of the lower one (of a half
//!   below 64), and so is every size that was rounded up to more. (Tested for every size and alignment.)

use core::alloc::Layout;

/// How many size classes there are.
pub const NR_CLASSES: usize = 46;

/// Bytes of the objects of each class. Each is aligned to the largest power of two that divides it, powers of two so to
/// themselves.
#[doc(alias = "kmalloc_info")]
#[rustfmt::skip]
pub const CLASS_BYTES: [usize; NR_CLASSES] = [
    8, 16, 24, 32, 48, 64,
    80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024,
    1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168, 8192,
    10240, 12288, 14336, 16384, 20480, 24576, 28672, 32768, 40960, 49152, 57344, 65536,
];

/// Larger requests get pages of their own.
#[doc(alias = "KMALLOC_MAX_CACHE_SIZE")]
pub const MAX_CLASS_BYTES: usize = CLASS_BYTES[NR_CLASSES - 1];

#[rustfmt::skip]
pub(super) const NAMES: [&str; NR_CLASSES] = [
    "kmalloc-8", "kmalloc-16", "kmalloc-24", "kmalloc-32", "kmalloc-48", "kmalloc-64",
    "kmalloc-80", "kmalloc-96", "kmalloc-112", "kmalloc-128", "kmalloc-160", "kmalloc-192",
    "kmalloc-224", "kmalloc-256", "kmalloc-320", "kmalloc-384", "kmalloc-448", "kmalloc-512",
    "kmalloc-640", "kmalloc-768", "kmalloc-896", "kmalloc-1k",
    "kmalloc-1280", "kmalloc-1536", "kmalloc-1792", "kmalloc-2k",
    "kmalloc-2560", "kmalloc-3k", "kmalloc-3584", "kmalloc-4k",
    "kmalloc-5k", "kmalloc-6k", "kmalloc-7k", "kmalloc-8k",
    "kmalloc-10k", "kmalloc-12k", "kmalloc-14k", "kmalloc-16k",
    "kmalloc-20k", "kmalloc-24k", "kmalloc-28k", "kmalloc-32k",
    "kmalloc-40k", "kmalloc-48k", "kmalloc-56k", "kmalloc-64k",
];

/// Up to this size classes are found in [`FINE`], by words of 8 bytes; above it in [`COARSE`], by 256 bytes, which all classes
/// there are multiples of.
const FINE_BYTES: usize = 1024;

static FINE: [u8; FINE_BYTES / 8] = table(8);
static COARSE: [u8; MAX_CLASS_BYTES / 256] = table(256);

/// The class of each size from 1 on, by steps of so many bytes.
const fn table<const N: usize>(step_bytes: usize) -> [u8; N] {
    let mut table = [0; N];
    let mut index = 0;
    while index < N {
        let mut class = 0;
        while CLASS_BYTES[class] < (index + 1) * step_bytes {
            class += 1;
        }
        table[index] = class as u8;
        index += 1;
    }
    table
}

/// No class is aligned to more: who asks for that gets pages, of which what lies in front goes back.
const MAX_CLASS_ALIGN: usize = 8 << 10;

/// The largest power of two that divides a class's size, up to [`MAX_CLASS_ALIGN`].
pub(super) const fn class_align(class: usize) -> usize {
    let natural = 1 << CLASS_BYTES[class].trailing_zeros();
    if natural < MAX_CLASS_ALIGN {
        natural
    } else {
        MAX_CLASS_ALIGN
    }
}

/// The class for `layout`, if it is not too large; below [`NR_CLASSES`]. Nothing counts as one byte.
///
/// Where size and alignment are constant, so is the class. Else ten instructions up to 1 KiB with a constant alignment: three for the
/// last byte, a comparison and a branch, a shift, the table's address, one load from it. (Read off the assembly of a release build.)
#[inline(always)]
pub(super) const fn class_of(layout: Layout) -> Option<usize> {
    // The last byte of the size, rounded up to a multiple of the alignment (I1).
    let last = layout.size().saturating_sub(1) | (layout.align() - 1);
    if last < FINE_BYTES {
        Some(FINE[last >> 3] as usize)
    } else if last < MAX_CLASS_BYTES && layout.align() <= MAX_CLASS_ALIGN {
        Some(COARSE[last >> 8] as usize)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, and much of it")]
    fn l10_every_request_gets_the_smallest_class_that_fits() {
        for align in (0..15).map(|a| 1 << a) {
            let borders = CLASS_BYTES.iter().flat_map(|&c| c - 1..=c + 1);
            for size in (0..8200)
                .chain(borders)
                .chain((8200..MAX_CLASS_BYTES).step_by(97))
            {
                let layout = Layout::from_size_align(size, align).unwrap();
                let fits = |c: &usize| CLASS_BYTES[*c] >= size && class_align(*c) >= align;
                // Beyond the largest class's own alignment a request is rounded up first, and may be too large then.
                let expected = (0..NR_CLASSES).find(fits);
                assert_eq!(class_of(layout), expected, "{layout:?}");
            }
        }
        let huge = Layout::from_size_align(1, 2 * MAX_CLASS_BYTES.next_power_of_two()).unwrap();
        assert_eq!(class_of(huge), None);
        let most = Layout::from_size_align(isize::MAX as usize, 1).unwrap();
        assert_eq!(class_of(most), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic, and much of it")]
    fn l10_no_class_above_64_bytes_wastes_more_than_a_quarter() {
        for size in 65..=MAX_CLASS_BYTES {
            let class = class_of(Layout::from_size_align(size, 1).unwrap()).unwrap();
            let waste = CLASS_BYTES[class] - size;
            assert!(4 * waste <= size, "{size}: {waste}");
            assert!(5 * waste <= CLASS_BYTES[class], "{size}: {waste}");
        }
    }

    #[test]
    fn l10_the_kernels_classes_are_among_them() {
        let powers = (3..14).map(|shift| 1_usize << shift);
        for bytes in powers.chain([96, 192]) {
            let class = CLASS_BYTES.iter().position(|&b| b == bytes);
            let class = class.unwrap_or_else(|| panic!("no class of {bytes} bytes"));
            assert_eq!(
                class_of(Layout::from_size_align(bytes, 1).unwrap()),
                Some(class)
            );
            // Powers of two are aligned to themselves, 96 and 192 to 32 and 64.
            let natural = if bytes.is_power_of_two() {
                bytes
            } else {
                bytes / 3
            };
            assert_eq!(class_align(class), natural);
        }
        assert!(CLASS_BYTES.is_sorted());
        for (name, bytes) in NAMES.iter().zip(CLASS_BYTES) {
            let number = name.strip_prefix("kmalloc-").unwrap();
            let named = match number.strip_suffix('k') {
                Some(kib) => kib.parse::<usize>().unwrap() << 10,
                None => number.parse().unwrap(),
            };
            assert_eq!(named, bytes);
        }
    }
}
