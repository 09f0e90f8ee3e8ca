//! Forking in a test.

/// Ends the child, with the line as its code, if something is not so. A panic could wait for a lock of the parent's.
#[track_caller]
pub(crate) fn check(so: bool) {
    if !so {
        let line = std::panic::Location::caller().line();
        // SAFETY: ends the process.
        unsafe { libc::_exit(line as i32 & 0xff) };
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
