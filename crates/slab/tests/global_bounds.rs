//! What a program's allocator gives back: one test, so that nothing else allocates meanwhile.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

use slab::GlobalKmalloc;
use std::sync::mpsc;
use std::thread;

#[global_allocator]
static HEAP: GlobalKmalloc = GlobalKmalloc::new();

/// A storm of threads that free what others allocated, and end.
fn storm(rounds: usize) {
    for _ in 0..rounds {
        let (send, receive) = mpsc::sync_channel::<Vec<Box<[u8]>>>(4);
        let makers: Vec<_> = (0..3_usize)
            .map(|maker| {
                let send = send.clone();
                thread::spawn(move || {
                    for i in 0..20_usize {
                        let size = |j: usize| 1 + (maker * 7919 + i * 104_729 + j * 31) % 12_000;
                        let batch = (0..100)
                            .map(|j| vec![maker as u8; size(j)].into())
                            .collect();
                        send.send(batch).unwrap();
                    }
                })
            })
            .collect();
        drop(send);
        let taker = thread::spawn(move || receive.iter().map(|batch| batch.len()).sum::<usize>());
        makers.into_iter().for_each(|m| m.join().unwrap());
        assert_eq!(taker.join().unwrap(), 3 * 20 * 100);
    }
}

fn pages_out() -> usize {
    HEAP.shrink();
    HEAP.zone().unwrap().nr_allocated()
}

fn large_out() -> (usize, usize) {
    let stats = HEAP.stats().unwrap();
    (stats.large_bytes, stats.huge_bytes)
}

#[test]
fn everything_freed_comes_back_to_the_pages() {
    storm(1);
    // The harness has some, too.
    let (before, large_before) = (pages_out(), large_out());
    for _ in 0..3 {
        storm(3);
        let large: Vec<Vec<u8>> = (1..40).map(|i| vec![1; i * 300_000]).collect();
        let during = HEAP.zone().unwrap().nr_allocated();
        assert!(during > before + 4000, "{during} pages, {before} before");
        drop(large);
        let after = pages_out();
        // Descriptors and sheaves keep pages of their own, as many as were ever needed at a time.
        assert!(after < before + 64, "{after} pages, {before} before");
        assert_eq!(large_out(), large_before, "{}", HEAP.stats().unwrap());
    }
}
