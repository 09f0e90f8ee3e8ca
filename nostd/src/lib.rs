//! The machine below the programs: an entry point, three system calls, four memory functions, a panic handler.
//!
//! Everything here stands for what a kernel has of its own: a boot entry, a serial line, a way to halt. The programs in
//! `src/bin` are what a kernel author would write over it. Linux on x86-64 only; nothing of the C library, nothing of `std`,
//! no global allocator.

#![no_std]

mod memory;
pub mod report;
pub mod syscall;

use core::panic::PanicInfo;

/// The exit status of a program that panicked, as `std` has it.
const PANICKED: u8 = 101;

/// Makes `main`, a function from whether the program was called with an argument to nothing, the program.
///
/// The kernel jumps to `_start` with the arguments' count on top of the stack and no return address.
#[macro_export]
macro_rules! program {
    ($main:path) => {
        ::core::arch::global_asm!(
            ".globl _start",
            "_start:",
            "xor ebp, ebp",
            "mov rdi, [rsp]",
            "and rsp, -16",
            "call {start}",
            "ud2",
            start = sym start,
        );

        extern "C" fn start(arguments: usize) -> ! {
            let main: fn(bool) = $main;
            main(arguments > 1);
            $crate::report::finish()
        }
    };
}

/// Named by a table in the compiler's own library, which is built for targets that unwind. Nothing here does, so nobody calls it; a
/// kernel's target is built without such tables.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    syscall::exit(PANICKED)
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    report::say_error(format_args!("{info}\n"));
    syscall::exit(PANICKED)
}
