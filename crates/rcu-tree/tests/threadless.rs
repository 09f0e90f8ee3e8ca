//! Where no thread is to be had: waiters do what the tree's threads would.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "common/calls.rs"]
mod calls;

use calls::{Log, call, call_lazy};
use rcu_core::{GracePeriod, Rcu};
use std::sync::Arc;

rcu_tree::static_tree! { struct Alone; }

/// Refuses new threads to the calling thread. False where the system allows no such filter.
fn deny_threads() -> bool {
    let op = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let is = |number: libc::c_long, else_skip: u8| {
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            else_skip,
            number as u32,
        )
    };
    let refuse = op(
        libc::BPF_RET | libc::BPF_K,
        0,
        0,
        libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32,
    );
    let mut filter = [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        is(libc::SYS_clone, 1),
        refuse,
        is(libc::SYS_clone3, 1),
        refuse,
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
            0,
            &raw const program,
        )
    };
    privileged == 0 && denied == 0
}

#[test]
fn g21_waiters_run_callbacks_where_no_thread_can_be_started() {
    if !deny_threads() {
        eprintln!("no seccomp filter to be had here");
        return;
    }
    assert!(std::thread::Builder::new().spawn(|| ()).is_err());
    let log = Arc::new(Log::default());
    for round in 0..3 {
        (0..600).for_each(|n| call(&Alone, &log, n));
        call_lazy(&Alone, &log, 600);
        let cookie = Alone.start();
        Alone.wait(cookie);
        Alone.barrier();
        assert_eq!(log.ran(), 601 * (round + 1));
    }
}
