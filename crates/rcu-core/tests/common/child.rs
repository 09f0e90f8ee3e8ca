//! Forking in a test.
#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// Ends the child, with the line as its code, if something is not so. A panic could wait for a lock of the parent's.
#[track_caller]
pub(crate) fn check(so: bool) {
    if !so {
        let line = std::panic::Location::caller().line();
        // What is left of a multiple of 256 would say that all is well.
        let code = (line as i32 & 0xff).max(1);
        // SAFETY: ends the process.
        unsafe { libc::_exit(code) };
    }
}

/// Forks, runs `child` there, and waits for it to end. `Err` is the line of the check that failed, or 255 after a panic,
/// or the signal, negative: a child that hangs is killed by its alarm.
pub(crate) fn fork(child: impl FnOnce()) -> Result<(), i32> {
    fork_while(child, || {})
}

/// The same, and calls `parent` in the parent before it waits.
pub(crate) fn fork_while(child: impl FnOnce(), parent: impl FnOnce()) -> Result<(), i32> {
    // SAFETY: takes no lock of RCU, and the child ends below.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: takes a number.
            unsafe { libc::alarm(30) };
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
            // SAFETY: ends the process.
            unsafe { libc::_exit(if ran.is_ok() { 0 } else { 255 }) }
        }
        pid => {
            parent();
            let mut status = -1;
            // SAFETY: `status` is writable.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            match status {
                0 if waited == pid => Ok(()),
                _ if status & 0x7f == 0 => Err(status >> 8),
                _ => Err(-(status & 0x7f)),
            }
        }
    }
}

/// Runs `body` on a thread of its own, and waits for its end: for threads that come and go while others fork.
///
/// Not `std`'s: a thread of its holds a lock of the standard library's as it begins and as it ends, which a child that is forked
/// meanwhile finds held for ever when it starts a thread itself. The C library's are safe there.
pub(crate) fn on_a_thread(body: impl FnOnce() + Send + 'static) {
    extern "C" fn run<F: FnOnce()>(body: *mut c_void) -> *mut c_void {
        // SAFETY: from `into_raw` below, once. A panic ends the process.
        let body = unsafe { Box::from_raw(body.cast::<F>()) };
        body();
        null_mut()
    }
    fn runner<F: FnOnce()>(_: &F) -> extern "C" fn(*mut c_void) -> *mut c_void {
        run::<F>
    }
    let (start, body) = (runner(&body), Box::into_raw(Box::new(body)));
    let mut thread = 0;
    // SAFETY: `thread` is writable; the function takes the box, which may go to another thread.
    let made = unsafe { libc::pthread_create(&raw mut thread, null(), start, body.cast()) };
    assert_eq!(made, 0, "no thread to be had");
    // SAFETY: made just now, and joined once.
    assert_eq!(unsafe { libc::pthread_join(thread, null_mut()) }, 0);
}
