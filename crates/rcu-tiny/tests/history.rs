//! Historic bugs by their row, refusals, and interrupts at the points where they may come.

use rcu_core::{Callback, Cookie, GracePeriod, Head, Rcu};
use rcu_tiny::{Tiny, TinyStatic};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a callback of these tests does. The head comes first, so that a head is its event.
#[repr(C)]
struct Event {
    head: Head,
    number: usize,
    action: fn(&'static Event),
}

thread_local! {
    /// The RCU of the running test, and what its callbacks noted.
    static RCU: Cell<Option<&'static Tiny>> = const { Cell::new(None) };
    static LOG: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn current() -> &'static Tiny {
    RCU.get().expect("set by `fresh`")
}

/// A new RCU for this test.
fn fresh() -> &'static Tiny {
    let rcu: &'static Tiny = Box::leak(Box::new(Tiny::new()));
    RCU.set(Some(rcu));
    rcu
}

fn log() -> Vec<usize> {
    LOG.take()
}

unsafe fn run(head: NonNull<Head>) {
    // SAFETY: the head is the first field of an `Event`, which is leaked.
    let event: &'static Event = unsafe { head.cast::<Event>().as_ref() };
    LOG.with_borrow_mut(|log| log.push(event.number));
    (event.action)(event);
}

fn again(event: &'static Event) {
    // SAFETY: the event is leaked, off every list, and read by nobody; it stays on this thread.
    unsafe { current().call(NonNull::from(event).cast(), Callback::Run(run)) };
}

fn call(number: usize, action: fn(&'static Event)) {
    let event = Box::leak(Box::new(Event {
        head: Head::new(),
        number,
        action,
    }));
    again(event);
}

fn nothing(_: &'static Event) {}

fn message(f: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("did not panic");
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    }
}

#[test]
fn t44_callbacks_and_cookies_across_the_wrap() {
    let rcu = fresh();
    for i in 0..400 {
        let cookie = rcu.snapshot();
        assert!(!rcu.poll(cookie), "grace period {i}");
        call(i, nothing);
        assert!(rcu.poll(Cookie::COMPLETED));
        rcu.quiescent();
        assert!(rcu.poll(cookie), "grace period {i}");
        assert_eq!(log(), [i]);
    }
    assert_eq!(rcu.grace_periods(), 400);
}

#[test]
fn t45_one_that_always_queues_itself_does_not_starve_the_caller() {
    let rcu = fresh();
    call(0, again);
    call(1, nothing);
    for _ in 0..5 {
        rcu.quiescent();
        assert!(rcu.needs_quiescent());
    }
    assert_eq!(log(), [0, 1, 0, 0, 0, 0]);
    rcu.barrier();
    assert_eq!(log(), [0]);
}

#[test]
fn t45_dropped_with_callbacks_runs_them_and_theirs() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    unsafe fn count(_: NonNull<Head>) {
        RAN.fetch_add(1, Ordering::Relaxed);
    }
    let heads = [Head::new(), Head::new()];
    let rcu = Tiny::new();
    for head in &heads {
        // SAFETY: the heads outlive the RCU, are on no list, and nobody reads them.
        unsafe { rcu.call(NonNull::from(head), Callback::Run(count)) };
    }
    drop(rcu);
    assert_eq!(RAN.load(Ordering::Relaxed), 2);

    let leaks = Tiny::new();
    // SAFETY: as above.
    unsafe { leaks.call(NonNull::from(&heads[0]), Callback::Run(count)) };
    std::mem::forget(leaks.read_lock());
    drop(leaks);
    assert_eq!(RAN.load(Ordering::Relaxed), 2, "a section that never ends");
}

#[test]
fn t46_early_boot() {
    // SAFETY: this test's thread alone uses it.
    static EARLY: TinyStatic = unsafe { TinyStatic::new(Tiny::new()) };
    RCU.set(Some(&EARLY));
    let (asked, taken) = (EARLY.start(), EARLY.snapshot());
    call(7, nothing);
    EARLY.synchronize();
    assert!(EARLY.poll(asked) && EARLY.poll(taken));
    assert_eq!(log(), [], "synchronize runs no callback");
    assert!(EARLY.tick(false));
    EARLY.quiescent();
    assert_eq!(log(), [7]);
    assert!(!EARLY.tick(false));
}

#[test]
fn inside_a_section_waiting_is_refused_and_nothing_ends() {
    let rcu = fresh();
    let done = rcu.start();
    rcu.synchronize();
    let guard = rcu.read_lock();
    let cookie = rcu.start();
    call(1, nothing);
    for refused in [
        (|| current().synchronize()) as fn(),
        || current().quiescent(),
        || current().barrier(),
        || assert!(current().tick(true)),
        || current().synchronize_expedited(),
    ] {
        assert!(message(refused).contains("inside a read-side critical section"));
    }
    rcu.wait(done);
    assert!(rcu.drive() && rcu.tick(false));
    assert!(!rcu.poll(cookie));
    assert_eq!(log(), []);
    drop(guard);
    assert!(!rcu.drive());
    assert!(rcu.poll(cookie));
    assert!(rcu.tick(false), "a callback is ripe");
    rcu.quiescent();
    assert_eq!(log(), [1]);
}

#[test]
fn t6_a_tick_in_user_mode_is_a_quiescent_state() {
    let rcu = fresh();
    let cookie = rcu.start();
    assert!(rcu.tick(false) && !rcu.poll(cookie));
    assert!(!rcu.tick(true) && rcu.poll(cookie));
    call(1, nothing);
    assert!(
        rcu.tick(true),
        "ripe, and to be run outside of the interrupt"
    );
    assert_eq!(log(), []);
    rcu.quiescent();
    assert_eq!(log(), [1]);
}

#[test]
fn a_callback_may_do_what_the_table_says() {
    let rcu = fresh();
    call(1, |_| {
        let rcu = current();
        call(3, nothing);
        let guard = rcu.read_lock();
        let cookie = rcu.start();
        assert!(!rcu.poll(cookie));
        drop(guard);
        rcu.synchronize();
        assert!(rcu.poll(cookie));
        rcu.quiescent();
        assert_eq!(rcu.pending(), 1, "3 is ripe; 2 comes first");
        assert!(message(|| rcu.barrier()).contains("inside a callback"));
    });
    call(2, nothing);
    rcu.quiescent();
    assert_eq!(log(), [1, 2]);
    rcu.quiescent();
    assert_eq!(log(), [3]);
}

#[test]
fn an_interrupt_queues_reads_and_ticks_anywhere() {
    fn interrupt() {
        let rcu = current();
        let guard = rcu.read_lock();
        call(100, nothing);
        drop(guard);
        let _ = rcu.tick(false);
        let _ = rcu.drive();
    }
    let rcu = fresh();
    // Over a section, over a critical section of the interrupted code, and over a callback.
    let guard = rcu.read_lock();
    let cookie = rcu.start();
    interrupt();
    assert!(!rcu.poll(cookie));
    drop(guard);
    critical_section::with(|_| interrupt());
    assert_eq!(rcu.pending(), 2);
    call(1, |_| interrupt());
    rcu.quiescent();
    assert_eq!(log(), [100, 100, 1]);
    rcu.barrier();
    assert_eq!(log(), [100]);
    assert_eq!(rcu.pending(), 0);
}

#[test]
fn a_panic_in_a_callback_loses_only_that_one() {
    let rcu = fresh();
    call(1, nothing);
    call(2, |_| {
        call(5, nothing);
        current().synchronize();
        panic!("callback 2")
    });
    call(3, |_| call(4, nothing));
    assert_eq!(message(|| rcu.quiescent()), "callback 2");
    assert_eq!((log(), rcu.pending()), (vec![1, 2], 2));
    rcu.barrier();
    rcu.barrier();
    assert_eq!(log(), [3, 5, 4]);
}

#[test]
fn an_offset_without_a_way_to_free_is_refused() {
    #[repr(C)]
    struct Object {
        value: usize,
        head: Head,
    }
    rcu_core::has_head!(Object, head);
    let rcu = fresh();
    let object = Object {
        value: 1,
        head: Head::new(),
    };
    let at = <Object as rcu_core::HasHead>::OFFSET;
    let text = message(|| {
        // SAFETY: refused, so that the debts do not arise.
        unsafe { rcu.call(NonNull::from(&object.head), Callback::Free(at)) };
    });
    assert!(text.contains("with_kfree"), "{text}");
    assert_eq!((object.value, rcu.pending()), (1, 0));
}
