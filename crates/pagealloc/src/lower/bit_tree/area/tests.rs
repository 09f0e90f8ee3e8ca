//! The bit tricks against loops, and an area against a set of pages.

use super::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn groups_are_found_and_filled(bits: u64, dense: u64, order in 0..=ROW_ORDER, n in 0..70_usize) {
        for bits in [bits, bits | dense, bits | dense.rotate_left(7) | dense, u64::MAX, !(bits & dense & 0xff), 0] {
            let size = 1 << order;
            let whole = |at: u32| bits & mask(at, size) == mask(at, size);
            let heads: Vec<u32> = (0..64).step_by(size as usize).filter(|&at| whole(at)).collect();
            prop_assert_eq!(blocks(bits, order), heads.iter().fold(0, |sum, at| sum | 1 << at));
            let first = heads.iter().take(n).fold(0, |sum, at| sum | 1 << at);
            prop_assert_eq!(lowest(blocks(bits, order), n), first);
            let filled = heads.iter().take(n).fold(0, |sum, &at| sum | mask(at, size));
            prop_assert_eq!(spread(first, order), filled);
        }
    }

    #[test]
    fn an_area_is_a_set_of_pages(steps in proptest::collection::vec((0..=HALF_ORDER + 1, 1..70_usize, any::<bool>(), any::<usize>()), 1..80)) {
        let area = Area::default();
        area.give(0, AREA_PAGES as u32, true);
        // Out, by first page: end, and whether it is zero.
        let mut out: Vec<(u32, u32)> = Vec::new();
        let mut free = vec![Some(true); AREA_PAGES];
        for (order, want, is_zero, which) in steps {
            let size = 1_u32 << order;
            let mut runs = Vec::new();
            let claim = area.claim(order, want, &mut |first, end, zero| runs.push((first, end, zero)));
            let mut got = 0;
            for (first, end, zero) in runs {
                prop_assert_eq!(first % size, 0);
                prop_assert_eq!(end % size, 0);
                got += ((end - first) / size) as usize;
                let all = free[first as usize..end as usize].iter().all(|&page| page == Some(true));
                prop_assert!(all == zero || order == 0 && !zero, "zero as far as it is known");
                for page in first..end {
                    prop_assert!(free[page as usize].take().is_some(), "was free");
                }
                out.extend((first..end).step_by(size as usize).map(|at| (at, at + size)));
            }
            prop_assert_eq!(got, claim.got);
            prop_assert!(got <= want);
            if got == 0 {
                let fits = |at: usize| free[at..at + size as usize].iter().all(Option::is_some);
                prop_assert!(!(0..AREA_PAGES).step_by(size as usize).any(fits), "alone, nothing is missed");
            }
            for i in 0..out.len() / 2 {
                let (first, end) = out.swap_remove((which.wrapping_mul(31) + i * 7) % out.len());
                area.give(first, end, is_zero);
                free[first as usize..end as usize].fill(Some(is_zero));
            }
            prop_assert_eq!(area.word().free(), free.iter().flatten().count());
        }
        for (first, end) in out.drain(..) {
            area.give(first, end, false);
        }
        prop_assert!(area.word().is_whole());
        prop_assert!(area.rows.0.iter().all(|row| row.load(Ordering::Relaxed) == u64::MAX));
    }
}

#[test]
fn blocks_are_counted_by_the_largest_they_are_part_of() {
    let area = Area::default();
    area.give(3, 16, false);
    area.give(64, 256, false);
    area.give(512, 1024, false);
    let mut sum = [0; 11];
    area.add_blocks(&mut sum);
    // 3; 4–7; 8–15; 64–127; 128–255; the upper half.
    assert_eq!(sum, [1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 0]);
}
