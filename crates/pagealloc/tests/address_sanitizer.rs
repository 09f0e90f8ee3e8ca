//! In a build with AddressSanitizer (`cargo xtask asan`), a use after free of pages is reported: each is done in a child process,
//! which has to say so.

#![cfg(all(address_sanitizer, feature = "std", target_os = "linux", not(loom)))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;

use aborts::aborts;
use pagealloc::{Fixed, Mmap, Order, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

type UserZone = Zone<Threads, Mmap>;

/// Runs `deed` in a child of its own, which must end with a report.
fn is_reported(test: &str, deed: impl FnOnce(&UserZone)) {
    let deed = || deed(&Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap());
    aborts(test, deed, &["ERROR: AddressSanitizer: use-after-poison"]);
}

fn touch(page: NonNull<u8>) {
    // SAFETY: the page is there; whether it is the test's is the question.
    unsafe { page.cast::<u64>().write_volatile(1) };
}

fn alloc(zone: &UserZone, order: usize) -> (NonNull<u8>, Order) {
    let order = Order::new(order as u8).unwrap();
    let block = zone.alloc(PageReq::new(order)).unwrap();
    touch(block);
    (block, order)
}

#[test]
fn a_freed_page_is_hidden() {
    is_reported("a_freed_page_is_hidden", |zone| {
        let (page, order) = alloc(zone, 0);
        // SAFETY: allocated just now.
        unsafe { zone.free(page, order) };
        touch(page);
    });
}

#[test]
fn the_middle_of_a_freed_block_is_hidden() {
    is_reported("the_middle_of_a_freed_block_is_hidden", |zone| {
        let (block, order) = alloc(zone, 6);
        // SAFETY: inside of the block.
        let middle = unsafe { block.add(order.bytes() / 2) };
        touch(middle);
        // SAFETY: allocated just now.
        unsafe { zone.free_bulk(&[block], order) };
        touch(middle);
    });
}

#[test]
fn pages_that_were_never_out_are_hidden() {
    is_reported("pages_that_were_never_out_are_hidden", |zone| {
        let (block, order) = alloc(zone, 3);
        // SAFETY: inside of the zone's span: the zone has just begun to use a chunk that is larger.
        touch(unsafe { block.add(order.bytes()) });
    });
}

#[test]
fn a_freed_run_is_hidden() {
    is_reported("a_freed_run_is_hidden", |zone| {
        let run = zone
            .alloc_exact(13, PageReq::new(Order::ZERO).zeroed())
            .unwrap();
        // SAFETY: inside of the run.
        let last = unsafe { run.add(12 << 12) };
        touch(last);
        // SAFETY: allocated just now.
        unsafe { zone.free_exact(run, 13) };
        touch(last);
    });
}

/// Whoever lent the memory gets it back as it was.
#[test]
fn a_zones_memory_is_visible_again_when_it_has_gone() {
    let mut memory = vec![MaybeUninit::<u8>::uninit(); 8 << 20];
    // SAFETY: the zone is dropped below, before the memory is.
    let source = unsafe { Fixed::borrowed(&mut memory) }.unwrap();
    let zone = Zone::new(Threads, source).unwrap();
    let page = zone.alloc(PageReq::new(Order::ZERO)).unwrap();
    // SAFETY: allocated just now.
    unsafe { zone.free(page, Order::ZERO) };
    drop(zone);
    memory.fill(MaybeUninit::new(1));
}
