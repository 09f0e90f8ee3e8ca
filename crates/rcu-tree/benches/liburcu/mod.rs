//! Debian's liburcu, by hand: what `urcu.h` (flavour memb) and `urcu-qsbr.h` declare to a program that is not under
//! the LGPL, that is, as functions of the shared library.

#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod memb {
    use core::cell::UnsafeCell;

    /// `struct rcu_head`: a link and a function.
    #[repr(C)]
    pub(crate) struct Head(UnsafeCell<[usize; 2]>);

    impl Head {
        pub(crate) const fn new() -> Self {
            Self(UnsafeCell::new([0; 2]))
        }
    }

    extern "C" fn nothing(_head: *const Head) {}

    /// Has a function that does nothing called later.
    ///
    /// # Safety
    /// The head is not queued, and outlives the call.
    pub(crate) unsafe fn call(head: &Head) {
        // SAFETY: the caller's debts; the head is only written through its cell.
        unsafe { call_rcu(head, nothing) };
    }

    #[link(name = "urcu-memb")]
    unsafe extern "C" {
        #[link_name = "urcu_memb_call_rcu"]
        fn call_rcu(head: *const Head, func: extern "C" fn(*const Head));
        #[link_name = "urcu_memb_barrier"]
        pub(crate) safe fn barrier();
        #[link_name = "urcu_memb_register_thread"]
        safe fn register_thread();
        #[link_name = "urcu_memb_unregister_thread"]
        safe fn unregister_thread();
        #[link_name = "urcu_memb_read_lock"]
        pub(crate) safe fn read_lock();
        #[link_name = "urcu_memb_read_unlock"]
        pub(crate) safe fn read_unlock();
        #[link_name = "urcu_memb_synchronize_rcu"]
        pub(crate) safe fn synchronize_rcu();
    }

    /// The calling thread, registered while this exists.
    pub(crate) struct Registered(());

    impl Registered {
        pub(crate) fn new() -> Self {
            register_thread();
            Self(())
        }
    }

    impl Drop for Registered {
        fn drop(&mut self) {
            unregister_thread();
        }
    }
}

pub(crate) mod qsbr {
    #[link(name = "urcu-qsbr")]
    unsafe extern "C" {
        #[link_name = "urcu_qsbr_register_thread"]
        safe fn register_thread();
        #[link_name = "urcu_qsbr_unregister_thread"]
        safe fn unregister_thread();
        #[link_name = "urcu_qsbr_read_lock"]
        pub(crate) safe fn read_lock();
        #[link_name = "urcu_qsbr_read_unlock"]
        pub(crate) safe fn read_unlock();
        #[link_name = "urcu_qsbr_quiescent_state"]
        pub(crate) safe fn quiescent_state();
    }

    /// The calling thread, registered and online while this exists.
    pub(crate) struct Registered(());

    impl Registered {
        pub(crate) fn new() -> Self {
            register_thread();
            Self(())
        }
    }

    impl Drop for Registered {
        fn drop(&mut self) {
            unregister_thread();
        }
    }
}
