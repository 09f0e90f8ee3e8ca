//! The table against a set of pages.

use super::*;
use std::collections::BTreeSet;

fn pages(regions: &Regions) -> BTreeSet<u32> {
    let mut last = None;
    for (first, end) in regions.pieces() {
        assert!(first < end && last.is_none_or(|last| last < first));
        last = Some(end);
    }
    regions
        .pieces()
        .flat_map(|(first, end)| first..end)
        .collect()
}

#[test]
fn pieces_are_added_and_removed_like_a_set_of_pages() {
    let mut regions = Regions::new();
    let mut model = BTreeSet::new();
    let mut seed = 1_u32;
    let mut random = |n: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % n
    };
    let mut outcomes = [0; 4];
    for _ in 0..5000 {
        let first = random(60);
        let piece = (first, first + 1 + random(8));
        let range: BTreeSet<u32> = (piece.0..piece.1).collect();
        let before = model.clone();
        if random(2) == 0 {
            let fits = model.is_disjoint(&range);
            if fits {
                model.extend(&range);
            }
            let expected = if fits {
                Ok(())
            } else {
                Err(RegionError::Overlap)
            };
            assert_eq!(regions.add(piece), expected);
            outcomes[usize::from(fits)] += 1;
        } else {
            let fits = model.is_superset(&range);
            if fits {
                model.retain(|page| !range.contains(page));
            }
            let expected = if fits {
                Ok(())
            } else {
                Err(RegionError::Missing)
            };
            assert_eq!(regions.remove(piece), expected, "{piece:?} of {before:?}");
            outcomes[2 + usize::from(fits)] += 1;
        }
        assert_eq!(pages(&regions), model);
    }
    assert!(outcomes.iter().all(|&n| n > 100), "{outcomes:?}");
}

#[test]
fn a_full_table_refuses_what_would_not_fit() {
    let mut regions = Regions::new();
    for i in 0..MAX_REGIONS as u32 {
        regions.add((10 * i, 10 * i + 5)).unwrap();
    }
    let before = pages(&regions);
    assert_eq!(regions.add((1000, 1001)), Err(RegionError::TooMany));
    assert_eq!(regions.remove((1, 2)), Err(RegionError::TooMany));
    assert_eq!(pages(&regions), before);
    // Neighbours fit still, and so do removals at an edge.
    regions.add((5, 10)).unwrap();
    regions.remove((1, 2)).unwrap();
    assert_eq!(pages(&regions).len(), before.len() + 4);
}

#[test]
fn bad_ranges_are_told_apart() {
    let base = NonNull::<u8>::without_provenance((1_usize << 20).try_into().unwrap());
    let span = Span { base, pages: 16 };
    let at = |offset: isize| base.as_ptr().wrapping_offset(offset).cast_const();
    let last = at(0).with_addr(usize::MAX - PAGE_SIZE + 1);
    for (start, size_bytes, expected) in [
        (at(0), 0, RegionError::Empty),
        (at(8), PAGE_SIZE, RegionError::Misaligned),
        (at(0), PAGE_SIZE - 1, RegionError::Misaligned),
        (last, PAGE_SIZE, RegionError::Overflow),
        (last, 2 * PAGE_SIZE, RegionError::Overflow),
        (at(-4096), PAGE_SIZE, RegionError::Outside),
        (at(15 * 4096), 2 * PAGE_SIZE, RegionError::Outside),
        (at(16 * 4096), PAGE_SIZE, RegionError::Outside),
    ] {
        assert_eq!(span.range(start, size_bytes), Err(expected));
        assert!(!expected.to_string().is_empty());
    }
    let whole = span.range(at(0), 16 * PAGE_SIZE).unwrap();
    assert_eq!(span.check(whole), Ok((0, 16)));
    let past = Range {
        first: usize::MAX,
        pages: 2,
        zeroed: false,
    };
    assert_eq!(span.check(past), Err(RegionError::Overflow));
}
