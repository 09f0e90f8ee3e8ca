//! The default stack at its limit: who makes boxes waits, and is told of.

#![cfg(all(feature = "std", not(loom)))]

use kvfree::{Builder, Config, RcuBox, read_lock};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const LIMIT: usize = 1 << 20;
/// What each slot has not counted yet.
const SLACK: usize = 4 * (64 << 10);
const WRITERS: usize = 2;
const BOXES: usize = 3000;

static DROPPED: AtomicUsize = AtomicUsize::new(0);
static TOLD: AtomicUsize = AtomicUsize::new(0);

struct Heavy([u8; 4000]);

impl Drop for Heavy {
    fn drop(&mut self) {
        assert_eq!(self.0[17], 17);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// With a reader stalled, memory stops growing at the limit; once it is gone, everything goes on.
#[test]
fn boxes_wait_at_the_limit() {
    let config = (Config::new().hard_limit(LIMIT)).tells(|over| {
        assert_eq!(over.limit_bytes, LIMIT);
        TOLD.fetch_add(1, Ordering::Relaxed);
    });
    Builder::new().config(config).install().unwrap();
    let (inside, is_inside) = mpsc::channel();
    let (leave, may_leave) = mpsc::channel::<()>();
    let reader = thread::spawn(move || {
        let guard = read_lock();
        inside.send(()).unwrap();
        may_leave.recv().unwrap();
        drop(guard);
    });
    is_inside.recv().unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| thread::spawn(|| (0..BOXES).for_each(|_| drop(RcuBox::new(Heavy([17; 4000]))))))
        .collect();
    while TOLD.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..100 {
        let front = kvfree::stats().front.unwrap();
        assert!(front.bytes_waiting <= LIMIT + SLACK, "{front}");
        // Each writer had a box in its hands at most when the other one reached the limit.
        assert!(front.overdrawn <= WRITERS, "{front}");
        thread::yield_now();
    }
    assert_eq!(
        DROPPED.load(Ordering::Relaxed),
        0,
        "the reader may see them"
    );
    // Inside a section nobody can wait.
    let guard = read_lock();
    (0..=WRITERS).for_each(|_| drop(RcuBox::new(Heavy([17; 4000]))));
    drop(guard);
    assert!(kvfree::stats().front.unwrap().overdrawn > WRITERS);
    leave.send(()).unwrap();
    reader.join().unwrap();
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    kvfree::barrier();
    assert_eq!(
        DROPPED.load(Ordering::Relaxed),
        WRITERS * BOXES + WRITERS + 1
    );
}
