//! System calls by number.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

const WRITE: usize = 1;
const SCHED_YIELD: usize = 24;
const CLONE: usize = 56;
const EXIT: usize = 60;
const ARCH_PRCTL: usize = 158;
const FUTEX: usize = 202;
const CLOCK_GETTIME: usize = 228;
const EXIT_GROUP: usize = 231;

/// # Safety
/// 1. The call does nothing to memory that this program's other code relies on.
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the kernel changes rax, rcx and r11, and what the call is for (1).
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// Writes all of `text`, or as much as the other end takes.
pub fn write(descriptor: usize, mut text: &[u8]) {
    while !text.is_empty() {
        // SAFETY: reads the slice.
        let written = unsafe {
            call(
                WRITE,
                descriptor,
                text.as_ptr().expose_provenance(),
                text.len(),
                0,
            )
        };
        match usize::try_from(written) {
            Ok(written) if written > 0 => text = &text[written..],
            _ => return,
        }
    }
}

/// Ends the program, all of its threads.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: nothing is left to rely on memory.
        unsafe { call(EXIT_GROUP, usize::from(status), 0, 0, 0) };
    }
}

/// Lets another thread have the processor.
pub fn yield_now() {
    // SAFETY: no memory is touched.
    unsafe { call(SCHED_YIELD, 0, 0, 0, 0) };
}

/// Time since some moment, never less than before.
pub fn now() -> Duration {
    const MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    let at = (&raw mut time).expose_provenance();
    // SAFETY: writes the two words.
    unsafe { call(CLOCK_GETTIME, MONOTONIC, at, 0, 0) };
    Duration::new(time[0], time[1] as u32)
}

/// Makes `[gs:0]` the word at `address` on this thread.
///
/// # Safety
/// 1. The word stays in place for as long as the thread reads it.
pub unsafe fn set_gs(address: *const u32) {
    const SET_GS: usize = 0x1001;
    // SAFETY: the compiler does not use the register.
    let result = unsafe { call(ARCH_PRCTL, SET_GS, address.expose_provenance(), 0, 0) };
    assert_eq!(result, 0, "arch_prctl");
}

/// The word at `[gs:0]`.
pub fn gs_word() -> u32 {
    let word;
    // SAFETY: reads a word that `set_gs` was told of; without one, the program ends by a fault.
    unsafe {
        asm!("mov {0:e}, gs:[0]", out(reg) word, options(nostack, readonly, preserves_flags))
    };
    word
}

/// Starts a thread that runs `entry(argument)` on the stack that ends at `stack_end`. `alive` is zero when the thread has left its stack.
///
/// # Safety
/// 1. The stack is this thread's alone until `alive` is zero, and aligned to 16 bytes at its end.
/// 2. `alive` stays in place until then.
/// 3. `entry` may be called with `argument` on another thread.
pub unsafe fn spawn(
    entry: extern "C" fn(usize),
    argument: usize,
    stack_end: *mut u8,
    alive: &AtomicU32,
) {
    const FLAGS: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000; // VM FS FILES SIGHAND THREAD SYSVSEM
    const CHILD_CLEARTID: usize = 0x20_0000;
    alive.store(1, Ordering::Relaxed);
    let word = alive.as_ptr().expose_provenance();
    let result: isize;
    // SAFETY: the parent's registers come back but for those named; the child has a stack of its own (1), on which it calls
    // the function (3) and never comes back. The kernel writes `alive` at its end (2).
    unsafe {
        asm!(
            "syscall",
            "test eax, eax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "mov eax, {exit}",
            "xor edi, edi",
            "syscall",
            "ud2",
            "2:",
            exit = const EXIT,
            inlateout("rax") CLONE as isize => result,
            in("rdi") FLAGS | CHILD_CLEARTID,
            in("rsi") stack_end,
            in("rdx") 0,
            in("r10") word,
            in("r8") entry,
            in("r9") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    assert!(result > 0, "clone: {result}");
}

/// Waits until the thread that was started with `alive` has left its stack.
pub fn join(alive: &AtomicU32) {
    const WAIT: usize = 0;
    // ORDERING: Acquire: after everything the thread did; the kernel's store is a system call's.
    while alive.load(Ordering::Acquire) != 0 {
        // SAFETY: reads the word.
        unsafe { call(FUTEX, alive.as_ptr().expose_provenance(), WAIT, 1, 0) };
    }
}
