//! Historic bugs by their row, refusals, and interrupts at the points where they may come.

use rcu_core::{Callback, Cookie, FullCookie, GracePeriod, HasHead, Head, Online, Rcu};
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
fn r16_t46_early_boot() {
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
    let full = EARLY.snapshot_full();
    EARLY.synchronize_expedited();
    assert!(EARLY.poll_full(full));
}

#[test]
fn r3_r21_inside_a_section_waiting_is_refused_and_nothing_ends() {
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
        || current().wait_expedited(current().snapshot()),
        || current().wait_full(current().snapshot_full()),
        || current().wait_full_expedited(current().snapshot_full()),
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
fn tn6_a_tick_in_user_mode_is_a_quiescent_state() {
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
fn r4_a_callback_may_do_what_the_table_says() {
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
fn r4_an_interrupt_queues_reads_and_ticks_anywhere() {
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

#[test]
fn tn1_a_wait_outside_of_sections_is_a_grace_period() {
    let rcu = fresh();
    call(1, nothing);
    for (passed, wait) in [
        (|| current().synchronize()) as fn(),
        || current().synchronize_expedited(),
        || current().wait(current().snapshot()),
        || current().wait_full(current().snapshot_full()),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(rcu.grace_periods(), passed);
        let cookie = rcu.snapshot();
        wait();
        assert!(rcu.poll(cookie));
    }
    rcu.wait(Cookie::COMPLETED);
    assert_eq!(rcu.grace_periods(), 4, "one each, none for what is done");
    assert_eq!(log(), [], "no callback ran");
}

#[test]
fn tn2_a_quiescent_state_makes_all_that_wait_ready() {
    let rcu = fresh();
    call(1, nothing);
    call(2, |_| call(4, nothing));
    call(3, nothing);
    rcu.synchronize();
    call(5, nothing);
    assert_eq!((log(), rcu.pending()), (vec![], 4));
    rcu.quiescent();
    assert_eq!(log(), [1, 2, 3, 5], "and what it makes ready itself");
    assert_eq!(rcu.pending(), 1);
}

#[test]
fn tn3_all_that_is_ready_runs_and_what_is_queued_meanwhile_comes_after() {
    let rcu = fresh();
    for i in 0..2000 {
        call(i, |event| {
            if event.number % 100 == 0 {
                call(5000 + event.number, nothing);
            }
        });
    }
    rcu.quiescent();
    assert_eq!(log(), (0..2000).collect::<Vec<_>>(), "no limit to a batch");
    rcu.quiescent();
    assert_eq!(log(), (50..70).map(|n| n * 100).collect::<Vec<_>>());
}

#[test]
fn tn4_a_cookie_is_done_once_the_sequence_has_moved() {
    let rcu = fresh();
    assert!(!rcu.needs_quiescent());
    let (small, full) = (rcu.snapshot(), rcu.snapshot_full());
    assert!(!rcu.needs_quiescent(), "a snapshot asks for nothing");
    assert_eq!((rcu.start(), rcu.start_full()), (small, full));
    assert!(rcu.needs_quiescent() && rcu.tick(false), "asked for");
    assert!(!rcu.poll(small) && !rcu.poll_full(full));
    rcu.quiescent();
    assert!(rcu.poll(small) && rcu.poll_full(full) && !rcu.needs_quiescent());
    assert_ne!(rcu.snapshot(), small);
    assert!(rcu.poll(Cookie::COMPLETED) && rcu.poll_full(FullCookie::COMPLETED));
}

#[test]
fn tn4_r10_at_most_one_cookie_is_live() {
    let rcu = fresh();
    let mut cookies = Vec::new();
    for i in 0..700 {
        let guard = rcu.read_lock();
        cookies.extend([rcu.start_full(), rcu.start_full_expedited()]);
        assert!(rcu.drive(), "round {i}: wanted, and nobody may let it pass");
        cookies.retain(|&cookie| !rcu.poll_full(cookie));
        cookies.dedup();
        assert_eq!(cookies.len(), 1, "one sequence that is always idle");
        drop(guard);
        rcu.drive();
    }
}

#[test]
fn tn5_barrier_runs_all_at_once_expedited_is_normal_lazy_is_ordinary() {
    let rcu = fresh();
    static HEADS: [Head; 3] = [const { Head::new() }; 3];
    static RAN: AtomicUsize = AtomicUsize::new(0);
    unsafe fn note(head: NonNull<Head>) {
        let number = RAN.fetch_add(1, Ordering::Relaxed);
        assert_eq!(head, NonNull::from(&HEADS[number]), "out of order");
    }
    for (i, head) in HEADS.iter().enumerate() {
        let (head, callback) = (NonNull::from(head), Callback::Run(note));
        if i % 2 == 0 {
            // SAFETY: a static head, on no list, queued once.
            unsafe { rcu.call_lazy(head, callback) };
        } else {
            // SAFETY: as above.
            unsafe { rcu.call(head, callback) };
        }
    }
    assert!(rcu.tick(false), "a lazy callback is wanted like any other");
    let before = rcu.grace_periods();
    rcu.barrier();
    assert_eq!(RAN.load(Ordering::Relaxed), 3);
    assert_eq!(rcu.grace_periods(), before + 1);
    assert_eq!(rcu.start_expedited(), rcu.start());
    assert_eq!(rcu.start_full_expedited(), rcu.start_full());
    rcu.synchronize_expedited();
    assert_eq!(rcu.grace_periods(), before + 2);
}

/// The head lies as far into its object as the encoding reaches; nothing is said but the offset, and the object goes
/// without a function of its own (mail 0 of 2008). Without a head: wait, then free.
#[test]
fn tn7_post_2008_post_2020_headless_offsets_and_objects_without_a_head() {
    #[repr(C)]
    struct Object<const BEFORE: usize> {
        before: [usize; BEFORE],
        head: Head,
    }
    // SAFETY: `offset_of!` of a field of type `Head`.
    unsafe impl<const BEFORE: usize> HasHead for Object<BEFORE> {
        const OFFSET: rcu_core::HeadOffset =
            rcu_core::HeadOffset::from_bytes(std::mem::offset_of!(Self, head));
    }
    thread_local! {
        static FREED: RefCell<Vec<NonNull<u8>>> = const { RefCell::new(Vec::new()) };
    }
    unsafe fn kfree(object: NonNull<u8>) {
        FREED.with_borrow_mut(|freed| freed.push(object));
    }
    fn retire<const BEFORE: usize>(rcu: &Tiny) -> NonNull<u8> {
        let object = Box::leak(Box::new(Object {
            before: [BEFORE; BEFORE],
            head: Head::new(),
        }));
        assert_eq!(object.before, [BEFORE; BEFORE]);
        let object = NonNull::from(object);
        // SAFETY: the object is leaked.
        let head = unsafe { Object::head_of(object) };
        let callback = Callback::Free(Object::<BEFORE>::OFFSET);
        // SAFETY: the object is leaked, off every list, unpublished, and `kfree` only notes it.
        unsafe { rcu.call(head, callback) };
        object.cast()
    }
    let rcu = Tiny::new().with_kfree(kfree);
    let all = [
        retire::<0>(&rcu),
        retire::<1>(&rcu),
        retire::<511>(&rcu),
        retire::<{ rcu_core::MAX_OFFSET_WORDS - 1 }>(&rcu),
    ];
    assert_eq!(FREED.take(), []);
    rcu.quiescent();
    assert_eq!(FREED.take(), all);

    let headless = Box::new(7);
    rcu.synchronize();
    drop(headless);
}

#[test]
fn r20_quiescent_state_of_a_thread_that_is_always_inside() {
    let rcu = fresh();
    let mut online = Online::new(rcu);
    let cookie = rcu.start();
    call(1, nothing);
    assert!(rcu.drive());
    online.quiescent();
    assert!(rcu.poll(cookie) && rcu.in_section());
    let passed = rcu.grace_periods();
    online.quiescent();
    assert_eq!(rcu.grace_periods(), passed, "nobody wanted one");
    assert_eq!(log(), [], "runs no callback");
    online.offline(|| rcu.quiescent());
    assert_eq!(log(), [1]);
    let inner = rcu.read_lock();
    let cookie = rcu.start();
    online.quiescent();
    assert!(!rcu.poll(cookie), "beside another guard");
    drop(inner);
    online.synchronize();
    assert!(rcu.poll(cookie));
}

/// The message says where the outermost section was entered, the panic where the wait stands.
#[test]
#[cfg(any(debug_assertions, feature = "places"))]
fn r21_a_refusal_names_the_place_of_the_section() {
    let rcu = fresh();
    let (outer, line) = (rcu.read_lock(), line!());
    let inner = rcu.read_lock();
    let here = format!("(entered at {}:{line}:", file!());
    for refused in [
        (|| current().synchronize()) as fn(),
        || current().barrier(),
        || current().quiescent(),
    ] {
        let text = message(refused);
        assert!(text.contains(&here), "{text}");
    }
    drop((inner, outer));
    let (_again, line) = (rcu.read_lock(), line!());
    let text = message(|| current().synchronize_expedited());
    assert!(text.contains(&format!(":{line}:")), "{text}");
}

#[test]
fn statistics_count_what_happened() {
    let rcu = fresh();
    call(1, nothing);
    call(2, |_| panic!("callback 2"));
    call(3, nothing);
    let of = |rcu: &Tiny| {
        let stats = rcu.stats();
        (
            stats.grace_periods,
            stats.callbacks_queued,
            stats.callbacks_run,
        )
    };
    assert_eq!(of(rcu), (0, 3, 0));
    assert_eq!(message(|| rcu.quiescent()), "callback 2");
    assert_eq!(of(rcu), (1, 3, 2));
    rcu.barrier();
    assert_eq!(of(rcu), (2, 3, 3));
    assert_eq!(log(), [1, 2, 3]);
    assert_eq!(
        rcu.stats().to_string(),
        "grace periods 2, callbacks queued 3, run 3"
    );
    assert!(format!("{rcu:?}").contains("callbacks_run: 3"));
    assert_eq!(Tiny::default().stats(), Default::default());
}
