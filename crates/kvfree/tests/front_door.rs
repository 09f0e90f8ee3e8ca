//! The default stack as an application meets it: settings first, and a monitor that is there only while it is needed.

#![cfg(all(feature = "std", not(loom)))]

use kvfree::{Builder, Config, InUse, RcuBox};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

struct Counts(&'static AtomicUsize);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Threads of this process by the monitor's name, where the system lists them.
fn monitors() -> Option<usize> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Some(names.filter(|name| name.trim() == "kvfree-monitor").count())
}

/// One test, for the settings are the process's.
#[test]
fn k8_the_monitor_exists_only_while_something_waits() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    let settings = Builder::new()
        .delay(Duration::from_millis(2))
        .config(Config::new().ask_after_blocks(4));
    assert_eq!(settings.install(), Ok(()));
    assert_eq!(Builder::new().install(), Err(InUse), "who is first decides");
    let mut before = RcuBox::new(Counts(&DROPPED));
    assert!(!kvfree::stats().is_monitored, "nothing was retired yet");
    for round in 1..=3 {
        drop(before);
        wait_until(|| DROPPED.load(Ordering::Acquire) == round);
        wait_until(|| !kvfree::stats().is_monitored);
        wait_until(|| monitors().is_none_or(|n| n == 0));
        before = RcuBox::new(Counts(&DROPPED));
    }
}
