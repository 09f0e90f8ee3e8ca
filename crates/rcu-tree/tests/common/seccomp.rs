//! Takes `membarrier` away from this process, as a sandbox would.

use rcu_core::fence::{self, Mode};

/// Refuses `membarrier` to every thread of this process from now on. False where the system allows no such filter.
pub(crate) fn deny_membarrier() -> bool {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The system call's number is the first word of what a filter sees.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            libc::SYS_membarrier as u32,
        ),
        op(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
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
    privileged == 0 && denied == 0
}

/// Asserts that fences have noticed, if the filter could be installed.
pub(crate) fn assert_fenced(denied: bool) {
    fence::heavy();
    if denied {
        assert_eq!(fence::probe(), Mode::Fenced);
    } else {
        eprintln!(
            "no seccomp filter to be had here: ran with {:?}",
            fence::probe()
        );
    }
}
