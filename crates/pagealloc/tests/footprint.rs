//! What zones cost and give back, measured by the program's resident memory. One test at a time: the measure is the whole program's.

#![cfg(all(feature = "std", target_os = "linux", not(loom)))]

#[macro_use]
mod each;

use pagealloc::{Attempt, Decommit, Mmap, Order, PAGE_SIZE, PageAlloc, PageReq, Zone};
use rcu_core::cpu::Threads;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

const MIB: usize = 1 << 20;
/// What is used and given back: far more than anything else that happens here.
const USED: usize = 96 * MIB;
/// What may come and go on the side: stacks, the test harness, metadata.
///
/// The address sanitizer keeps a byte for every eight of memory that is in use.
const NOISE: usize = if cfg!(address_sanitizer) { 32 } else { 16 } * MIB;

/// Resident bytes of this program; `None` where the system does not tell.
fn resident() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * page_bytes()?)
}

/// The system's own page size, from the only place that says it without a call.
fn page_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("KernelPageSize:"))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

over_each_lower! {

type UserZone = Zone<Threads, Mmap>;

fn zone(policy: Decommit) -> UserZone {
    let source = Mmap::builder().reserve(256 * MIB).decommit(policy).build();
    Zone::new(Threads, source.unwrap()).unwrap()
}

/// `USED` bytes in the largest blocks, written to.
fn used(zone: &UserZone) -> Vec<NonNull<u8>> {
    let take = |_| {
        let block = zone.alloc(PageReq::new(Order::MAX)).unwrap();
        touch(block, Order::MAX.bytes());
        block
    };
    (0..USED / Order::MAX.bytes()).map(take).collect()
}

fn touch(block: NonNull<u8>, bytes: usize) {
    for at in (0..bytes).step_by(PAGE_SIZE) {
        // SAFETY: inside the block.
        let byte = unsafe { block.add(at) };
        // SAFETY: callers own the block.
        unsafe { byte.write(1) };
    }
}

fn free(zone: &UserZone, blocks: Vec<NonNull<u8>>, attempt: Attempt) {
    for block in blocks {
        // SAFETY: it came from `used`.
        unsafe { zone.free_at(block, Order::MAX, attempt) };
    }
}

/// The next large allocations read as zeroes, whatever was there.
fn reads_as_zeroes(zone: &UserZone) {
    let block = zone.alloc(PageReq::new(Order::MAX).zeroed()).unwrap();
    // SAFETY: zeroed, and ours.
    let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), Order::MAX.bytes()) };
    assert!(bytes.iter().step_by(509).all(|&byte| byte == 0));
    free(zone, vec![block], Attempt::NoWait);
}

macro_rules! resident_or_return {
    () => {
        match resident() {
            Some(bytes) => bytes,
            None => return,
        }
    };
}

#[test]
fn kept_memory_stays_until_it_is_trimmed() {
    let _alone = alone();
    let zone = zone(Decommit::Keep);
    let blocks = used(&zone);
    let before = resident_or_return!();
    free(&zone, blocks, Attempt::NoWait);
    assert_eq!((zone.tick().trimmed, zone.tick().trimmed), (0, 0));
    assert!(resident_or_return!() > before - NOISE);
    // Half first.
    assert_eq!(zone.trim_to(USED / PAGE_SIZE / 2), USED / PAGE_SIZE / 2);
    assert!(resident_or_return!() < before - USED / 2 + NOISE);
    assert!(resident_or_return!() > before - USED / 2 - NOISE);
    assert_eq!(zone.trim(), USED / PAGE_SIZE / 2);
    assert!(resident_or_return!() < before - USED + NOISE);
    assert_eq!(zone.trim(), 0);
    reads_as_zeroes(&zone);
}

#[test]
fn lazily_given_memory_goes_after_a_tick_without_use() {
    let _alone = alone();
    let zone = zone(Decommit::Lazy);
    let blocks = used(&zone);
    let before = resident_or_return!();
    free(&zone, blocks, Attempt::NoWait);
    assert_eq!(zone.tick().trimmed, 0, "needed a moment ago");
    assert!(resident_or_return!() > before - NOISE);
    // Half of it is needed between the ticks, and is used again rather than fresh memory.
    let half: Vec<_> = used(&zone).split_off(USED / Order::MAX.bytes() / 2);
    assert!(resident_or_return!() < before + NOISE);
    free(&zone, half, Attempt::NoWait);
    assert_eq!(zone.tick().trimmed, 0, "all of it was");
    let half = USED / PAGE_SIZE / 2;
    assert_eq!(zone.tick().trimmed, half);
    assert!(resident_or_return!() < before - USED / 2 + NOISE);
    assert_eq!(zone.tick().trimmed, 0);
    reads_as_zeroes(&zone);
}

#[test]
fn memory_that_is_given_at_once_goes_with_the_free() {
    let _alone = alone();
    let zone = zone(Decommit::Now);
    let blocks = used(&zone);
    let before = resident_or_return!();
    free(&zone, blocks, Attempt::NoWait);
    assert!(resident_or_return!() < before - USED + NOISE);
    assert_eq!(zone.trim(), 0, "nothing is left to do");
    reads_as_zeroes(&zone);
    // Frees that may wait for nobody make no system calls: the tick does.
    let blocks = used(&zone);
    free(&zone, blocks, Attempt::TryLock);
    assert!(resident_or_return!() > before - NOISE);
    assert_eq!(zone.tick().trimmed, USED / PAGE_SIZE);
    assert!(resident_or_return!() < before - USED + NOISE);
    // Page by page: what merges to 2 MiB goes, too.
    let order = Order::ZERO;
    let pages: Vec<_> = (0..USED / PAGE_SIZE)
        .map(|_| zone.alloc(PageReq::new(order)).unwrap())
        .collect();
    pages.iter().for_each(|page| touch(*page, PAGE_SIZE));
    assert!(resident_or_return!() > before - NOISE);
    // SAFETY: each came with this order.
    unsafe { zone.free_bulk(&pages, order) };
    zone.drain_all();
    assert!(resident_or_return!() < before - USED + NOISE);
}

#[test]
fn huge_pages_and_populating_change_no_contents() {
    let _alone = alone();
    let builder = Mmap::builder().reserve(256 * MIB).huge_pages(true);
    let zone = Zone::new(Threads, builder.build().unwrap()).unwrap();
    let blocks = used(&zone);
    let before = resident_or_return!();
    free(&zone, blocks, Attempt::NoWait);
    assert_eq!(zone.trim(), USED / PAGE_SIZE);
    assert!(resident_or_return!() < before - USED + NOISE);
    reads_as_zeroes(&zone);
    drop(zone);
    // Populated memory is there before its first use.
    let builder = Mmap::builder().reserve(256 * MIB).populate(true);
    let zone = Zone::new(Threads, builder.build().unwrap()).unwrap();
    let before = resident_or_return!();
    let take = |_| zone.alloc(PageReq::new(Order::MAX).zeroed()).unwrap();
    let blocks: Vec<_> = (0..USED / Order::MAX.bytes()).map(take).collect();
    assert!(resident_or_return!() > before + USED - NOISE);
    free(&zone, blocks, Attempt::NoWait);
}

/// Metadata for a tebibyte is 4 GiB of addresses, and costs what the pages in use cost.
#[test]
fn a_tebibyte_of_addresses_costs_what_is_used() {
    let _alone = alone();
    let before = resident_or_return!();
    let Ok(source) = Mmap::reserve(1 << 40) else {
        eprintln!("skipped: this system does not allow to reserve a tebibyte");
        return;
    };
    let Ok(zone) = Zone::new(Threads, source) else {
        eprintln!("skipped: this system does not allow to reserve the metadata of a tebibyte");
        return;
    };
    assert_eq!(zone.span().pages, 1 << 28);
    assert!(
        resident_or_return!() < before + 8 * MIB,
        "nothing is used yet"
    );
    let blocks = used(&zone);
    let now = resident_or_return!();
    assert!(now > before + USED - NOISE && now < before + USED + NOISE);
    free(&zone, blocks, Attempt::NoWait);
    zone.trim();
    assert!(resident_or_return!() < before + NOISE);
    assert_eq!(zone.nr_allocated(), 0);
}

}
