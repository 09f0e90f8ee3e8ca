//! Lists by themselves: order, heights and what moves them.

use super::*;
use Weather::{Fair, Low, Relieving};

fn pcp(heights: &Heights) -> Pcp {
    let list = List {
        hits: 0,
        len: 0,
        high: 0,
        freed: 0,
        factor: 0,
    };
    let mut pcp = Pcp {
        levels: [0; ATTEMPTS],
        lists: [list; CLASSES],
        before: [Before { hits: 0, len: 0 }; CLASSES],
        ready: false,
        tally: Tally::default(),
        blocks: [0; START[CLASSES]],
    };
    pcp.set_up(heights);
    pcp
}

const LARGE: Heights = Heights::for_span(1 << 24);

fn singles(mobility: Mobility) -> Class {
    Class::of(Order::ZERO, mobility).unwrap()
}

/// Fills the list until it is full.
fn fill(pcp: &mut Pcp, class: Class) -> usize {
    (0..).take_while(|&n| pcp.push(class, n)).count()
}

/// Refills the empty list as the zone would, and empties it again.
fn refill_and_use(pcp: &mut Pcp, class: Class, weather: Weather) -> usize {
    let n = pcp.refill_size(class, &LARGE, weather);
    for block in 0..n as u32 {
        assert!(pcp.push(class, block), "I1: a batch fits");
    }
    pcp.settle(class);
    assert_eq!(core::iter::from_fn(|| pop(pcp, class)).count(), n);
    n
}

/// Frees a block to the full list as the zone would; returns how many left.
fn overflow(pcp: &mut Pcp, class: Class, weather: Weather) -> usize {
    let n = if pcp.makes_room(class, &LARGE, weather) {
        0
    } else {
        let n = pcp.overflow_size(class, &LARGE, weather);
        assert!(n > 0 && n < CHUNK);
        assert_eq!(pcp.take_oldest(class, n, |_| {}), n);
        n
    };
    assert!(pcp.push(class, 7), "I1: room was made");
    if n > 0 {
        pcp.settle(class);
    }
    n
}

fn pop(pcp: &mut Pcp, class: Class) -> Option<u32> {
    pcp.pop(class, Attempt::MayGrow)
}

fn high(pcp: &Pcp, class: Class) -> u16 {
    pcp.lists[class.index()].high
}

#[test]
fn p8_heights_follow_the_zone() {
    let max = |pages| Heights::for_span(pages).max[..KINDS].to_vec();
    assert_eq!(max(1), [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(max(1024), [4, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(max(16384), [64, 32, 16, 8, 1, 1, 1, 0, 0, 0]);
    assert_eq!(max(1 << 24), [126, 62, 30, 14, 1, 1, 1, 1, 1, 2]);
    let min = |pages| Heights::for_span(pages).min[..KINDS].to_vec();
    assert_eq!(min(1), [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(min(1 << 24), [28, 12, 8, 8, 1, 1, 1, 1, 1, 2]);
    assert_eq!(LARGE.max[KINDS..2 * KINDS], max(1 << 24));
    for pages in 0..2000 {
        let heights = Heights::for_span(pages * 37);
        for class in Class::all() {
            let (min, max) = (heights.min[class.index()], heights.max[class.index()]);
            assert!(min <= max && max as usize <= capacity(class.index()));
            let mut before = 0;
            for doublings in 0..=SCALE_MAX {
                let batch = heights.batch(class, doublings);
                assert!(batch >= before && batch as usize <= BATCH[class.kind()]);
                assert!(batch <= max);
                assert_eq!(batch == 0, max == 0);
                before = batch;
            }
        }
    }
}

#[test]
fn p7_classes_are_the_orders_of_each_type() {
    let mut seen = Vec::new();
    for mobility in Mobility::ALL {
        for order in (0..=10).map(Order::at) {
            let class = Class::of(order, mobility);
            assert_eq!(class.is_some(), order < Order::MAX);
            seen.extend(class.map(|class| {
                assert_eq!(class.order(), order);
                class.index()
            }));
        }
    }
    assert_eq!(seen, (0..CLASSES).collect::<Vec<_>>());
}

#[test]
fn p11_last_in_first_out_and_oldest_first_to_the_zone() {
    let mut pcp = pcp(&LARGE);
    for class in Class::all() {
        let n = fill(&mut pcp, class) as u32;
        assert_eq!(n, u32::from(LARGE.min[class.index()]));
        let taken = pcp.take_oldest(class, 1, |oldest| assert_eq!(oldest, [0]));
        assert_eq!(taken, 1);
        for left in (1..n).rev() {
            assert_eq!(pop(&mut pcp, class), Some(left));
        }
        assert_eq!(pop(&mut pcp, class), None);
    }
    assert_eq!(pcp.stats().pages(), 0);
}

#[test]
fn p12_a_closed_list_takes_nothing_until_it_is_set_up() {
    let mut pcp = pcp(&LARGE);
    pcp.close();
    assert!(!pcp.is_ready());
    assert!(Class::all().all(|class| !pcp.push(class, 7) && !pcp.takes(class)));
    for class in Class::all() {
        assert_eq!(pcp.refill_size(class, &LARGE, Fair), 0);
    }
    pcp.set_up(&LARGE);
    assert!(Class::all().all(|class| pcp.push(class, 7)));
}

#[test]
fn p9_the_batch_doubles_with_refills_that_no_free_came_between() {
    let mut pcp = pcp(&LARGE);
    let class = singles(Mobility::Unmovable);
    let got: Vec<_> = (0..6)
        .map(|_| refill_and_use(&mut pcp, class, Fair))
        .collect();
    assert_eq!(
        got,
        [7, 15, 31, 49, 56, 63],
        "as far as the height has grown"
    );
    assert_eq!(high(&pcp, class), 28 + 6 * 7);
    let more: Vec<_> = (0..8)
        .map(|_| refill_and_use(&mut pcp, class, Fair))
        .collect();
    assert_eq!(more, [63; 8]);
    assert_eq!(high(&pcp, class), 126, "no more than the array holds");
    // One free halves it, several end it.
    assert!(pcp.push(class, 1));
    pop(&mut pcp, class);
    assert_eq!(refill_and_use(&mut pcp, class, Fair), 15);
    assert_eq!(refill_and_use(&mut pcp, class, Fair), 31);
    for _ in 0..3 {
        assert!(pcp.push(class, 1));
        pop(&mut pcp, class);
    }
    assert_eq!(refill_and_use(&mut pcp, class, Fair), 7);
    // Other lists go their own way.
    assert_eq!(
        refill_and_use(&mut pcp, singles(Mobility::Movable), Fair),
        7
    );
}

#[test]
fn p9_what_is_freed_without_allocations_leaves_in_growing_batches() {
    let mut pcp = pcp(&LARGE);
    let class = singles(Mobility::Unmovable);
    assert_eq!(fill(&mut pcp, class), 28);
    assert_eq!(
        overflow(&mut pcp, class, Fair),
        0,
        "28 were freed: room for 35"
    );
    assert_eq!(high(&pcp, class), 35);
    let mut left = Vec::new();
    for _ in 0..400 {
        if !pcp.push(class, 3) {
            left.push(overflow(&mut pcp, class, Fair));
        }
    }
    let most = *left.iter().max().unwrap();
    assert_eq!(most, 7 << SCALE_MAX, "{left:?}");
    assert_eq!(high(&pcp, class), (7 << SCALE_MAX) + 7);
    // Allocations halve it: with as many of them as frees nothing is left of it.
    assert!(pcp.lists[class.index()].freed > 30);
    for _ in 0..30 {
        pop(&mut pcp, class);
        assert!(pcp.push(class, 3));
    }
    pcp.settle(class);
    for _ in 0..3 {
        pop(&mut pcp, class);
    }
    let before = pcp.lists[class.index()].freed;
    pcp.makes_room(class, &LARGE, Fair);
    assert_eq!(pcp.lists[class.index()].freed, before / 8);
}

#[test]
fn p9_heights_decay_with_ticks_and_not_below_the_least() {
    let mut pcp = pcp(&LARGE);
    let class = singles(Mobility::Unmovable);
    for _ in 0..20 {
        refill_and_use(&mut pcp, class, Fair);
    }
    while pcp.push(class, 1) {}
    let mut heights = vec![high(&pcp, class)];
    for _ in 0..20 {
        let (high, above) = pcp.decayed(class, &LARGE);
        pcp.take_oldest(class, above, |_| {});
        pcp.lower(class, high);
        heights.push(high);
    }
    assert_eq!(heights[..3], [126, 111, 98]);
    assert!(heights.is_sorted_by(|a, b| a >= b));
    assert_eq!(heights.last(), Some(&28));
    assert_eq!(pcp.stats().pages(), 28);
    assert_eq!(
        pcp.decayed(singles(Mobility::Movable), &LARGE),
        (28, 0),
        "a list at its least stays"
    );
}

#[test]
fn p9_a_zone_that_is_short_makes_lists_shrink() {
    for (weather, rest) in [(Low, 28), (Relieving, 28)] {
        let mut pcp = pcp(&LARGE);
        let class = singles(Mobility::Unmovable);
        for _ in 0..20 {
            refill_and_use(&mut pcp, class, Fair);
        }
        assert_eq!(high(&pcp, class), 126);
        refill_and_use(&mut pcp, class, weather);
        assert_eq!(high(&pcp, class), 126, "a refill does not raise it further");
        let mut before = 126;
        for _ in 0..500 {
            if !pcp.push(class, 1) {
                overflow(&mut pcp, class, weather);
            }
            assert!(high(&pcp, class) <= before, "only down");
            before = high(&pcp, class);
        }
        assert_eq!(high(&pcp, class), rest);
    }
}

#[test]
fn p9_every_list_stays_within_its_bounds_whatever_happens() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for pages in [1, 300, 1024, 5000, 16384, 1 << 20, 1 << 24] {
        let heights = Heights::for_span(pages);
        let mut pcp = pcp(&heights);
        for _ in 0..20_000 {
            let class = Class(next(CLASSES as u64) as u8);
            let weather = [Fair, Low, Relieving][next(3) as usize];
            for _ in 0..next(20) {
                match next(3) {
                    0 => {
                        pop(&mut pcp, class);
                    }
                    _ if !pcp.takes(class) => assert!(!pcp.push(class, 1)),
                    _ if pcp.push(class, 1) => {}
                    _ if pcp.makes_room(class, &heights, weather) => {
                        assert!(pcp.push(class, 1));
                    }
                    _ => {
                        let n = pcp.overflow_size(class, &heights, weather);
                        assert!((1..=CHUNK).contains(&n));
                        assert_eq!(pcp.take_oldest(class, n, |_| {}), n);
                        assert!(pcp.push(class, 1));
                        pcp.settle(class);
                    }
                }
            }
            if pcp.lists[class.index()].len == 0 {
                for _ in 0..pcp.refill_size(class, &heights, weather) {
                    assert!(pcp.push(class, 2));
                }
                pcp.settle(class);
            }
            if next(50) == 0 {
                let (high, above) = pcp.decayed(class, &heights);
                pcp.take_oldest(class, above, |_| {});
                pcp.lower(class, high);
            }
            let list = pcp.lists[class.index()];
            assert!(list.len <= list.high && list.high <= heights.max[class.index()]);
            assert!(list.factor <= SCALE_MAX);
        }
    }
}
