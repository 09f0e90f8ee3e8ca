//! Broken contracts end the program with a message. Each test runs itself again in a child.

#![cfg(all(feature = "std", target_os = "linux"))]

use pagealloc::{Mmap, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag, Zone};
use rcu_core::cpu::Threads;
use std::process::Command;
use std::ptr::NonNull;

type UserZone = Zone<Threads, Mmap>;

/// Runs `crime` in a child process, which must abort and say `words`.
fn dies(test: &str, words: &str, crime: impl FnOnce(UserZone)) {
    const CHILD: &str = "PAGEALLOC_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        crime(Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap());
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success(), "lived on");
    assert!(
        said.contains("broken contract") && said.contains(words),
        "{said}"
    );
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
