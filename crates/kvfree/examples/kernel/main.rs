//! A kernel author's stack: own CPUs, own memory map, no `std`, no heap.
//!
//! ```sh
//! cargo run -p kvfree --example kernel
//! ```
//!
//! `kernel.rs` is what one writes: `Cpus` over the CPU number (about thirty lines), the firmware's memory map handed over, the layers
//! put one on the other in statics and on the boot stack, a tick. It uses `core` and these crates only. This file is the machine:
//! CPUs that are threads, 16 MiB that are an array, a clock.

#![cfg_attr(not(test), no_std)]

extern crate std;

mod kernel;

use kernel::{Kernel, MAX_CPUS, Machine, MemoryRange};
use kvfree::DeferFree;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{println, thread, thread_local, vec};

thread_local! {
    /// What a real machine keeps in a register.
    static CPU: Cell<u32> = const { Cell::new(0) };
}

struct Emulated {
    booted: Instant,
}

impl Machine for Emulated {
    fn this_cpu(&self) -> u32 {
        CPU.get()
    }

    fn now(&self) -> Duration {
        self.booted.elapsed()
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

/// Brings a CPU up, has it do `work` between ticks until `stop`, and takes it down.
fn cpu(kernel: &Kernel<'_>, number: u32, stop: &AtomicBool, work: impl Fn()) {
    CPU.set(number);
    kernel.smp().bring_up();
    // ORDERING: Relaxed: a flag that nothing is published by.
    while !stop.load(Ordering::Relaxed) {
        work();
        kernel.tick();
    }
    kernel.smp().take_down();
}

/// Interrupt handlers on all other CPUs look a device up while a driver on the boot CPU replaces it; CPUs come and go.
///
/// # Panics
/// If a handler sees a device that is gone, or memory is lost.
fn run() -> u32 {
    const PAGES: usize = 4096;
    #[derive(Clone)]
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "memory")] [u8; 4096]);
    let physical = NonNull::from(vec![Page([0; 4096]); PAGES].leak()).cast::<u8>();
    let range = |start, size_bytes, is_usable| MemoryRange {
        start,
        size_bytes,
        is_usable,
    };
    let map = [
        range(0, 0x9f000, true),
        range(0xf0000, 0x10000, false), // the firmware itself
        range(0x100000, 0xf00000, true),
    ];
    let machine = std::boxed::Box::leak(std::boxed::Box::new(Emulated {
        booted: Instant::now(),
    }));
    let seen = AtomicU32::new(0);
    let main = |kernel: &Kernel<'_>| {
        let (stop, stop_hotplug) = (AtomicBool::new(false), AtomicBool::new(false));
        let handler = || {
            let guard = kernel.read_lock();
            if let Some(device) = kernel.device(&guard) {
                thread::yield_now(); // another CPU replaces it now
                assert_eq!(
                    device.irq, !device.inverse,
                    "it was freed under the handler"
                );
                // ORDERING: Relaxed: a number.
                seen.fetch_add(1, Ordering::Relaxed);
            }
        };
        thread::scope(|s| {
            for number in 1..4 {
                let stop = &stop;
                s.spawn(move || cpu(kernel, number, stop, handler));
            }
            // The last CPU is plugged and unplugged all the time, with whatever it has retired.
            s.spawn(|| {
                // ORDERING: Relaxed: a flag that nothing is published by.
                while !stop_hotplug.load(Ordering::Relaxed) {
                    let once = AtomicBool::new(false);
                    cpu(kernel, MAX_CPUS as u32 - 1, &once, || {
                        kernel.replace_device(7).expect("memory");
                        // ORDERING: Relaxed: one thread.
                        once.store(true, Ordering::Relaxed);
                    });
                    thread::yield_now();
                }
            });
            for irq in 0..1_000 {
                kernel.replace_device(irq).expect("memory");
                if irq.is_multiple_of(16) {
                    kernel.tick();
                }
            }
            // ORDERING: Relaxed: a number.
            while seen.load(Ordering::Relaxed) == 0 {
                kernel.tick();
            }
            // ORDERING: Relaxed, both: flags, as above.
            stop_hotplug.store(true, Ordering::Relaxed);
            kernel.synchronize();
            stop.store(true, Ordering::Relaxed);
        });
        kernel.remove_device();
        // From here on this CPU is alone.
        kernel.front.barrier();
        assert_eq!(kernel.front.stats().objects_waiting, 0);
        let stats = kernel.objects.stats();
        stats.classes.iter().map(|class| class.live).sum::<usize>()
    };
    // SAFETY: this is the boot CPU, and boots once; the memory is an array that nobody else has.
    let booted = unsafe { kernel::boot(machine, physical, &map, main) };
    let left = booted.unwrap_or_else(|error| panic!("no kernel: {error}"));
    assert_eq!(left, 0, "devices were lost");
    seen.into_inner()
}

fn main() {
    println!("{} interrupts, each with a whole device", run());
}

#[cfg(test)]
#[test]
fn interrupts_see_whole_devices_while_they_are_replaced() {
    assert!(run() > 0);
}
