//! A route that is replaced and freed by a callback, as in liburcu's manual.
//!
//! ```c
//! struct route { uint32_t gateway; struct rcu_head head; };
//! static struct route *current_route;
//!
//! static void free_route(struct rcu_head *head)
//! {
//!         free(caa_container_of(head, struct route, head));
//! }
//!
//! uint32_t gateway(void)                          /* a registered thread */
//! {
//!         rcu_read_lock();
//!         struct route *route = rcu_dereference(current_route);
//!         uint32_t gateway = route ? route->gateway : 0;
//!         rcu_read_unlock();
//!         return gateway;
//! }
//!
//! void set_gateway(uint32_t gateway)
//! {
//!         struct route *route = malloc(sizeof(*route));
//!         route->gateway = gateway;
//!         struct route *old = rcu_xchg_pointer(&current_route, route);
//!         if (old)
//!                 call_rcu(&old->head, free_route);
//! }
//!
//! void end(void)
//! {
//!         call_rcu(&rcu_xchg_pointer(&current_route, NULL)->head, free_route);
//!         rcu_barrier();
//! }
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};

/// Line by line, with the head and the callback where they were: for code that is ported and changed later.
mod line_by_line {
    use kvfree::{GracePeriod, Head, has_head};
    use rcu_core::{Callback, Rcu};
    use std::ptr::{self, NonNull};
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    pub(super) static FREED: AtomicUsize = AtomicUsize::new(0);

    #[repr(C)]
    struct Route {
        head: Head,
        gateway: u32,
    }
    has_head!(Route, head);

    static CURRENT: AtomicPtr<Route> = AtomicPtr::new(ptr::null_mut());

    /// # Safety
    /// 1. `head` is the first field of a leaked route that nobody reads any more.
    unsafe fn free_route(head: NonNull<Head>) {
        // SAFETY: 1.
        drop(unsafe { Box::from_raw(head.cast::<Route>().as_ptr()) });
        // ORDERING: Relaxed: a number; `barrier` orders it before what comes after (P4).
        FREED.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn gateway() -> u32 {
        let guard = kvfree::read_lock();
        // ORDERING: P1 (load side).
        let route = CURRENT.load(Ordering::Acquire);
        // SAFETY: freed a grace period after it was unlinked, and so not before the section ends.
        let gateway = unsafe { route.as_ref() }.map_or(0, |route| route.gateway);
        drop(guard);
        gateway
    }

    fn replace(new: *mut Route) {
        // ORDERING: P1 (publish side); Acquire, so that the old one is whole before its head is queued.
        let old = CURRENT.swap(new, Ordering::AcqRel);
        if let Some(old) = NonNull::new(old) {
            let free = Callback::Run(free_route);
            // SAFETY: unlinked just now, queued once; routes may be freed by any thread.
            unsafe { kvfree::Global.call(old.cast(), free) };
        }
    }

    pub(super) fn set_gateway(gateway: u32) {
        let head = Head::new();
        replace(Box::into_raw(Box::new(Route { head, gateway })));
    }

    pub(super) fn end() {
        replace(ptr::null_mut());
        kvfree::Global.barrier();
        // Not needed for that; liburcu's `synchronize_rcu`:
        kvfree::Global.synchronize();
    }
}

/// As one would write it here.
mod safe {
    use kvfree::{RcuBox, RcuCell, read_lock};

    static CURRENT: RcuCell<u32> = RcuCell::empty();

    pub(super) fn gateway() -> u32 {
        CURRENT.load(&read_lock()).copied().unwrap_or(0)
    }

    pub(super) fn set_gateway(gateway: u32) {
        CURRENT.store(Some(RcuBox::new(gateway)));
    }

    pub(super) fn end() {
        CURRENT.store(None);
        kvfree::barrier();
    }
}

/// A reader beside a writer, both ways.
pub(super) fn same_route() {
    fn exercise(gateway: impl Fn() -> u32 + Sync, set: impl Fn(u32), end: impl Fn()) {
        let seen = AtomicUsize::new(0);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut last = 0;
                while last < 200 {
                    let now = gateway();
                    assert!(now >= last, "an old one came back");
                    last = now;
                    // ORDERING: Relaxed: a number, looked at when the thread has ended.
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
            (1..=200).for_each(set);
        });
        end();
        assert!(gateway() == 0 && seen.into_inner() > 0);
    }
    exercise(
        line_by_line::gateway,
        line_by_line::set_gateway,
        line_by_line::end,
    );
    // ORDERING: Relaxed: the callbacks have returned before the barrier did (P4).
    assert_eq!(line_by_line::FREED.load(Ordering::Relaxed), 200);
    exercise(safe::gateway, safe::set_gateway, safe::end);
}
