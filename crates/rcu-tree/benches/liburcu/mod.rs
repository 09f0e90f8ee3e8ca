//! Debian's liburcu, by hand: what `urcu.h` (flavour memb) and `urcu-qsbr.h` declare to a program that is not under
//! the LGPL, that is, as functions of the shared library.

#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod memb {
    #[link(name = "urcu-memb")]
    unsafe extern "C" {
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
