//! Threads that come and go on one cache; at the end nothing is out.

#![cfg(not(loom))]

mod common;

use common::{Canary, Pages};
use pagealloc::{Attempt, Mmap, Zone};
use rcu_core::GracePeriod;
use rcu_core::cpu::Threads;
use rcu_core::manual::ManualGp;
use slab::{CacheConfig, Kmalloc, RawCache};
use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

mod cfg {
    //! Sizes, in one place.
    pub(crate) const ROUNDS: usize = 6;
    pub(crate) const THREADS: usize = 4;
    pub(crate) const OPS: usize = if cfg!(thread_sanitizer) {
        5_000
    } else {
        40_000
    };
}

/// A small generator: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Objects on their way to another thread.
struct Mail(Mutex<Vec<NonNull<u8>>>);

// SAFETY: the objects belong to whoever takes them out.
unsafe impl Sync for Mail {}

/// Counts a thread out, also when it panics.
struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Raw<'a> = RawCache<Threads, &'a Pages, &'a ManualGp>;

fn work(cache: &Raw<'_>, gp: &ManualGp, mail: &Mail, seed: usize) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed as u64);
    let mut own: Vec<NonNull<u8>> = Vec::new();
    let give_up = |object: NonNull<u8>| {
        Canary::free(object);
        // SAFETY: the thread had the object.
        unsafe { cache.free(object) };
    };
    for _ in 0..cfg::OPS {
        match random.below(16) {
            0..=7 => {
                let attempt = [Attempt::TryLock, Attempt::MayGrow][random.below(2)];
                if let Ok(object) = cache.alloc_attempt(attempt) {
                    Canary::hand_out(object, |cookie| gp.poll(cookie));
                    own.push(object);
                } else {
                    assert_eq!(attempt, Attempt::TryLock, "there is memory");
                }
            }
            8..=9 => {
                if let Some(object) = own.pop() {
                    give_up(object);
                }
            }
            10..=13 => {
                if !own.is_empty() {
                    let object = own.swap_remove(random.below(own.len()));
                    Canary::retire(object, gp.snapshot());
                    // SAFETY: the thread had the object.
                    if let Err(object) = unsafe { cache.retire(object) } {
                        Canary::refuse(object);
                        own.push(object);
                    }
                }
            }
            14 => {
                if let Some(object) = own.pop() {
                    mail.0.lock().unwrap().push(object);
                }
            }
            _ => {
                let taken = mail.0.lock().unwrap().pop();
                if let Some(object) = taken {
                    give_up(object);
                }
            }
        }
        if own.len() > 3000 {
            own.drain(..).for_each(give_up);
        }
    }
    own.drain(..).for_each(give_up);
}

#[test]
fn threads_come_and_go_and_every_page_comes_back() {
    let pages = Pages::new();
    let gp = ManualGp::auto();
    let layout = Layout::from_size_align(64, 64).unwrap();
    let config = CacheConfig::new("stress", layout)
        .sheaf_capacity(29)
        .ask_after(200);
    // SAFETY: the cache is destroyed below, before what it borrows ends; a panic drops it.
    let cache = unsafe { RawCache::new_scoped(config, Threads, &pages, &gp) }.unwrap();
    let mail = Mail(Mutex::new(Vec::new()));
    let running = AtomicUsize::new(cfg::THREADS);
    std::thread::scope(|s| {
        for thread in 0..cfg::THREADS {
            let (cache, gp, mail, running) = (&cache, &gp, &mail, &running);
            s.spawn(move || {
                let _leaving = Leaving(running);
                // Threads of threads: each round is a slot that comes and goes.
                for round in 0..cfg::ROUNDS {
                    std::thread::scope(|s| {
                        s.spawn(move || work(cache, gp, mail, thread * cfg::ROUNDS + round));
                    });
                }
            });
        }
        let mut random = Random(77);
        while running.load(Ordering::Relaxed) > 0 {
            match random.below(4) {
                0 => cache.barrier(),
                1 => {
                    cache.shrink(usize::MAX);
                }
                2 => {
                    cache.reap();
                }
                _ => {
                    let _ = cache.stats();
                }
            }
            gp.advance();
            std::thread::yield_now();
        }
    });
    for object in mail.0.into_inner().unwrap() {
        Canary::free(object);
        // SAFETY: nobody else has the objects in the mail.
        unsafe { cache.free(object) };
    }
    cache.barrier();
    let stats = cache.stats();
    assert_eq!((stats.live, stats.waiting), (0, 0), "{stats}");
    // Checked caches recycle no sheaves.
    let is_checked = cfg!(feature = "checks");
    assert!(is_checked || stats.sheaves_recycled > 0, "{stats}");
    cache.destroy().expect("nothing is out");
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn one_thread_allocates_and_another_retires() {
    let pages = Pages::new();
    let gp = ManualGp::auto();
    let layout = Layout::from_size_align(64, 64).unwrap();
    let config = CacheConfig::new("pipe", layout)
        .sheaf_capacity(29)
        .ask_after(100);
    // SAFETY: the cache is dropped below, before what it borrows ends.
    let cache = unsafe { RawCache::new_scoped(config, Threads, &pages, &gp) }.unwrap();
    let (send, receive) = std::sync::mpsc::sync_channel(64);
    struct Parcel(NonNull<u8>);
    // SAFETY: the object is handed on.
    unsafe impl Send for Parcel {}
    std::thread::scope(|s| {
        let (cache, gp) = (&cache, &gp);
        s.spawn(move || {
            for _ in 0..cfg::OPS {
                let object = cache.alloc().unwrap();
                Canary::hand_out(object, |cookie| gp.poll(cookie));
                send.send(Parcel(object)).unwrap();
            }
        });
        s.spawn(move || {
            for Parcel(object) in receive {
                Canary::retire(object, gp.snapshot());
                let mut object = Ok(object);
                while let Ok(again) = object {
                    // SAFETY: the object came with the parcel.
                    object = match unsafe { cache.retire(again) } {
                        Ok(()) => Err(()),
                        Err(back) => Ok(back),
                    };
                }
            }
        });
    });
    let stats = cache.stats();
    // The line of the thread that only retires is let go again and again.
    assert!(
        stats.slabs * stats.objects_per_slab < cfg::OPS / 4,
        "{stats}"
    );
    drop(cache);
    assert_eq!(pages.outstanding(), 0);
}

#[test]
fn kmalloc_is_shared_by_threads() {
    let pages = Zone::new(Threads, Mmap::new().unwrap()).unwrap();
    // SAFETY: the allocator is destroyed below, before what it borrows ends.
    let km = unsafe { Kmalloc::new_scoped(Threads, &pages, rcu_core::NoReaders) }.unwrap();
    std::thread::scope(|s| {
        for seed in 1..=cfg::THREADS {
            let km = &km;
            s.spawn(move || {
                let mut random = Random(seed as u64);
                let mut own: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
                for i in 0..cfg::OPS / 8 {
                    let size = 1 + random.below(if i % 64 == 0 { 20_000 } else { 1024 });
                    let layout = Layout::from_size_align(size, 1 << random.below(5)).unwrap();
                    let memory = km.kmalloc(layout).unwrap();
                    let fill = i as u8;
                    // SAFETY: the memory is this thread's, this long.
                    unsafe { memory.write_bytes(fill, size) };
                    own.push((memory, size, fill));
                    if own.len() > 200 {
                        let (memory, size, fill) = own.swap_remove(random.below(own.len()));
                        // SAFETY: the memory is this thread's, this long.
                        let bytes = unsafe { std::slice::from_raw_parts(memory.as_ptr(), size) };
                        assert!(bytes.iter().all(|&b| b == fill), "overlap");
                        // SAFETY: the memory is this thread's.
                        unsafe { km.kfree(memory) };
                    }
                }
                let mut rest: Vec<_> = own.into_iter().map(|(memory, ..)| memory).collect();
                // SAFETY: the memory is this thread's.
                unsafe { km.free_bulk(&mut rest) };
            });
        }
    });
    km.destroy().expect("nothing is out");
    pages.drain_all();
    assert_eq!(pages.nr_allocated(), 0);
}
