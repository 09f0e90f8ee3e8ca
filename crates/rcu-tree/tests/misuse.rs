//! What must not be done, and what may be though it looks odd: waits inside sections, guards that end in any order, late,
//! or never.
#![cfg(all(feature = "std", not(loom)))]

mod common;
#[path = "common/odd.rs"]
mod odd;

use common::tree;
use odd::{odd, without_slot};
use proptest::prelude::*;
use rcu_core::cpu::{Cpus, Threads};
use rcu_core::{Callback, GracePeriod, Guard, Head, Online, Rcu};
use rcu_tree::{NoTrace, StallConfig, Tree};
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;

/// Where places are kept.
const PLACES: bool = cfg!(any(debug_assertions, feature = "places"));

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.unwrap_or_else(|| (*panic.downcast_ref::<&str>().unwrap()).to_owned())
}

/// What `f` panics with.
fn panic_of(f: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(f)).expect_err("it should have panicked");
    message(&*panic)
}

/// What `f` panics with, which waits inside a section entered at `line` of this file.
fn assert_names(line: u32, f: impl FnOnce()) {
    let text = panic_of(f);
    assert!(
        text.contains("inside a read-side critical section"),
        "{text}"
    );
    assert!(text.contains("drop the guard first"), "{text}");
    let place = format!("entered at {}:{line}:", file!());
    assert_eq!(text.contains(&place), PLACES, "{place} in: {text}");
}

/// A way to wait for readers, and its name.
type Wait<R> = (&'static str, fn(&R));

/// Everything that waits for readers.
fn waits<R: Rcu>() -> Vec<Wait<R>> {
    vec![
        ("wait", |rcu| rcu.wait(rcu.start())),
        ("synchronize", |rcu| rcu.synchronize()),
        ("synchronize_expedited", |rcu| rcu.synchronize_expedited()),
        ("wait_expedited", |rcu| {
            rcu.wait_expedited(rcu.start_expedited());
        }),
        ("wait_full", |rcu| rcu.wait_full(rcu.start_full())),
        ("wait_full_expedited", |rcu| {
            rcu.wait_full_expedited(rcu.start_full_expedited());
        }),
        ("barrier", |rcu| rcu.barrier()),
    ]
}

#[test]
fn r3_every_wait_inside_a_section_panics_and_leaves_it_intact() {
    let tree = tree(16, 64);
    let slot = Threads.current().unwrap();
    for (name, wait) in waits() {
        let guard = tree.read_lock();
        let line = line!() - 1;
        let cookie = tree.start();
        assert_names(line, || wait(tree));
        assert_eq!(tree.slot_stats(slot).unwrap().nesting, 1, "after {name}");
        tree.drive();
        assert!(
            !tree.poll(cookie),
            "the section is over for others after {name}"
        );
        drop(guard);
        wait(tree);
        tree.wait(cookie);
        assert!(tree.poll(cookie), "{name} is right outside");
    }
}

#[test]
fn r3_waits_that_have_nothing_to_wait_for_are_right_inside() {
    let tree = tree(16, 64);
    let (small, full) = (tree.start(), tree.start_full());
    tree.synchronize();
    let _guard = tree.read_lock();
    tree.wait(small);
    tree.wait_full(full);
}

#[test]
fn r21_the_panic_names_the_line_that_entered_whatever_the_way_in() {
    rcu_tree::static_tree! { struct Named; }
    let tree = tree(16, 64);

    let guard = tree.read_lock();
    assert_names(line!() - 1, || tree.synchronize());
    drop(guard);

    let by_reference = &tree;
    let guard = Guard::new(by_reference);
    assert_names(line!() - 1, || tree.synchronize());
    drop(guard);

    tree.read(|_| assert_names(line!(), || tree.synchronize()));

    let token = tree.enter();
    assert_names(line!() - 1, || tree.synchronize());
    // SAFETY: from just above, on this thread.
    unsafe { tree.exit(token) };

    let outermost = line!() + 1;
    let guard = Named.read_lock();
    let nested = rcu_core::read_lock::<Named>();
    assert_names(outermost, || Named.synchronize());
    drop(guard);
    assert_names(outermost, || Named.barrier());
    drop(nested);

    rcu_core::read::<Named, _>(|_| assert_names(line!(), || Named.synchronize()));
    Named.synchronize();
}

#[test]
fn r21_an_online_thread_is_known_by_where_it_went_online_last() {
    let tree = tree(16, 64);
    let mut online = Online::new(tree);
    assert_names(line!() - 1, || tree.synchronize());
    online.quiescent();
    assert_names(line!() - 1, || tree.synchronize());
    online.offline(|| tree.synchronize());
    assert_names(line!() - 1, || tree.synchronize());
    online.synchronize();
    assert_names(line!() - 1, || tree.barrier());
    drop(online);
    tree.synchronize();
}

#[test]
fn r3_the_panic_is_the_callers() {
    let tree = tree(16, 64);
    let _guard = tree.read_lock();
    static LINE: Mutex<Option<(String, u32)>> = Mutex::new(None);
    let old = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let ours = info.payload_as_str().is_some_and(|text| {
            text.starts_with("waiting for a grace period inside") && text.contains("misuse.rs")
                || !PLACES
        });
        if ours && thread::current().name() == Some("r3_the_panic_is_the_callers") {
            let place = info.location().unwrap();
            *LINE.lock().unwrap() = Some((place.file().to_owned(), place.line()));
        } else {
            old(info);
        }
    }));
    let line = line!() + 1;
    let _ = catch_unwind(AssertUnwindSafe(|| tree.synchronize()));
    let seen = LINE.lock().unwrap().take().unwrap();
    assert_eq!(seen, (file!().to_owned(), line));
}

#[test]
fn r21_readers_without_a_slot_are_found_too_and_only_in_their_own_tree() {
    let (tree, other) = (
        odd(NoTrace, StallConfig::never()),
        odd(NoTrace, StallConfig::never()),
    );
    without_slot(|| {
        for (_, wait) in waits() {
            let guard = tree.read_lock();
            let line = line!() - 1;
            let nested = tree.read_lock();
            assert_names(line, || wait(tree));
            wait(other);
            drop(guard);
            assert_names(line, || wait(tree));
            drop(nested);
            wait(tree);
        }
    });
}

#[test]
fn r3_a_forgotten_guard_makes_its_thread_panic_not_hang() {
    let tree = tree(16, 64);
    thread::spawn(|| {
        let line = line!() + 1;
        std::mem::forget(tree.read_lock());
        assert_names(line, || tree.synchronize());
        assert_names(line, || tree.barrier());
    })
    .join()
    .unwrap();
}

#[test]
fn r1_a_section_of_one_tree_is_none_of_another() {
    let (one, other) = (tree(16, 64), tree(8, 8));
    let _guard = one.read_lock();
    other.synchronize();
    other.barrier();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 64 }))]

    #[test]
    fn r1_guards_end_in_any_order(
        trees in prop::collection::vec(prop::bool::ANY, 1..12),
        picks in prop::collection::vec(prop::sample::Index::arbitrary(), 12),
    ) {
        static TREES: Mutex<Option<[&'static Tree<'static, Threads>; 2]>> = Mutex::new(None);
        let both = *TREES.lock().unwrap().get_or_insert_with(|| [tree(16, 64), tree(8, 8)]);
        let mut guards: Vec<_> = trees.iter().map(|&t| (t, both[usize::from(t)].read_lock())).collect();
        let cookies = both.map(GracePeriod::start);
        for pick in picks {
            for (t, tree) in both.into_iter().enumerate() {
                tree.drive();
                let inside = guards.iter().any(|(of, _)| usize::from(*of) == t);
                prop_assert_eq!(tree.poll(cookies[t]), !inside);
            }
            if guards.is_empty() {
                break;
            }
            drop(guards.swap_remove(pick.index(guards.len())));
        }
    }
}

/// Runs `deed` in a child of its own, which must abort and say all of `words`.
fn aborts(case: &str, deed: impl FnOnce(), words: &[&str]) {
    const CASE: &str = "RCU_TREE_ABORT_CASE";
    if std::env::var_os(CASE).is_some() {
        deed();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", case, "--nocapture"])
        .env(CASE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        None,
        "not a signal but an exit: {text}"
    );
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[cfg(not(miri))]
#[test]
fn r1_nesting_that_cannot_be_counted_aborts() {
    let deed = || {
        let tree = tree(16, 64);
        // What would be the end of the count could not be caught either.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            loop {
                std::mem::forget(tree.read_lock());
            }
        }));
    };
    aborts(
        "r1_nesting_that_cannot_be_counted_aborts",
        deed,
        &["nested 65534 deep", "guards were forgotten", "aborting"],
    );
}

#[test]
fn r1_the_deepest_nest_is_counted_right() {
    let tree = tree(16, 64);
    let mut guards: Vec<_> = (0..65_534).map(|_| tree.read_lock()).collect();
    let cookie = tree.start();
    while let Some(guard) = guards.pop() {
        if guards.len() % 8192 == 0 {
            tree.drive();
            assert!(!tree.poll(cookie));
        }
        drop(guard);
    }
    tree.synchronize();
}

#[test]
fn r13_a_barrier_in_a_callback_panics_instead_of_hanging() {
    rcu_tree::static_tree! { struct Nested; }
    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
    /// # Safety
    /// None.
    unsafe fn barrier(_: NonNull<Head>) {
        SAID.lock().unwrap().push(panic_of(|| Nested.barrier()));
        // A grace period can be waited for: readers do not wait for callbacks.
        Nested.synchronize();
    }
    static HEAD: Head = Head::new();
    for _ in 0..2 {
        // SAFETY: static, and on no list: the barrier below waits for it.
        unsafe { Nested.call(NonNull::from(&HEAD), Callback::Run(barrier)) };
        Nested.barrier();
    }
    let said = SAID.lock().unwrap();
    assert_eq!(said.len(), 2);
    assert!(
        said[0].contains("a barrier inside a callback would wait for that callback"),
        "{said:?}"
    );
}

#[test]
fn r13_a_callback_of_one_tree_may_be_a_barrier_of_another() {
    rcu_tree::static_tree! { struct Upper; }
    rcu_tree::static_tree! { struct Lower; }
    static RUN: AtomicUsize = AtomicUsize::new(0);
    /// # Safety
    /// None.
    unsafe fn count(_: NonNull<Head>) {
        RUN.fetch_add(1, Ordering::Relaxed);
    }
    /// # Safety
    /// None.
    unsafe fn barrier(_: NonNull<Head>) {
        static HEAD: Head = Head::new();
        // SAFETY: static, queued once.
        unsafe { Lower.call(NonNull::from(&HEAD), Callback::Run(count)) };
        Lower.barrier();
        assert_eq!(RUN.fetch_add(1, Ordering::Relaxed), 1);
    }
    static HEAD: Head = Head::new();
    // SAFETY: static, queued once.
    unsafe { Upper.call(NonNull::from(&HEAD), Callback::Run(barrier)) };
    Upper.barrier();
    assert_eq!(RUN.load(Ordering::Relaxed), 2);
}

/// What a thread does in a destructor of its thread-locals.
struct Late(Option<Box<dyn FnOnce()>>);

impl Drop for Late {
    fn drop(&mut self) {
        (self.0.take().unwrap())();
    }
}

thread_local! {
    static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
}

/// Runs `first` on a thread of its own, and what it returns in a destructor of a thread-local that was there before.
fn at_the_end_of_a_thread(first: impl FnOnce() -> Box<dyn FnOnce()> + Send + 'static) {
    static OK: AtomicUsize = AtomicUsize::new(0);
    let before = OK.load(Ordering::SeqCst);
    thread::spawn(move || {
        LATE.with_borrow_mut(|late| *late = Some(Late(Some(Box::new(|| ())))));
        let then = first();
        LATE.with_borrow_mut(|late| {
            late.as_mut().unwrap().0 = Some(Box::new(move || {
                then();
                OK.fetch_add(1, Ordering::SeqCst);
            }));
        });
    })
    .join()
    .unwrap();
    assert!(OK.load(Ordering::SeqCst) > before, "it did not run");
}

/// An object that is freed by a callback, and says so.
#[repr(C)]
struct Object {
    head: Head,
    freed: &'static AtomicBool,
}

impl Object {
    fn retire(tree: &Tree<'_, Threads>, freed: &'static AtomicBool) {
        /// # Safety
        /// 1. `head` belongs to a boxed `Object`.
        unsafe fn free(head: NonNull<Head>) {
            // SAFETY: the head is the first field (1).
            let object = unsafe { Box::from_raw(head.cast::<Object>().as_ptr()) };
            object.freed.store(true, Ordering::SeqCst);
        }
        let head = Head::new();
        let object = NonNull::from(Box::leak(Box::new(Self { head, freed })));
        // SAFETY: never published, queued once, free on any thread.
        unsafe { tree.call(object.cast(), Callback::Run(free)) };
    }
}

#[test]
fn r1_a_guard_kept_past_its_threads_slot_protects_to_its_end() {
    static FREED: AtomicBool = AtomicBool::new(false);
    let tree = tree(16, 64);
    let line = line!() + 3;
    at_the_end_of_a_thread(move || {
        let slot = Threads.current().unwrap();
        let guard = tree.read_lock();
        Object::retire(tree, &FREED);
        let kept = Kept(guard);
        Box::new(move || {
            let kept = kept;
            assert_eq!(Threads.current(), None, "the slot went first");
            let others = thread::spawn(move || {
                let cookie = tree.start();
                tree.drive();
                tree.run_callbacks();
                tree.poll(cookie)
            });
            assert!(!others.join().unwrap() && !FREED.load(Ordering::SeqCst));
            let stats = tree.slot_stats(slot).unwrap();
            assert!(stats.is_lingering && stats.nesting == 1, "{stats}");
            assert!(stats.to_string().contains("its thread has ended"));
            assert_names(line, || tree.synchronize());
            assert_names(line, || tree.barrier());
            drop(kept);
            assert!(!tree.slot_stats(slot).unwrap().is_lingering);
            tree.barrier();
            assert!(FREED.load(Ordering::SeqCst));
        })
    });
    tree.synchronize();
}

/// A guard in a box that is run on its own thread.
struct Kept(
    #[expect(dead_code, reason = "kept for its end")] Guard<&'static Tree<'static, Threads>>,
);

#[test]
fn r1_the_first_use_may_be_in_a_destructor() {
    let tree = tree(16, 64);
    at_the_end_of_a_thread(move || {
        Box::new(move || {
            let guard = tree.read_lock();
            let line = line!() - 1;
            let (send, receive) = mpsc::channel();
            let others = thread::spawn(move || {
                let cookie = tree.start();
                tree.drive();
                send.send(tree.poll(cookie)).unwrap();
                tree.wait(cookie);
            });
            assert!(!receive.recv().unwrap(), "the section was missed");
            assert_names(line, || tree.synchronize());
            drop(guard);
            others.join().unwrap();
            tree.synchronize();
        })
    });
    tree.synchronize();
}
