//! Broken contracts end the program with a message. Each test runs itself again in a child.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

#[macro_use]
mod each;

use pagealloc::{Mmap, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag, Zone};
use rcu_core::cpu::Threads;
use std::process::Command;
use std::ptr::NonNull;

over_each_lower! {

type UserZone = Zone<Threads, Mmap>;

/// Runs `crime` in a child process, which must abort and say `words`.
fn dies(test: &str, words: &str, crime: impl FnOnce(UserZone)) {
    if let Some(said) = dies_in(test, || {
        crime(Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap());
    }) {
        assert!(
            said.contains("broken contract") && said.contains(words),
            "{said}"
        );
    }
}

/// Runs `crime` in a child process, which must die; returns its last words, in the parent.
fn dies_in(test: &str, crime: impl FnOnce()) -> Option<String> {
    const CHILD: &str = "PAGEALLOC_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        crime();
        return None;
    }
    let module = module_path!().rsplit("::").next().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("{module}::{test}"), "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr).into_owned();
    assert!(!child.status.success(), "lived on: {said}");
    Some(said)
}

fn page(zone: &UserZone) -> NonNull<u8> {
    zone.alloc(PageReq::new(Order::ZERO)).unwrap()
}

#[test]
fn double_free() {
    dies("double_free", "already free, on a slot's list", |zone| {
        let page = page(&zone);
        for _ in 0..2 {
            // SAFETY: broken on purpose the second time.
            unsafe { zone.free(page, Order::ZERO) };
        }
    });
}

#[test]
fn double_free_of_a_merged_block() {
    dies(
        "double_free_of_a_merged_block",
        "order 0, but it is",
        |zone| {
            let page = page(&zone);
            // SAFETY: the page is out.
            unsafe { zone.free(page, Order::ZERO) };
            zone.drain_all();
            // SAFETY: broken on purpose.
            unsafe { zone.free(page, Order::ZERO) };
        },
    );
}

#[test]
fn double_free_within_one_bulk_call() {
    dies("double_free_within_one_bulk_call", "already free", |zone| {
        let page = page(&zone);
        // SAFETY: broken on purpose.
        unsafe { zone.free_bulk(&[page, page], Order::ZERO) };
    });
}

#[test]
fn wrong_order() {
    dies(
        "wrong_order",
        "as order 1, but it is allocated (order 0)",
        |zone| {
            let page = page(&zone);
            // SAFETY: broken on purpose.
            unsafe { zone.free(page, Order::new(1).unwrap()) };
        },
    );
}

#[test]
fn inside_of_a_block() {
    dies("inside_of_a_block", "not the start of a block", |zone| {
        let block = zone.alloc(PageReq::new(Order::MAX)).unwrap();
        // SAFETY: inside the block.
        let page = unsafe { block.add(PAGE_SIZE) };
        // SAFETY: broken on purpose.
        unsafe { zone.free(page, Order::ZERO) };
    });
}

#[test]
fn misaligned() {
    dies(
        "misaligned",
        "not the start of a page of this zone",
        |zone| {
            // SAFETY: inside the page.
            let inside = unsafe { page(&zone).add(8) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(inside, Order::ZERO) };
        },
    );
}

#[test]
fn foreign() {
    dies("foreign", "not the start of a page of this zone", |zone| {
        let other = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
        // SAFETY: broken on purpose.
        unsafe { zone.free(page(&other), Order::ZERO) };
    });
}

#[test]
fn tagging_what_is_free() {
    dies("tagging_what_is_free", "tagged block", |zone| {
        let page = page(&zone);
        // SAFETY: the page is out.
        unsafe { zone.free(page, Order::ZERO) };
        // SAFETY: broken on purpose.
        unsafe { zone.set_tag(page, Order::ZERO, PageTag::NONE) };
    });
}

#[test]
fn an_exact_run_of_another_length() {
    dies("an_exact_run_of_another_length", "freed 6 pages", |zone| {
        let run = zone.alloc_exact(7, PageReq::new(Order::ZERO)).unwrap();
        // SAFETY: broken on purpose: the last page would be lost.
        unsafe { zone.free_exact(run, 6) };
    });
}

#[test]
fn the_end_of_an_exact_run() {
    dies(
        "the_end_of_an_exact_run",
        "a part of an exact run",
        |zone| {
            let run = zone.alloc_exact(7, PageReq::new(Order::ZERO)).unwrap();
            // SAFETY: inside the run.
            let end = unsafe { run.add(4 * PAGE_SIZE) };
            // SAFETY: broken on purpose.
            unsafe { zone.free_exact(end, 3) };
        },
    );
}

#[test]
fn a_message_tells_what_lies_around_the_address() {
    dies(
        "a_message_tells_what_lies_around_the_address",
        "inside the block at page 0, allocated (order 10)",
        |zone| {
            let block = zone.alloc(PageReq::new(Order::MAX)).unwrap();
            // SAFETY: inside the block.
            let page = unsafe { block.add(777 * PAGE_SIZE) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(page, Order::ZERO) };
        },
    );
}

#[test]
fn a_block_of_an_exact_run() {
    dies(
        "a_block_of_an_exact_run",
        "a part of an exact run",
        |zone| {
            let run = zone.alloc_exact(7, PageReq::new(Order::ZERO)).unwrap();
            // SAFETY: broken on purpose.
            unsafe { zone.free(run, Order::new(2).unwrap()) };
        },
    );
}

#[test]
fn a_message_tells_the_owners_note() {
    dies(
        "a_message_tells_the_owners_note",
        "its owner noted 4711 and 0x0",
        |zone| {
            let page = page(&zone);
            let tag = PageTag {
                tag: 4711,
                ..PageTag::NONE
            };
            // SAFETY: the page is out.
            unsafe { zone.set_tag(page, Order::ZERO, tag) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(page, Order::MAX) };
        },
    );
}

#[test]
fn double_free_of_an_exact_run() {
    dies("double_free_of_an_exact_run", "freed 7 pages", |zone| {
        let run = zone.alloc_exact(7, PageReq::new(Order::ZERO)).unwrap();
        for _ in 0..2 {
            // SAFETY: broken on purpose the second time.
            unsafe { zone.free_exact(run, 7) };
        }
    });
}

#[test]
fn merging_what_is_free() {
    dies("merging_what_is_free", "merged block", |zone| {
        let block = zone.alloc(PageReq::new(Order::new(1).unwrap())).unwrap();
        // SAFETY: ours.
        unsafe { zone.split(block, Order::new(1).unwrap(), Order::ZERO) }.unwrap();
        // SAFETY: inside the block.
        let second = unsafe { block.add(PAGE_SIZE) };
        // SAFETY: a block of its own.
        unsafe { zone.free(second, Order::ZERO) };
        // SAFETY: broken on purpose.
        let _ = unsafe { zone.merge(block, Order::ZERO, Order::new(1).unwrap()) };
    });
}

#[test]
fn splitting_by_another_order() {
    dies("splitting_by_another_order", "split block", |zone| {
        // SAFETY: broken on purpose.
        let _ = unsafe { zone.split(page(&zone), Order::new(2).unwrap(), Order::ZERO) };
    });
}

#[test]
fn a_page_of_a_removed_region() {
    dies(
        "a_page_of_a_removed_region",
        "not the start of a block",
        |zone| {
            let page = page(&zone);
            // SAFETY: the page is out.
            unsafe { zone.free(page, Order::ZERO) };
            let all = zone.regions().next().unwrap();
            zone.remove_region(all).unwrap();
            // SAFETY: broken on purpose.
            unsafe { zone.free(page, Order::ZERO) };
        },
    );
}

#[test]
fn a_message_tells_how_far_an_address_is_off() {
    dies(
        "a_message_tells_how_far_an_address_is_off",
        "it is 4095 bytes into page",
        |zone| {
            // SAFETY: inside the page.
            let inside = unsafe { page(&zone).add(4095) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(inside, Order::ZERO) };
        },
    );
}

#[cfg(feature = "history")]
mod history {
    use super::*;
    use pagealloc::Attempt;

    /// The line after `mark` in what the child said.
    fn line<'a>(said: &'a str, mark: &str) -> &'a str {
        let found = said.lines().find_map(|line| line.trim().strip_prefix(mark));
        found.unwrap_or_else(|| panic!("no {mark:?} in {said}"))
    }

    /// `at` names this file and the line that the child printed after `mark`.
    fn is_at(said: &str, mark: &str, at: &str) {
        let place = format!("distrust.rs:{}:", line(said, mark).trim());
        assert!(at.contains(&place), "{at:?} is not {place:?}\n{said}");
    }

    #[test]
    fn p19_a_double_free_tells_who_allocated_who_freed_and_who_frees() {
        let test = "history::p19_a_double_free_tells_who_allocated_who_freed_and_who_frees";
        let said = dies_in(test, || {
            let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
            let req = PageReq::new(Order::ZERO).attempt(Attempt::MayGrow);
            eprintln!("A {}", line!() + 1);
            let page = zone.alloc(req).unwrap();
            let level = Attempt::TryLock;
            eprintln!("F {}", line!() + 2);
            // SAFETY: the page is out.
            unsafe { zone.free_at(page, Order::ZERO, level) };
            eprintln!("N {}", line!() + 2);
            // SAFETY: broken on purpose.
            unsafe { zone.free(page, Order::ZERO) };
        });
        let Some(said) = said else { return };
        let allocated = line(&said, "page 0 allocated last:");
        let freed = line(&said, "page 0 freed last:");
        let now = line(&said, "now:");
        is_at(&said, "A", allocated);
        is_at(&said, "F", freed);
        is_at(&said, "N", now);
        assert!(allocated.contains("MayGrow") && allocated.contains("(order 0, event 1)"));
        assert!(freed.contains("TryLock") && freed.contains("(order 0, event 2)"));
        assert!(now.contains("NoWait"));
        assert!(
            [allocated, freed, now]
                .iter()
                .all(|who| who.contains("slot "))
        );
    }

    #[test]
    fn p19_a_message_tells_the_history_of_the_block_around_too() {
        let test = "history::p19_a_message_tells_the_history_of_the_block_around_too";
        let said = dies_in(test, || {
            let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
            let first = [(); 64].map(|()| page(&zone));
            // SAFETY: they are out.
            unsafe { zone.free_bulk(&first, Order::ZERO) };
            zone.drain_all();
            let order = Order::new(6).unwrap();
            let block = zone.alloc(PageReq::new(order)).unwrap();
            // SAFETY: inside the block.
            let inside = unsafe { block.add(3 * PAGE_SIZE) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(inside, Order::ZERO) };
        });
        let Some(said) = said else { return };
        assert!(
            said.contains("inside the block at page 0, allocated (order 6)"),
            "{said}"
        );
        assert!(line(&said, "page 3 allocated last:").contains("(order 0, event 4)"));
        assert!(line(&said, "page 3 freed last:").contains("(order 0, event 68)"));
        assert!(line(&said, "page 0 allocated last:").contains("(order 6, event 129)"));
        assert!(line(&said, "page 0 freed last:").contains("(order 0, event 65)"));
    }

    #[test]
    fn p19_a_page_that_never_was_a_block_has_no_history() {
        let test = "history::p19_a_page_that_never_was_a_block_has_no_history";
        let said = dies_in(test, || {
            let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
            let block = zone.alloc(PageReq::new(Order::MAX)).unwrap();
            // SAFETY: inside the block.
            let inside = unsafe { block.add(PAGE_SIZE) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(inside, Order::ZERO) };
        });
        let Some(said) = said else { return };
        assert!(
            line(&said, "page 1 allocated last:").contains("never"),
            "{said}"
        );
        assert!(
            line(&said, "page 0 allocated last:").contains("distrust.rs:"),
            "{said}"
        );
    }
}

// Under AddressSanitizer these pages are hidden: what is done here on purpose is reported before the pattern is looked at.
#[cfg(all(feature = "poison", not(address_sanitizer)))]
mod poison {
    use super::*;

    /// The pages of a block, read although it is free, which the zone's memory allows and the contract does not.
    fn peek(block: NonNull<u8>, order: Order) -> Vec<u8> {
        // SAFETY: the zone's memory stays readable, and nobody else runs.
        unsafe { core::slice::from_raw_parts(block.as_ptr(), order.bytes()) }.to_vec()
    }

    #[test]
    fn p19_freed_memory_is_the_pattern_and_zeroed_memory_is_zero() {
        let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
        for order in [0, 3, 5, 9, 10].map(|o| Order::new(o).unwrap()) {
            let block = zone.alloc(PageReq::new(order)).unwrap();
            // SAFETY: the block is ours.
            unsafe { block.write_bytes(1, order.bytes()) };
            // SAFETY: the block is out.
            unsafe { zone.free(block, order) };
            assert!(peek(block, order).iter().all(|&byte| byte == 0xaa));
            zone.drain_all();
            let block = zone.alloc(PageReq::new(order).zeroed()).unwrap();
            assert!(peek(block, order).iter().all(|&byte| byte == 0));
            // SAFETY: the block is out.
            unsafe { zone.free(block, order) };
        }
    }

    #[test]
    fn p19_memory_given_back_to_the_system_is_not_taken_for_damaged() {
        let zone = Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
        for round in 0..3 {
            let block = zone.alloc(PageReq::new(Order::MAX)).unwrap();
            if round > 0 {
                assert!(peek(block, Order::MAX).iter().all(|&byte| byte == 0));
            }
            // SAFETY: the block is out.
            unsafe { zone.free(block, Order::MAX) };
            // Poisoned pages and those that read as zeroes merge, and part again.
            let page = page(&zone);
            // SAFETY: the page is out.
            unsafe { zone.free(page, Order::ZERO) };
            zone.drain_all();
            assert_eq!(zone.trim(), Order::MAX.pages());
        }
    }

    fn writes(test: &str, words: &str, order: u8, offset: usize, merged: bool) {
        dies(test, words, |zone| {
            let order = Order::new(order).unwrap();
            let block = zone.alloc(PageReq::new(order)).unwrap();
            // SAFETY: the block is out.
            unsafe { zone.free(block, order) };
            if merged {
                zone.drain_all();
            }
            // SAFETY: inside the block.
            let place = unsafe { block.add(offset) };
            // SAFETY: broken on purpose: the block is free.
            unsafe { place.write_bytes(7, 3) };
            while zone.alloc(PageReq::new(Order::ZERO)).is_ok() {}
            let _ = zone.alloc(PageReq::new(order));
        });
    }

    #[test]
    fn p19_a_write_after_free_is_found_with_its_offset() {
        writes(
            "poison::p19_a_write_after_free_is_found_with_its_offset",
            "was written to after it was freed: 3 bytes, the first at offset 100 (0x07)",
            0,
            100,
            false,
        );
    }

    #[test]
    fn p19_a_write_after_free_is_found_in_the_midst_of_a_merged_block() {
        writes(
            "poison::p19_a_write_after_free_is_found_in_the_midst_of_a_merged_block",
            "page 5 (",
            3,
            5 * PAGE_SIZE + 4093,
            true,
        );
    }
}

#[cfg(feature = "guard")]
mod guard {
    use super::*;
    use core::mem::MaybeUninit;
    use pagealloc::{
        Failing, Fixed, Guards, PageBlock, SourceError, ZoneError, page_alloc_conformance,
    };

    fn order(log2_pages: u8) -> Order {
        Order::new(log2_pages).unwrap()
    }

    fn guarded(guards: Guards) -> UserZone {
        Zone::with_guards(Threads, Mmap::reserve(256 << 20).unwrap(), guards).unwrap()
    }

    page_alloc_conformance!(after, guarded(Guards::after(Order::ZERO)), threads);
    page_alloc_conformance!(around, guarded(Guards::around(Order::new(2).unwrap())));

    #[test]
    fn p19_a_source_that_cannot_protect_is_refused() {
        let memory = || Fixed::new(vec![MaybeUninit::uninit(); 1 << 20].leak()).unwrap();
        let refused =
            |error: ZoneError| assert_eq!(error, ZoneError::Source(SourceError::Unsupported));
        let guards = Guards::after(Order::ZERO);
        let source = memory();
        refused(Zone::with_guards(Threads, source, guards).unwrap_err());
        let source = Failing::at(memory(), 9);
        refused(Zone::with_guards(Threads, source, guards).unwrap_err());
        let source = Failing::at(Mmap::reserve(1).unwrap(), 9);
        assert!(Zone::with_guards(Threads, source, guards).is_ok());
    }

    /// Writes just past, or just before, a block of a guarded zone.
    fn touches(test: &str, guards: Guards, log2_pages: u8, offset: isize) {
        let said = dies_in(test, || {
            let zone = guarded(guards);
            let _before = page(&zone);
            let block = zone.alloc(PageReq::new(order(log2_pages))).unwrap();
            let _after = page(&zone);
            // SAFETY: what it points to is the zone's, so part of the same allocation.
            let place = unsafe { block.offset(offset) };
            eprintln!("about to write");
            // SAFETY: broken on purpose: this is a guard.
            unsafe { place.write(1) };
        });
        if let Some(said) = said {
            assert!(said.contains("about to write"), "{said}");
        }
    }

    #[test]
    fn p19_a_write_past_a_guarded_block_is_caught() {
        touches(
            "guard::p19_a_write_past_a_guarded_block_is_caught",
            Guards::after(Order::ZERO),
            0,
            PAGE_SIZE as isize,
        );
    }

    #[test]
    fn p19_a_write_far_past_a_guarded_block_is_caught() {
        touches(
            "guard::p19_a_write_far_past_a_guarded_block_is_caught",
            Guards::around(order(2)),
            3,
            24 * PAGE_SIZE as isize - 1,
        );
    }

    #[test]
    fn p19_a_write_before_a_guarded_block_is_caught() {
        touches(
            "guard::p19_a_write_before_a_guarded_block_is_caught",
            Guards::around(order(2)),
            3,
            -1,
        );
    }

    #[test]
    fn p19_guards_come_back_with_their_block() {
        for guards in [Guards::after(order(1)), Guards::around(order(1))] {
            let zone = guarded(guards);
            for o in (0..=10).chain((0..=10).rev()) {
                let mut blocks = Vec::new();
                for i in 0..4_u8 {
                    let mut block = PageBlock::zeroed(&zone, PageReq::new(order(o))).unwrap();
                    assert_eq!(zone.order_of(block.as_ptr()), Some(order(o)));
                    assert!(block.iter().all(|&byte| byte == 0));
                    block.fill(i + 1);
                    blocks.push(block);
                }
                for (i, block) in blocks.iter().enumerate() {
                    assert!(block.iter().all(|&byte| byte == i as u8 + 1));
                }
            }
            assert_eq!(zone.nr_allocated(), 0);
            // All of it is one piece, and usable to the last byte.
            zone.drain_all();
            for _ in 0..zone.stats().free_blocks[10] {
                let block = zone.alloc(PageReq::new(Order::MAX)).unwrap();
                // SAFETY: the block is ours.
                unsafe { block.write_bytes(9, Order::MAX.bytes()) };
            }
            assert_eq!(zone.free_pages(), 0);
        }
    }

    #[test]
    fn p19_guards_are_drawn_and_cannot_be_freed() {
        let test = "guard::p19_guards_are_drawn_and_cannot_be_freed";
        let said = dies_in(test, || {
            let zone = guarded(Guards::after(Order::ZERO));
            let page = page(&zone);
            let mut svg = String::new();
            zone.heatmap(&mut svg).unwrap();
            assert!(svg.contains("1 out, ") || svg.contains("1 guards"));
            // SAFETY: inside the block around.
            let guard = unsafe { page.add(PAGE_SIZE) };
            // SAFETY: broken on purpose.
            unsafe { zone.free(guard, Order::ZERO) };
        });
        if let Some(said) = said {
            assert!(said.contains("it is a guard page (order 0)"), "{said}");
        }
    }
}

}
