//! Blocks that own themselves (row P17): out while the value lives, back when it ends.

#![cfg(not(loom))]

mod buffer;

use buffer::{fixed, unwritten, written};
use pagealloc::{
    AllocError, Attempt, Filled, Fixed, Order, PAGE_SIZE, PageAlloc, PageBlock, PageReq, Unfilled,
    Zone,
};
use rcu_core::cpu::OneCpu;

fn order(log2_pages: u8) -> Order {
    Order::new(log2_pages).unwrap()
}

/// Runs `test` with a zone over memory full of other bytes than zero.
fn with_zone(test: impl FnOnce(&Zone<OneCpu, Fixed<'_>>)) {
    let mut memory = written(8 << 20);
    // SAFETY: each test uses its zone in its own thread only.
    let cpu = unsafe { OneCpu::new() };
    let zone = Zone::new(cpu, fixed(&mut memory)).unwrap();
    test(&zone);
    assert_eq!(zone.nr_allocated(), 0, "every block came back");
}

#[test]
fn p17_a_block_is_out_while_its_value_lives() {
    with_zone(|zone| {
        for o in 0..=9 {
            let mut block = PageBlock::zeroed(zone, PageReq::new(order(o))).unwrap();
            assert_eq!(zone.nr_allocated(), 1 << o);
            assert_eq!(zone.order_of(block.as_ptr()), Some(block.order()));
            assert_eq!(block.len(), PAGE_SIZE << o);
            assert!(block.iter().all(|&byte| byte == 0));
            block.fill(o);
            assert!(block.iter().all(|&byte| byte == o));
            drop(block);
            assert_eq!(zone.nr_allocated(), 0);
        }
    });
}

#[test]
fn p17_bytes_become_readable_when_they_are_written() {
    with_zone(|zone| {
        let block = PageBlock::new(zone, PageReq::new(order(1))).unwrap();
        let zero = block.zero();
        assert!(zero.iter().all(|&byte| byte == 0));
        drop(zero);
        let mut block = PageBlock::new(zone, PageReq::new(order(1))).unwrap();
        for (i, byte) in block.as_uninit().iter_mut().enumerate() {
            byte.write(i as u8);
        }
        // SAFETY: every byte was just written.
        let block = unsafe { block.assume_filled() };
        assert!(block.iter().enumerate().all(|(i, &byte)| byte == i as u8));
    });
}

#[test]
fn p17_a_frozen_block_stays_out_until_somebody_owns_it() {
    with_zone(|zone| {
        let mut block = PageBlock::zeroed(zone, PageReq::new(order(2))).unwrap();
        block[PAGE_SIZE] = 7;
        let raw = block.into_raw();
        assert_eq!(zone.nr_allocated(), 4);
        // SAFETY: the block came from this zone with this order, is filled, and has no other user.
        let block = unsafe { PageBlock::<_, Filled>::from_raw(zone, raw, order(2)) };
        assert_eq!((block[PAGE_SIZE - 1], block[PAGE_SIZE]), (0, 7));
        drop(block);
        // And what the allocator hands out frozen can become owned.
        let raw = zone.alloc(PageReq::new(Order::ZERO)).unwrap();
        // SAFETY: as above, and nothing is claimed of its bytes.
        let block = unsafe { PageBlock::<_, Unfilled>::from_raw(zone, raw, Order::ZERO) };
        assert!(core::ptr::eq(block.allocator(), zone));
    });
}

#[test]
fn p17_an_error_owns_nothing() {
    with_zone(|zone| {
        let refused = PageBlock::zeroed(zone, PageReq::new(Order::MAX).attempt(Attempt::PcpOnly));
        assert_eq!(refused.unwrap_err(), AllocError::Empty);
    });
}

#[test]
fn p17_a_block_may_be_freed_where_nobody_may_wait() {
    with_zone(|zone| {
        let blocks: Vec<_> = (0..200)
            .map(|_| PageBlock::new(zone, PageReq::new(Order::ZERO)).unwrap())
            .collect();
        let held = zone.hold_zone_lock();
        for block in blocks {
            block.free_at(Attempt::PcpOnly);
        }
        drop(held);
        assert!(zone.stats().stashed_blocks > 0);
        zone.drain_all();
    });
}

#[test]
fn p17_a_leaked_block_lives_as_long_as_its_zone_is_borrowed() {
    let mut memory = unwritten(1 << 20);
    // SAFETY: this test uses its zone in its own thread only.
    let cpu = unsafe { OneCpu::new() };
    let zone = Zone::new(cpu, fixed(&mut memory)).unwrap();
    let bytes = PageBlock::zeroed(&zone, PageReq::new(Order::ZERO))
        .unwrap()
        .leak();
    bytes[17] = 1;
    assert_eq!(bytes.len(), PAGE_SIZE);
    assert_eq!(zone.nr_allocated(), 1);
}

#[test]
fn p17_a_block_of_a_trait_object_comes_back_while_unwinding() {
    with_zone(|zone| {
        let pages: &dyn PageAlloc = zone;
        let panicked = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| {
            let _block = PageBlock::zeroed(pages, PageReq::new(order(3))).unwrap();
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
    });
}

#[cfg(all(feature = "std", target_os = "linux"))]
#[test]
fn p17_a_block_may_end_in_another_thread() {
    use pagealloc::Mmap;
    use rcu_core::cpu::Threads;

    let zone = &Zone::new(Threads, Mmap::reserve(64 << 20).unwrap()).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for i in 0..500_u32 {
                let order = order((i % 4) as u8);
                let mut block = PageBlock::zeroed(zone, PageReq::new(order)).unwrap();
                block[..4].copy_from_slice(&i.to_ne_bytes());
                sender.send(block).unwrap();
            }
        });
        scope.spawn(move || {
            for (i, block) in receiver.iter().enumerate() {
                assert_eq!(block[..4], (i as u32).to_ne_bytes());
                assert!(block[4..].iter().all(|&byte| byte == 0));
            }
        });
    });
    assert_eq!(zone.nr_allocated(), 0);
}
