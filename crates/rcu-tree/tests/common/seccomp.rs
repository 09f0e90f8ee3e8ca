//! Takes system calls away from this process, as a sandbox would.
#![allow(dead_code, reason = "each test file uses its part")]

use rcu_core::fence::{self, Mode};

/// Refuses `calls` to every thread of this process from now on. False where the system allows no such filter.
fn deny(calls: &[libc::c_long], errno: i32) -> bool {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let answer = |what: u32| op(libc::BPF_RET | libc::BPF_K, 0, 0, what);
    // The system call's number is the first word of what a filter sees.
    let mut filter = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for &call in calls {
        let is_it = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter.push(op(is_it, 0, 1, call as u32));
        filter.push(answer(libc::SECCOMP_RET_ERRNO | errno as u32));
    }
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: takes five integers.
    let privileged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program points to a filter that is read during the call only.
    let denied = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    let done = privileged == 0 && denied == 0;
    if !done {
        eprintln!("no seccomp filter to be had here");
    }
    done
}

/// Refuses `membarrier`.
pub(crate) fn deny_membarrier() -> bool {
    deny(&[libc::SYS_membarrier], libc::EPERM)
}

/// Refuses new threads.
pub(crate) fn deny_threads() -> bool {
    deny(&[libc::SYS_clone, libc::SYS_clone3], libc::EAGAIN)
}

/// Asserts that fences have noticed, if the filter could be installed.
pub(crate) fn assert_fenced(denied: bool) {
    fence::heavy();
    if denied {
        assert_eq!(fence::probe(), Mode::Fenced);
    } else {
        eprintln!("ran with {:?}", fence::probe());
    }
}
