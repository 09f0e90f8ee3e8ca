//! K1: the two meanings of a head's function word. R18: heads that know that they are queued.

#![cfg(not(loom))]

use rcu_core::{Callback, HasHead, Head, HeadFn, HeadOffset, MAX_OFFSET_WORDS, has_head};
use rcu_core::{CbList, HeadStack};
#[cfg(any(debug_assertions, feature = "debug-heads"))]
use rcu_core::{double_calls, on_double_call};
use std::panic::catch_unwind;
use std::ptr::NonNull;
#[cfg(any(debug_assertions, feature = "debug-heads"))]
use std::sync::atomic::{AtomicUsize, Ordering};

const WORD: usize = size_of::<usize>();

unsafe fn one(_: NonNull<Head>) {
    std::hint::black_box(1);
}

unsafe fn other(_: NonNull<Head>) {
    std::hint::black_box(2);
}

#[test]
fn every_offset_comes_back() {
    let head = Head::new();
    for words in 0..MAX_OFFSET_WORDS {
        let at = HeadOffset::from_bytes(words * WORD);
        assert_eq!(at.bytes(), words * WORD);
        head.set_callback(Callback::Free(at));
        assert!(matches!(head.callback(), Callback::Free(got) if got == at));
    }
}

#[test]
fn functions_come_back() {
    let head = Head::new();
    for func in [one as HeadFn, other] {
        head.set_callback(Callback::Run(func));
        match head.callback() {
            // SAFETY: both functions ignore their argument.
            Callback::Run(got) => unsafe { got(NonNull::from(&head)) },
            not => panic!("{not:?}"),
        }
        let Callback::Run(got) = head.callback() else {
            panic!("an offset")
        };
        assert_eq!(got as usize, func as usize);
    }
}

#[test]
fn offsets_that_do_not_fit_are_refused() {
    for bytes in [
        1,
        WORD - 1,
        MAX_OFFSET_WORDS * WORD,
        usize::MAX / WORD * WORD,
    ] {
        assert!(
            catch_unwind(|| HeadOffset::from_bytes(bytes)).is_err(),
            "{bytes}"
        );
    }
    assert_eq!(
        HeadOffset::from_bytes((MAX_OFFSET_WORDS - 1) * WORD).bytes(),
        4095 * WORD
    );
}

#[test]
fn from_an_object_to_its_head_and_back() {
    #[repr(C)]
    struct Deep {
        data: [usize; 4095],
        head: Head,
        after: u8,
    }
    has_head!(Deep, head);
    let deep = Box::new(Deep {
        data: [3; 4095],
        head: Head::new(),
        after: 7,
    });
    let object = NonNull::from(Box::leak(deep));
    // SAFETY: the object is valid.
    let head = unsafe { Deep::head_of(object) };
    assert_eq!(head.addr().get() - object.addr().get(), 4095 * WORD);
    // SAFETY: the head is that of the object above, whose provenance it has.
    let back = unsafe { Deep::OFFSET.object(head) };
    assert_eq!(back, object.cast());
    // SAFETY: made by `Box::leak` above.
    let deep = unsafe { Box::from_raw(back.cast::<Deep>().as_ptr()) };
    assert_eq!((deep.data[4094], deep.after), (3, 7));
}

#[test]
fn a_fresh_head_is_on_no_list() {
    let head = Head::default();
    assert!(head.next().is_null());
    assert!(matches!(head.callback(), Callback::Free(at) if at.bytes() == 0));
    assert_eq!(size_of::<Head>(), 2 * WORD);
}

/// Heads are watched in debug builds and with the feature.
const WATCHED: bool = cfg!(any(debug_assertions, feature = "debug-heads"));

#[test]
fn r18_a_head_is_queued_from_call_until_it_is_popped() {
    let heads = [Head::new(), Head::new()];
    let is = |i: usize, queued: bool| {
        assert_eq!(heads[i].is_queued(), WATCHED.then_some(queued), "head {i}");
    };
    let mut list = CbList::new();
    for head in &heads {
        assert!(head.begin_call(Callback::Run(one)));
        // SAFETY: the heads outlive the list, and are on no other.
        unsafe { list.push_back(NonNull::from(head)) };
    }
    (0..2).for_each(|i| is(i, true));
    assert!(heads[1].next().is_null(), "the end reads as null");
    list.pop_front();
    is(0, false);
    is(1, true);
    list.pop_front();
    is(1, false);
    assert!(heads[0].begin_call(Callback::Run(one)), "may be used again");
    let stack = HeadStack::new();
    // SAFETY: the head outlives the stack, and is on no list.
    unsafe { stack.push(NonNull::from(&heads[0])) };
    is(0, true);
    let mut taken = stack.take();
    is(0, true);
    taken.pop_front();
    is(0, false);
}

#[test]
fn r18_zeroed_memory_is_a_head_on_no_list() {
    // SAFETY: `Head` is `ZeroInit`.
    let head: Head = unsafe { std::mem::zeroed() };
    assert!(head.next().is_null() && head.is_queued() != Some(true));
    assert!(head.begin_call(Callback::Run(one)));
}

#[test]
fn r18_was_called_knows_the_function_until_it_is_reset() {
    let head = Head::new();
    // One address of it: a function may have several.
    let one: HeadFn = one;
    assert!(!head.was_called(one));
    head.set_callback(Callback::Run(one));
    assert!(head.was_called(one) && !head.was_called(other));
    head.reset();
    assert!(!head.was_called(one));
}

/// One test for all that is said about double calls: the counter and the hook are the process's.
#[test]
#[cfg(any(debug_assertions, feature = "debug-heads"))]
fn r18_a_double_call_is_refused_leaks_and_is_reported_three_times() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    unsafe fn counted(_: NonNull<Head>) {
        RUNS.fetch_add(1, Ordering::Relaxed);
    }
    on_double_call(|report| {
        assert!(report.to_string().contains("tests/head.rs"), "{report}");
        TOLD.fetch_add(1, Ordering::Relaxed);
    });
    let heads: [Head; 5] = std::array::from_fn(|_| Head::new());
    let mut list = CbList::new();
    for head in &heads {
        assert!(head.begin_call(Callback::Run(counted)));
        // SAFETY: the heads outlive the list, and are on no other.
        unsafe { list.push_back(NonNull::from(head)) };
    }
    // The list's last head and inner ones, which differ in what `next` holds; the fourth stays as it is.
    for head in [&heads[4], &heads[0], &heads[1], &heads[2]] {
        assert!(!head.begin_call(Callback::Run(other)));
    }
    assert_eq!((double_calls(), TOLD.load(Ordering::Relaxed)), (4, 3));
    assert_eq!(list.len(), 5, "the list is whole");
    while let Some(head) = list.pop_front() {
        // SAFETY: popped heads of this test are valid.
        let Callback::Run(func) = unsafe { head.as_ref() }.callback() else {
            panic!("an offset")
        };
        // SAFETY: the functions of this test take any head.
        unsafe { func(head) };
    }
    assert_eq!(RUNS.load(Ordering::Relaxed), 1, "four leaked, one ran");
    assert!(heads[0].begin_call(Callback::Run(counted)), "popped since");
}
