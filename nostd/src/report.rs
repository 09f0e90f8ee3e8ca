//! Checks that are counted, and what the programs say.

use crate::syscall;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

static CHECKS: AtomicUsize = AtomicUsize::new(0);

struct Descriptor(usize);

impl Write for Descriptor {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        syscall::write(self.0, text.as_bytes());
        Ok(())
    }
}

/// Says something on standard output.
pub fn say(what: fmt::Arguments<'_>) {
    // A closed pipe has seen what it wanted.
    let _ = Descriptor(1).write_fmt(what);
}

/// Says something on standard error.
pub fn say_error(what: fmt::Arguments<'_>) {
    // Nobody is left to tell.
    let _ = Descriptor(2).write_fmt(what);
}

/// Ends the program with a panic unless `holds`.
#[track_caller]
pub fn check(holds: bool, what: &str) {
    assert!(holds, "{what}");
    CHECKS.fetch_add(1, Ordering::Relaxed);
}

/// Ends the program unless both are the same.
#[track_caller]
pub fn check_eq<T: PartialEq + fmt::Debug>(found: T, expected: T, what: &str) {
    assert!(
        found == expected,
        "{what}: {found:?}, expected {expected:?}"
    );
    CHECKS.fetch_add(1, Ordering::Relaxed);
}

/// Says how many checks there were, and ends the program with success.
pub fn finish() -> ! {
    say(format_args!(
        "all {} checks passed\n",
        CHECKS.load(Ordering::Relaxed)
    ));
    syscall::exit(0)
}
