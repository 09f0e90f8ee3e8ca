//! Asymmetric fences: `light` for the side that runs often, `heavy` for the side that may pay.
//!
//! Source: `membarrier(2)`, command `PRIVATE_EXPEDITED`; the axioms are those of folly's and
//! seize's barrier modules. Why not a full fence on both sides: it costs a reader 5 to 20 times
//! its whole section.
//!
//! # Axioms
//! - A1. All `heavy` fences and all full fences are totally ordered.
//! - A2. Between one `light` and one `heavy`, one comes first: if the `light` does, everything
//!   before it is visible to everything after the `heavy`; if the `heavy` does, everything before
//!   it is visible to everything after the `light`.
//! - A3. Two `light` fences order nothing between them.
//!
//! # State
//! | `MODE` | meaning | `light` | `heavy` | left by |
//! |---|---|---|---|---|
//! | `UNPROBED` | nothing tried yet | full fence | probes first | the probe |
//! | `MEMBARRIER` | the kernel fences for us | compiler barrier | `membarrier` | a refusal |
//! | `SWITCHING` | the kernel refused after it had agreed | full fence | switches every CPU once | its first user |
//! | `FENCED` | no asymmetry | full fence | full fence | – |
//!
//! # Invariants
//! - I1. `heavy` never relies on a full fence in `light` before every thread that may have read
//!   `MEMBARRIER` has passed a full fence: the probe runs before the first `heavy` returns, and a
//!   later refusal passes through `SWITCHING`, in which `heavy` makes every CPU switch once. The child of a fork starts
//!   with the parent's mode and asks again (Linux lets the child inherit the grant), while it has one thread.
//! - I2. `light` reads `MODE` *after* the caller's store in program order; an interrupt of this CPU
//!   that finds the store not yet retired makes the read see the new mode.
//! - I3. `heavy_unasked` reads no mode: it has the kernel's word for this very fence, or switches every CPU itself. So
//!   code that is ordered against it alone needs no `light`, before and after the mode was lost.
//!
//! # Progress and contexts
//! Both are wait-free towards other threads; `heavy` costs a system call (0.3 to 10 µs). Neither
//! allocates; both may run in signal handlers and in read sections.

use crate::sync::atomic::{Ordering, fence};

/// How fences work in this process at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// `light` is a compiler barrier; `heavy` asks the kernel to fence every running thread.
    Membarrier,
    /// Both sides use full fences.
    Fenced,
}

/// Orders the caller's earlier accesses before its later ones, against a [`heavy`] elsewhere.
///
/// Costs one load and one predicted branch in [`Mode::Membarrier`], a full fence otherwise.
#[inline(always)]
pub fn light() {
    imp::light();
}

/// Orders against every [`light`] of every thread of this process, as if each ran a full fence.
#[doc(alias = "membarrier")]
pub fn heavy() {
    imp::heavy();
}

/// A full fence, for the rare sites that need one on their own (A1).
#[inline]
#[doc(alias = "smp_mb")]
pub fn full() {
    // ORDERING: P5 and its kin: both halves of a store-buffering pair run this or `heavy`.
    fence(Ordering::SeqCst);
}

/// Probes for the asymmetric fence if that has not happened yet, and says what was found.
///
/// Called by whoever registers a thread, so that the probe's cost does not fall into a grace period.
pub fn probe() -> Mode {
    imp::probe()
}

/// Whether there can be code that leaves its [`light`] out, see [`owners_may_omit`].
pub(crate) const CAN_OMIT: bool = imp::CAN_OMIT;

/// Whether code that must be ordered against a [`heavy_unasked`] elsewhere, and only by that, may leave [`light`] out
/// (all but the compiler's half of it) for a while. A hint: yes stays right when the mode changes.
#[inline]
pub(crate) fn owners_may_omit() -> bool {
    imp::owners_may_omit()
}

/// Orders against every thread of this process, as if each ran a full fence, in every mode (A2, for code without `light`).
///
/// Where the kernel does not fence for us any more, switches every CPU (see I1), each time.
pub(crate) fn heavy_unasked() {
    imp::heavy_unasked();
}

/// Settles the mode in the child of a fork, where the kernel may have forgotten what it granted the parent.
#[cfg(all(feature = "std", unix, not(loom)))]
pub(crate) fn after_fork() {
    imp::after_fork();
    full();
}

#[cfg(not(all(
    feature = "std",
    target_os = "linux",
    not(loom),
    not(miri),
    not(thread_sanitizer)
)))]
mod imp {
    use super::{Mode, full};

    /// In models, whoever leaves its fence out runs it in the name of the heavy side.
    pub(super) const CAN_OMIT: bool = cfg!(loom);

    pub(super) fn owners_may_omit() -> bool {
        CAN_OMIT
    }

    pub(super) fn heavy_unasked() {
        full();
    }

    #[inline(always)]
    pub(super) fn light() {
        full();
    }

    pub(super) fn heavy() {
        full();
    }

    pub(super) fn probe() -> Mode {
        Mode::Fenced
    }

    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(super) fn after_fork() {}
}

#[cfg(all(
    feature = "std",
    target_os = "linux",
    not(loom),
    not(miri),
    not(thread_sanitizer)
))]
mod imp {
    use super::{Mode, full};
    use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

    const MEMBARRIER: u32 = 0;
    const UNPROBED: u32 = 1;
    const SWITCHING: u32 = 2;
    const FENCED: u32 = 3;

    /// Zero is the fast mode, so that `light` tests against zero.
    static MODE: AtomicU32 = AtomicU32::new(UNPROBED);

    #[inline(always)]
    pub(super) fn light() {
        // ORDERING: A2, the compiler's half: the caller's store stays above the load of the mode (I2).
        compiler_fence(Ordering::SeqCst);
        // ORDERING: Relaxed: I2; the axiom A2 is the kernel's in mode 0 and `full`'s otherwise.
        if MODE.load(Ordering::Relaxed) != MEMBARRIER {
            light_slow();
        }
        // ORDERING: A2, the compiler's half: the caller's later accesses stay below.
        compiler_fence(Ordering::SeqCst);
    }

    #[cold]
    #[inline(never)]
    fn light_slow() {
        full();
    }

    #[cold]
    pub(super) fn probe() -> Mode {
        // ORDERING: Relaxed: a stale `UNPROBED` only probes again; the outcome is settled by CAS.
        if MODE.load(Ordering::Relaxed) == UNPROBED {
            let found = if register() && issue() {
                MEMBARRIER
            } else {
                FENCED
            };
            // ORDERING: Relaxed: I1; nothing but the mode itself is published.
            let _ = MODE.compare_exchange(UNPROBED, found, Ordering::Relaxed, Ordering::Relaxed);
        }
        // ORDERING: Relaxed: a report for people.
        match MODE.load(Ordering::Relaxed) {
            MEMBARRIER => Mode::Membarrier,
            _ => Mode::Fenced,
        }
    }

    pub(super) fn heavy() {
        full();
        // ORDERING: Relaxed: I1; every transition that matters passes a full fence on each CPU.
        match MODE.load(Ordering::Relaxed) {
            MEMBARRIER if issue() => {}
            FENCED => {}
            UNPROBED => {
                probe();
                // One level only: the mode is settled now.
                heavy();
            }
            _ => lost(),
        }
        full();
    }

    pub(super) const CAN_OMIT: bool = true;

    pub(super) fn owners_may_omit() -> bool {
        // ORDERING: Relaxed: a hint; `heavy_unasked` relies on no mode.
        MODE.load(Ordering::Relaxed) == MEMBARRIER
    }

    pub(super) fn heavy_unasked() {
        full();
        if !issue() {
            lost();
        }
        full();
    }

    /// The kernel refused a fence it had granted before: a seccomp filter came. Goes on fenced.
    #[cold]
    fn lost() {
        // ORDERING: Relaxed: I1; whoever sees `SWITCHING` makes every CPU switch itself.
        let _ = MODE.compare_exchange(MEMBARRIER, SWITCHING, Ordering::Relaxed, Ordering::Relaxed);
        full();
        switch_every_cpu();
        full();
        // ORDERING: Relaxed: I1; every thread has passed a full fence since `SWITCHING` was stored.
        let _ = MODE.compare_exchange(SWITCHING, FENCED, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The caller is the only thread, so that I1 asks for nothing but the full fence that comes next.
    pub(super) fn after_fork() {
        // ORDERING: Relaxed: there is one thread.
        let lost = match MODE.load(Ordering::Relaxed) {
            MEMBARRIER => !(register() && issue()),
            // Whoever was switching is not there.
            SWITCHING => true,
            _ => false,
        };
        if lost {
            // ORDERING: Relaxed: there is one thread.
            MODE.store(FENCED, Ordering::Relaxed);
        }
    }

    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: `membarrier` takes three integers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }

    fn register() -> bool {
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
    }

    fn issue() -> bool {
        membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }

    /// Makes every CPU of this process pass a full fence by running on each of them in turn: a CPU
    /// that takes this thread switches away from what it ran. Falls back to a protection change,
    /// whose TLB shoot-down interrupts every CPU that runs this address space.
    #[cold]
    fn switch_every_cpu() {
        if !walk_cpus() {
            shoot_down();
        }
    }

    fn walk_cpus() -> bool {
        // SAFETY: an all-zero `cpu_set_t` is the empty set.
        let mut old: libc::cpu_set_t = unsafe { core::mem::zeroed() };
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: `old` is a valid set of `size` bytes to write to.
        if unsafe { libc::sched_getaffinity(0, size, &raw mut old) } != 0 {
            return false;
        }
        let mut done = 0;
        for cpu in 0..libc::CPU_SETSIZE as usize {
            // SAFETY: an all-zero `cpu_set_t` is the empty set.
            let mut one: libc::cpu_set_t = unsafe { core::mem::zeroed() };
            // SAFETY: `cpu` is below `CPU_SETSIZE`.
            unsafe { libc::CPU_SET(cpu, &mut one) };
            // SAFETY: `one` is a valid set of `size` bytes to read. A CPU that this process may
            // not use refuses, and then no thread of it runs there either.
            if unsafe { libc::sched_setaffinity(0, size, &raw const one) } == 0 {
                done += 1;
            }
        }
        // SAFETY: `old` was filled in above.
        let restored = unsafe { libc::sched_setaffinity(0, size, &raw const old) } == 0;
        done > 0 && restored
    }

    fn shoot_down() {
        const LEN: usize = 4096;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh private mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(core::ptr::null_mut(), LEN, prot, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return;
        }
        // SAFETY: the page is ours, mapped for writing, and unknown to anyone else.
        unsafe { page.cast::<u8>().write_volatile(1) };
        // SAFETY: the page is ours; taking the write permission away forces the shoot-down.
        let _ = unsafe { libc::mprotect(page, LEN, libc::PROT_NONE) };
        // SAFETY: the page is ours and nothing refers to it any more.
        let _ = unsafe { libc::munmap(page, LEN) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn switching_every_cpu_restores_the_affinity() {
            let read = || {
                // SAFETY: an all-zero set is valid.
                let mut set: libc::cpu_set_t = unsafe { core::mem::zeroed() };
                // SAFETY: `set` is writable and of the size given.
                let rc = unsafe {
                    libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set)
                };
                assert_eq!(rc, 0);
                // SAFETY: `set` was filled in.
                (0..64)
                    .map(|c| unsafe { libc::CPU_ISSET(c, &set) })
                    .collect::<Vec<_>>()
            };
            let before = read();
            assert!(walk_cpus());
            assert_eq!(before, read());
            shoot_down();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn probing_twice_gives_the_same_mode() {
        let first = probe();
        heavy();
        light();
        full();
        assert_eq!(first, probe());
    }
}
