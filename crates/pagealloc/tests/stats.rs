//! What a zone says about itself: counts that add up, the two indices of fragmentation, the picture.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

mod buffer;
#[macro_use]
mod each;

use buffer::{fixed, unwritten};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use pagealloc::{
    Attempt, AttemptStats, Mmap, Order, PageAlloc, PageBlock, PageReq, SlotStats, Zone, ZoneStats,
};
use rcu_core::cpu::{OneCpu, Slot, Threads};

over_each_lower! {

const ORDERS: usize = 11;

const LEVELS: [Attempt; 4] = [
    Attempt::PcpOnly,
    Attempt::TryLock,
    Attempt::NoWait,
    Attempt::MayGrow,
];

fn order(log2_pages: usize) -> Order {
    Order::new(log2_pages as u8).unwrap()
}

fn zone() -> Zone<Threads, Mmap> {
    Zone::new(Threads, Mmap::reserve(4 << 30).unwrap()).unwrap()
}

/// All slots' statistics.
fn slots(zone: &Zone<Threads, Mmap>) -> Vec<SlotStats> {
    (0..).map_while(|i| zone.slot_stats(Slot::new(i))).collect()
}

#[test]
fn what_went_out_and_came_back_adds_up_by_order() {
    let zone = zone();
    let mut out: Vec<(NonNull<u8>, Order)> = Vec::new();
    let (mut allocs, mut frees) = ([0_u64; ORDERS], [0_u64; ORDERS]);
    // By level: what was served, and what was not.
    let (mut served, mut refused) = ([0_u64; 4], [0_u64; 4]);
    let mut random = 1_u32;
    let mut next = move |below: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % below
    };
    for round in 0..3000 {
        let o = if round % 10 == 0 { next(11) } else { next(4) };
        let (one, many) = (order(o), 1 + next(80) * usize::from(o < 4));
        let level = LEVELS[next(4)];
        match next(5) {
            0 => {
                let mut blocks = vec![MaybeUninit::uninit(); many];
                let got = zone.alloc_bulk(PageReq::new(one).attempt(level), &mut blocks);
                for block in &blocks[..got] {
                    // SAFETY: the first `got` were written.
                    out.push((unsafe { block.assume_init() }, one));
                }
                allocs[o] += got as u64;
                served[level as usize] += got as u64;
                refused[level as usize] += u64::from(got < many);
            }
            1 | 2 => {
                if let Ok(block) = zone.alloc(PageReq::new(one).attempt(level)) {
                    out.push((block, one));
                    allocs[o] += 1;
                    served[level as usize] += 1;
                } else {
                    refused[level as usize] += 1;
                }
            }
            3 => {
                let same: Vec<_> = out.extract_if(.., |(_, order)| *order == one).collect();
                let blocks: Vec<_> = same.iter().map(|(block, _)| *block).collect();
                frees[o] += blocks.len() as u64;
                // SAFETY: they were out, and are forgotten here.
                unsafe { zone.free_bulk(&blocks, one) };
            }
            _ if !out.is_empty() => {
                let (block, order) = out.swap_remove(next(out.len()));
                frees[order.get()] += 1;
                let held = (next(3) == 0 && level < Attempt::NoWait).then(|| zone.hold_zone_lock());
                // SAFETY: it was out, and is forgotten here.
                unsafe { zone.free_at(block, order, level) };
                drop(held);
            }
            _ => {}
        }
    }
    let stats = zone.stats();
    let mut pages = 0;
    for o in 0..ORDERS {
        let counted = stats.order(order(o));
        assert_eq!(
            (counted.allocs, counted.frees),
            (allocs[o], frees[o]),
            "order {o}\n{stats:#}"
        );
        pages += (counted.nr_allocated() as usize) << o;
    }
    assert_eq!(pages, stats.nr_allocated());
    assert_eq!(stats.stashed_blocks > 0, IS_BUDDIES, "{stats}");
    assert!(stats.hits > 0, "{stats}");
    for level in LEVELS {
        let (counted, i) = (stats.attempt(level), level as usize);
        let outcomes = (counted.hits + counted.served(), counted.empty);
        assert_eq!(outcomes, (served[i], refused[i]), "{level:?}\n{stats}");
        assert_eq!(counted.contended, 0);
        assert!(counted.hits > 0 && counted.misses > 0, "{stats}");
    }
    assert_eq!(stats.attempt(Attempt::PcpOnly).served(), 0, "{stats}");
    assert!(stats.attempt(Attempt::PcpOnly).empty > 0, "{stats}");
    let hits = stats.attempts.iter().map(|attempt| attempt.hits);
    assert_eq!(hits.sum::<u64>(), stats.hits);

    // A slot's counts are the zone's, taken apart.
    let slots = slots(&zone);
    assert!(slots.len() > 1);
    let sum = |of: fn(&SlotStats) -> u64| slots.iter().map(of).sum::<u64>();
    assert_eq!(sum(|s| s.hits.iter().sum()), stats.hits);
    assert_eq!(sum(|s| s.refills), stats.refills);
    assert_eq!(sum(|s| s.drains), stats.drains);
    assert_eq!(sum(|s| s.pages() as u64), stats.list_pages as u64);
    for level in LEVELS {
        let counts = |a: AttemptStats| [a.hits, a.misses, a.contended, a.empty];
        let mut sums = [0; 4];
        for slot in &slots {
            let counted = counts(slot.attempt(level));
            sums.iter_mut().zip(counted).for_each(|(sum, n)| *sum += n);
        }
        assert_eq!(sums, counts(stats.attempt(level)));
    }
    for (o, counted) in stats.orders.iter().enumerate() {
        let listed: usize = slots.iter().map(|s| s.blocks[o]).sum();
        assert_eq!(listed, counted.listed);
    }
    assert_eq!(zone.slot_stats(Slot::new(u32::MAX - 1)), None);
}

over_buddies! {

#[test]
fn splits_and_merges_are_counted_by_order() {
    let mut memory = unwritten(8 << 20);
    // SAFETY: this test uses its zone in its own thread only.
    let cpu = unsafe { OneCpu::new() };
    let zone = Zone::new(cpu, fixed(&mut memory)).unwrap();
    let fresh = zone.stats();
    // One page from the smallest block, and back.
    let first = fresh.free_blocks.iter().position(|&n| n > 0).unwrap();
    let large = (0..ORDERS)
        .rev()
        .find(|&o| fresh.free_blocks[o] > 0)
        .unwrap();
    assert!(large > first);
    let block = PageBlock::new(&zone, PageReq::new(order(large))).unwrap();
    let now = zone.stats();
    assert_eq!(
        now.order(order(large)).splits,
        fresh.order(order(large)).splits,
        "nothing was cut"
    );
    drop(block);
    zone.drain_all();
    let mut pages = Vec::new();
    while let Ok(page) = PageBlock::new(&zone, PageReq::new(Order::ZERO).attempt(Attempt::NoWait)) {
        pages.push(page);
    }
    let cut = zone.stats();
    assert!(
        (1..ORDERS).all(|o| { cut.order(order(o)).splits >= fresh.free_blocks[o] as u64 }),
        "{cut:#}"
    );
    assert_eq!(cut.order(Order::ZERO).splits, 0);
    drop(pages);
    zone.drain_all();
    let merged = zone.stats();
    assert_eq!(merged.free_blocks, fresh.free_blocks);
    let merges: u64 = merged.orders.iter().map(|o| o.merges).sum();
    assert!(merges > 0, "{merged:#}");
    assert_eq!(merged.order(Order::MAX).merges, 0);
}

}

/// Statistics of a zone with these free blocks, by order.
fn free(blocks: &[(usize, usize)]) -> ZoneStats {
    let mut stats = ZoneStats::default();
    for &(order, nr) in blocks {
        stats.free_blocks[order] += nr;
        stats.free_pages += nr << order;
    }
    stats
}

#[test]
fn the_indices_are_linuxs() {
    for (blocks, o, fragmentation, unusable) in [
        // Nothing free: for lack of memory, and all of nothing is unusable.
        (&[][..], 3, Some(0), 1000),
        // A block of the order, or a larger one, would do.
        (&[(3, 1)], 3, None, 0),
        (&[(4, 1)], 3, None, 0),
        // 1000 - (1000 + 8 * 1000 / 2) / 8 and so on.
        (&[(0, 8)], 1, Some(375), 1000),
        (&[(0, 8)], 10, Some(875), 1000),
        (&[(0, 1000)], 10, Some(999), 1000),
        (&[(0, 8), (3, 1)], 3, None, 500),
        (&[(0, 8), (3, 1)], 4, Some(778), 1000),
        (&[(0, 2), (1, 1), (10, 1)], 9, None, 3),
        // One block of half the size: Linux's formula leaves its range here.
        (&[(9, 1)], 10, Some(-500), 1000),
    ] {
        let stats = free(blocks);
        assert_eq!(
            stats.fragmentation_index(order(o)),
            fragmentation,
            "{blocks:?} {o}"
        );
        assert_eq!(stats.unusable_index(order(o)), unusable, "{blocks:?} {o}");
    }
}

#[test]
fn the_table_has_a_line_for_each_order() {
    let text = format!("{:#}", free(&[(0, 8), (3, 1)]));
    let lines: Vec<Vec<&str>> = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("order"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 1 + ORDERS, "{text}");
    assert_eq!(lines[0].len(), 9);
    assert_eq!(lines[1], ["0", "8", "0", "0", "0", "0", "0", "0", "-"]);
    assert_eq!(lines[5], ["4", "0", "0", "0", "0", "0", "0", "1000", "778"]);
    assert!(!format!("{}", free(&[])).contains("extfrag"));
}

fn take(
    zone: &Zone<Threads, Mmap>,
    nr: usize,
) -> Vec<PageBlock<'_, Zone<Threads, Mmap>, pagealloc::Unfilled>> {
    (0..nr)
        .map(|_| PageBlock::new(zone, PageReq::new(Order::ZERO)).unwrap())
        .collect()
}

/// One hold of the zone lock moves a bounded number of blocks, in either direction.
#[test]
fn t27_no_batch_is_larger_than_a_chunk() {
    let zone = zone();
    for nr in [1, 60, 500, 2000] {
        drop(take(&zone, nr));
        zone.drain_all();
    }
    let stats = zone.stats();
    assert!(stats.refills > 4 && stats.drains > 4, "{stats}");
    for slot in slots(&zone) {
        assert!(slot.refilled <= 64 * slot.refills, "{slot}");
        assert!(slot.drained <= 64 * slot.drains, "{slot}");
    }
}

over_buddies! {

/// The stash holds what was freed without a lock, says how much that was at most, and is empty in the end.
#[test]
fn t31_the_stash_counts_its_peak_and_is_worked_off() {
    let zone = zone();
    let blocks = take(&zone, 1500);
    let held = zone.hold_zone_lock();
    for block in blocks {
        block.free_at(Attempt::PcpOnly);
    }
    drop(held);
    zone.drain_all();
    let stats = zone.stats();
    assert!(stats.stash_peak_pages >= 1500 - 126, "{stats}");
    assert_eq!(stats.stash_peak_pages, stats.stashed_blocks, "single pages");
    assert_eq!(
        (stats.stash_pages, stats.list_pages, stats.nr_allocated()),
        (0, 0, 0)
    );
}

}

/// A start tag's name and attributes, an end tag's name, or text.
fn check_xml(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let mut rest = text.trim_end();
    while !rest.is_empty() {
        let Some(tag) = rest.strip_prefix('<') else {
            let end = rest.find('<').expect("text is inside of an element");
            let inside = &rest[..end];
            assert!(!inside.contains(['>', '&']), "{inside}");
            assert!(!open.is_empty() || inside.trim().is_empty());
            rest = &rest[end..];
            continue;
        };
        let end = tag.find('>').expect("tags end");
        let (tag, after) = (&tag[..end], &tag[end + 1..]);
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "elements nest");
            continue;
        }
        let (tag, is_empty) = tag
            .strip_suffix('/')
            .map_or((tag, false), |tag| (tag, true));
        let (name, mut attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.chars().all(|c| c.is_ascii_lowercase()), "{name}");
        let mut list = Vec::new();
        while !attributes.trim().is_empty() {
            let (key, value) = attributes.split_once("=\"").expect("a quoted value");
            let (value, after) = value.split_once('"').expect("the quote ends");
            assert!(!value.contains(['<', '&']));
            assert!(list.iter().all(|(k, _)| k != key.trim()), "once each");
            list.push((key.trim().to_owned(), value.to_owned()));
            attributes = after;
        }
        all.push((name.to_owned(), list));
        if !is_empty {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    all
}

/// The pages of each kind in the picture's cells, by name; the cells must follow one another.
fn cells(svg: &str) -> (usize, impl Fn(&str) -> usize) {
    let (mut at, mut nr, mut kinds) = (0, 0, Vec::<(String, usize)>::new());
    for cell in svg.split("<title>pages ").skip(1) {
        let (range, what) = cell.split_once(": ").unwrap();
        let (first, last) = range.split_once(" to ").unwrap();
        assert_eq!(first.parse::<usize>().unwrap(), at);
        at = last.parse::<usize>().unwrap() + 1;
        nr += 1;
        let what = what.split_once("</title>").unwrap().0;
        let what = what.split(" (").next().unwrap();
        for part in what.split(", ") {
            let (pages, kind) = part.split_once(' ').unwrap();
            kinds.push((kind.to_owned(), pages.parse().unwrap()));
        }
    }
    let of = move |kind: &str| {
        kinds
            .iter()
            .filter(|(k, _)| k == kind)
            .map(|(_, n)| n)
            .sum()
    };
    (nr, of)
}

#[test]
fn the_picture_is_xml_and_shows_every_page_once() {
    let zone = zone();
    let empty = {
        let mut svg = String::new();
        zone.heatmap(&mut svg).unwrap();
        svg
    };
    assert_eq!(check_xml(&empty)[0].0, "svg");
    assert_eq!(cells(&empty).0, 0);

    let kept: Vec<_> = (0..4000)
        .map(|i| PageBlock::new(&zone, PageReq::new(order(i % 6))).unwrap())
        .collect();
    let (freed, kept): (Vec<_>, Vec<_>) =
        kept.into_iter().enumerate().partition(|(i, _)| i % 3 == 0);
    let held = zone.hold_zone_lock();
    for (_, block) in freed {
        block.free_at(Attempt::PcpOnly);
    }
    drop(held);
    // Taken first, for the statistics take the lock and so work off a part of the stash.
    let stats = zone.stats();
    let mut svg = String::new();
    zone.heatmap(&mut svg).unwrap();
    assert!(svg.len() < 1 << 20);
    let elements = check_xml(&svg);
    let (nr, of) = cells(&svg);
    assert!((1..=4096).contains(&nr));
    let drawn = elements
        .iter()
        .filter(|(name, list)| name == "rect" && list.iter().any(|(key, _)| key == "fill"));
    assert_eq!(drawn.count(), nr + 1 + 5 + ORDERS, "cells, ground, legend");
    assert_eq!(of("out"), stats.nr_allocated());
    assert_eq!(of("on lists"), stats.list_pages);
    let now = zone.stats();
    if IS_BUDDIES {
        assert!(of("stashed") > 0 && of("stashed") < stats.stash_pages);
        assert!(of("free") > stats.free_pages && of("free") < now.free_pages);
    } else {
        assert_eq!((of("stashed"), of("free")), (0, now.free_pages));
    }
    assert_eq!(of("not given"), 0);
    let all: usize = ["out", "on lists", "stashed", "free"].map(of).iter().sum();
    assert_eq!(all, stats.total_pages);
    drop(kept);
}

#[test]
fn the_picture_of_a_region_that_starts_anywhere_has_its_holes() {
    let mut memory = unwritten(1 << 20);
    // SAFETY: this test uses its zone in its own thread only.
    let cpu = unsafe { OneCpu::new() };
    let zone = Zone::new(cpu, fixed(&mut memory)).unwrap();
    let block = PageBlock::new(&zone, PageReq::new(order(5))).unwrap();
    let mut svg = String::new();
    zone.heatmap(&mut svg).unwrap();
    check_xml(&svg);
    let (nr, of) = cells(&svg);
    let span = zone.span().pages;
    assert_eq!(nr, span, "a cell for each page");
    assert_eq!((of("out"), of("free")), (32, zone.free_pages()));
    assert_eq!(
        of("not given"),
        span - zone.total_pages(),
        "the zone's own pages"
    );
    drop(block);
}

/// A writer that is full ends the drawing.
#[test]
fn a_picture_that_cannot_be_written_is_an_error() {
    struct Full(usize);
    impl core::fmt::Write for Full {
        fn write_str(&mut self, s: &str) -> core::fmt::Result {
            self.0 = self.0.checked_sub(s.len()).ok_or(core::fmt::Error)?;
            Ok(())
        }
    }
    let zone = zone();
    drop(take(&zone, 1));
    assert!(zone.heatmap(&mut Full(10_000)).is_err());
    assert!(zone.heatmap(&mut Full(1 << 20)).is_ok());
}

}
