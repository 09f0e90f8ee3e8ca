//! Resident memory of this process.

use std::fs;
use std::sync::Barrier;
use std::thread;

/// Threads that have run at the same time before the mark is made, so that what the C library keeps for threads is there.
const WARM: usize = 48;

/// KiB that are resident, after whatever the C library keeps back has been given back. `None` where that cannot be told, as
/// under the sanitizer, whose notes on what was used once stay: an eighth of it.
pub(crate) fn kib() -> Option<usize> {
    if cfg!(address_sanitizer) {
        return None;
    }
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number.
    unsafe {
        libc::malloc_trim(0);
    }
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The same before anything has begun: stacks and arenas of threads are not what is measured.
pub(crate) fn mark() -> Option<usize> {
    let together = Barrier::new(WARM);
    thread::scope(|scope| {
        for _ in 0..WARM {
            scope.spawn(|| {
                let stack = [1_u8; 48 << 10];
                let heap = vec![1_u8; 16 << 10];
                std::hint::black_box((&stack, &heap));
                together.wait();
            });
        }
    });
    kib()
}
