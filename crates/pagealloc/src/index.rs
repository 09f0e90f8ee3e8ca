//! Where a block's buddy is: arithmetic on page indices, nothing else.
//!
//! A page's index counts from the start of its zone's span. Blocks are aligned by *address*, and a
//! span may start anywhere (a static region of 64 KiB does), so the arithmetic works on `index + bias`,
//! `bias` being the span start's page number modulo the largest block. Why not leave a hole in front
//! of the span instead: the hole's metadata could be larger than a small region.

#![deny(unsafe_code)]

use crate::api::Order;

/// No page. Spans are shorter than this.
pub(crate) const NONE: u32 = u32::MAX;

/// Pages that a span has at most: indices plus bias stay below [`NONE`].
pub(crate) const MAX_PAGES: usize = (NONE - (2 << Order::MAX.get())) as usize;

/// The bias of a span whose first byte is at `address`.
pub(crate) const fn bias(address: usize) -> u32 {
    (address >> crate::PAGE_SHIFT) as u32 & ((1 << Order::MAX.get()) - 1)
}

/// The block of the same order that `index`'s block merges with; `None` if it lies before the span.
#[doc(alias = "__find_buddy_pfn")]
pub(crate) const fn buddy(index: u32, order: Order, bias: u32) -> Option<u32> {
    ((index + bias) ^ (1 << order.get())).checked_sub(bias)
}

/// The largest block that starts at `start` and ends at or before `end`.
///
/// `start < end`.
pub(crate) const fn largest(start: u32, end: u32, bias: u32) -> Order {
    let aligned = (start + bias).trailing_zeros();
    let fits = (end - start).ilog2();
    let max = Order::MAX.get() as u32;
    let order = if aligned < fits { aligned } else { fits };
    Order::at(if order < max { order } else { max } as usize)
}

/// The range's blocks, each as large as alignment and the range's end allow, in ascending order.
pub(crate) fn blocks(start: u32, end: u32, bias: u32) -> impl Iterator<Item = (u32, Order)> {
    let mut at = start;
    core::iter::from_fn(move || {
        (at < end).then(|| {
            let order = largest(at, end, bias);
            let block = at;
            at += 1 << order.get();
            (block, order)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p1_a_buddy_is_mutual_adjacent_and_aligned() {
        for bias in [0, 1, 3, 512, 1023] {
            for order in (0..=10).map(Order::at) {
                let pages = order.pages() as u32;
                for index in (0..4096).filter(|i| (i + bias) % pages == 0) {
                    let Some(other) = buddy(index, order, bias) else {
                        assert!(
                            index + bias < (pages | bias) + 1,
                            "only a span's start lacks buddies"
                        );
                        continue;
                    };
                    assert_eq!(buddy(other, order, bias), Some(index));
                    assert_eq!(index.abs_diff(other), pages);
                    assert_eq!((index.min(other) + bias) % (2 * pages), 0);
                }
            }
        }
    }

    #[test]
    fn blocks_tile_every_range_with_aligned_blocks() {
        for bias in [0, 5, 1000] {
            for start in (0..80).chain(1000..1040) {
                for end in (start..start + 70).chain([start + 1023, start + 3000]) {
                    let mut at = start;
                    for (block, order) in blocks(start, end, bias) {
                        assert_eq!(block, at);
                        assert_eq!((block + bias) % order.pages() as u32, 0);
                        at += order.pages() as u32;
                    }
                    assert_eq!(at, end.max(start));
                }
            }
        }
    }

    #[test]
    fn the_last_pages_of_the_largest_span_are_like_others() {
        // 16 TiB less 8 MiB, in pages.
        assert_eq!(MAX_PAGES + 1 + 2048, 1 << 32);
        let end = MAX_PAGES as u32;
        for bias in [0, 1, 1023] {
            let mut at = end - 5000;
            for (block, order) in blocks(end - 5000, end, bias) {
                assert_eq!(block, at);
                at += order.pages() as u32;
                let other = buddy(block, order, bias).unwrap();
                assert_eq!(other.abs_diff(block), order.pages() as u32);
                assert_ne!(other, NONE);
            }
            assert_eq!(at, end);
        }
    }

    #[test]
    fn the_bias_is_the_page_number_within_the_largest_block() {
        assert_eq!(bias(0), 0);
        assert_eq!(bias(4096), 1);
        assert_eq!(bias((4 << 20) - 4096), 1023);
        assert_eq!(bias(4 << 20), 0);
    }
}
