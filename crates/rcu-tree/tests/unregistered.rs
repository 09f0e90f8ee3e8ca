//! A program that links a static tree and does not use it pays address space only: no thread, no page of memory.
//!
//! Without the test harness, whose threads would be counted too.

/// What `/proc` says of this process.
#[cfg(all(target_os = "linux", not(loom)))]
mod proc {
    use std::fs;

    pub(super) fn threads() -> Option<usize> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Threads:"))?;
        line.trim().parse().ok()
    }

    /// Size and resident part, in KiB, of the mapping that `address` lies in.
    pub(super) fn mapping(address: usize) -> Option<(usize, usize)> {
        let smaps = fs::read_to_string("/proc/self/smaps").ok()?;
        let mut lines = smaps.lines();
        lines.find(|line| range(line).is_some_and(|(from, to)| (from..to).contains(&address)))?;
        let mut kib = |name: &str| {
            let line = lines.find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse().ok()
        };
        Some((kib("Size:")?, kib("Rss:")?))
    }

    fn range(line: &str) -> Option<(usize, usize)> {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some((number(from)?, number(to)?))
    }
}

#[cfg(all(target_os = "linux", not(loom)))]
fn main() {
    use rcu_core::cpu::{BiasedLock, MAX_THREAD_SLOTS};
    use rcu_core::{GracePeriod, read_lock};
    use rcu_tree::TreeSlot;
    use std::sync::atomic::AtomicU8;

    rcu_tree::static_tree! {
        struct Unused;
    }

    /// In the mapping that all zeroed statics share, and filling whole pages, so that it is not moved among others.
    static MARK: [AtomicU8; 1 << 16] = [const { AtomicU8::new(0) }; 1 << 16];

    let look = || Some((proc::threads()?, proc::mapping((&raw const MARK).addr())?));
    let Some((threads, (size, resident))) = look() else {
        println!("unregistered: skipped, /proc does not tell");
        return;
    };
    let slots = MAX_THREAD_SLOTS * size_of::<TreeSlot<BiasedLock>>() / 1024;
    if size < slots {
        println!("unregistered: skipped, zeroed statics do not share a mapping here");
        return;
    }
    assert_eq!(threads, 1, "a thread that nobody asked for");
    assert!(
        resident < 128 && resident < size / 4,
        "{resident} KiB of {size} KiB are resident"
    );

    // What is seen above would be seen differently if the tree were in use.
    drop(read_lock::<Unused>());
    let (_, (_, with_a_reader)) = look().expect("as before");
    assert!(with_a_reader > resident, "the reader's slot takes a page");
    Unused.synchronize();
    let (waiting_alone, _) = look().expect("as before");
    assert_eq!(waiting_alone, 1, "who waits drives for itself");
    let _ = Unused.start();
    let (with_a_worker, _) = look().expect("as before");
    assert_eq!(with_a_worker, 2, "the worker");
    println!("unregistered: 1 thread, {resident} KiB of {size} KiB resident; ok");
}

#[cfg(not(all(target_os = "linux", not(loom))))]
fn main() {}
