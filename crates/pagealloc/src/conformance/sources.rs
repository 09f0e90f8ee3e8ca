//! What every [`Source`] must do.

use crate::api::PAGE_SIZE;
use crate::source::{Range, Source};
use core::alloc::Layout;
use core::ptr::NonNull;
use std::vec::Vec;

/// Makes a module of tests for a [`Source`]: a name and a fresh source of at least a mebibyte.
#[macro_export]
macro_rules! source_conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn ranges_are_disjoint_and_usable() {
                $crate::conformance::sources::ranges_are_disjoint_and_usable(&$make);
            }

            #[test]
            fn metadata_is_zeroed_and_apart() {
                $crate::conformance::sources::metadata_is_zeroed_and_apart(&$make);
            }

            #[test]
            fn decommitted_pages_stay_usable() {
                $crate::conformance::sources::decommitted_pages_stay_usable(&$make);
            }
        }
    };
}

/// Pages asked for at a time, and the most that is looked at.
const STEP: usize = 16;
const MOST_RANGES: usize = 8;
/// Pages of a range that are touched, from either end.
const TOUCHED: usize = 4;

/// The zone's own structures for a small zone.
fn some_metadata() -> Layout {
    Layout::from_size_align(8 * PAGE_SIZE, 128).expect("a small layout")
}

fn page(source: &impl Source, number: usize) -> NonNull<u8> {
    let span = source.span();
    assert!(number < span.pages, "a page outside of the span");
    // SAFETY: inside the span, which is one allocation.
    unsafe { span.base.add(number * PAGE_SIZE) }
}

fn touched(range: Range) -> impl Iterator<Item = usize> {
    let edge = TOUCHED.min(range.pages);
    (0..edge)
        .chain(range.pages - edge..range.pages)
        .map(move |i| range.first + i)
}

fn reads_as(page: NonNull<u8>, byte: u8) -> bool {
    (0..PAGE_SIZE).step_by(509).all(|i| {
        // SAFETY: inside the page.
        let at = unsafe { page.add(i) };
        // SAFETY: usable memory that was written, or that reads as zeroes.
        unsafe { at.read() == byte }
    })
}

fn fill(page: NonNull<u8>, byte: u8) {
    // SAFETY: a usable page that nobody else uses.
    unsafe { page.write_bytes(byte, PAGE_SIZE) };
}

/// The first ranges. A source that refuses once is asked again.
fn grow(source: &impl Source) -> Vec<Range> {
    let mut ranges = Vec::new();
    let mut refusals = 0;
    while ranges.len() < MOST_RANGES && refusals < 2 {
        match source.grow(STEP) {
            Ok(range) => ranges.push(range),
            Err(_) => refusals += 1,
        }
    }
    assert!(!ranges.is_empty(), "a source without memory");
    ranges
}

/// Guarantees 1 and 3 of [`Source`].
pub fn ranges_are_disjoint_and_usable(source: &impl Source) {
    let span = source.span();
    assert!(
        span.base.addr().get().is_multiple_of(PAGE_SIZE),
        "the span is not aligned"
    );
    source.metadata(some_metadata()).expect("room for metadata");
    let mut ranges = grow(source);
    for (i, range) in ranges.iter().enumerate() {
        assert!(range.pages > 0 && range.first + range.pages <= span.pages);
        for number in touched(*range) {
            if range.zeroed {
                assert!(reads_as(page(source, number), 0), "not zeroed as promised");
            }
            fill(page(source, number), i as u8 + 1);
        }
    }
    for (i, range) in ranges.iter().enumerate() {
        assert!(touched(*range).all(|number| reads_as(page(source, number), i as u8 + 1)));
    }
    ranges.sort_by_key(|range| range.first);
    for pair in ranges.windows(2) {
        assert!(
            pair[0].first + pair[0].pages <= pair[1].first,
            "ranges overlap"
        );
    }
    assert_eq!(source.span().base, span.base, "the span moved");
}

/// Guarantee 2 of [`Source`].
pub fn metadata_is_zeroed_and_apart(source: &impl Source) {
    let layout = some_metadata();
    let metadata = source.metadata(layout).expect("room for metadata");
    assert!(metadata.addr().get().is_multiple_of(layout.align()));
    let byte = |i: usize| {
        // SAFETY: inside the metadata.
        unsafe { metadata.add(i) }
    };
    let all_are = |expected: u8| {
        (0..layout.size()).all(|i| {
            // SAFETY: valid for reads, and initialised: zeroed by the guarantee that is tested, or written.
            let byte = unsafe { byte(i).read() };
            byte == expected
        })
    };
    assert!(all_are(0), "metadata is not zeroed");
    // SAFETY: valid for writes of its whole size.
    unsafe { metadata.write_bytes(0xa5, layout.size()) };
    for range in grow(source) {
        touched(range).for_each(|number| fill(page(source, number), 0x5a));
    }
    assert!(all_are(0xa5), "a range overlaps the metadata");
}

/// `decommit` of [`Source`]: pages stay usable, and read as zeroes if it says so.
pub fn decommitted_pages_stay_usable(source: &impl Source) {
    source.metadata(some_metadata()).expect("room for metadata");
    for range in grow(source) {
        touched(range).for_each(|number| fill(page(source, number), 0x77));
        // SAFETY: the range came from `grow`, and nothing in it is in use.
        let zeroed = unsafe { source.decommit(range) };
        for number in touched(range) {
            let expected = if zeroed { 0 } else { 0x77 };
            assert!(reads_as(page(source, number), expected));
            fill(page(source, number), 0x33);
            assert!(reads_as(page(source, number), 0x33));
        }
    }
}
