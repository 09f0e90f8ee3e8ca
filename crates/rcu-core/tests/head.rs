//! K1: the two meanings of a head's function word.

#![cfg(not(loom))]

use rcu_core::{Callback, HasHead, Head, HeadFn, HeadOffset, MAX_OFFSET_WORDS, has_head};
use std::panic::catch_unwind;
use std::ptr::NonNull;

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
