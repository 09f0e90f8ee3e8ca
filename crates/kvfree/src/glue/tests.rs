use super::*;
use crate::block::{Block, ENTRIES};
use crate::objects::Objects;
use core::cell::{Cell, RefCell};
use core::mem::MaybeUninit;
use core::ptr;
use rcu_core::Cookie;
use std::vec::Vec;

std::thread_local! {
    /// What was freed: by which function, in which call, which object.
    static FREED: RefCell<Vec<(char, usize, usize)>> = const { RefCell::new(Vec::new()) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Objects are numbers here, and none is the allocator's.
struct None_;

// SAFETY: objects are numbers here.
unsafe impl Objects for None_ {
    unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
        false
    }
    fn is_large(&self, _object: NonNull<u8>) -> bool {
        false
    }
    fn size_bytes(&self, _object: NonNull<u8>) -> usize {
        0
    }
    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        note('-', objects);
    }
    fn barrier(&self) {}
    fn reap(&self) -> usize {
        0
    }
    fn waiting_bytes(&self) -> usize {
        0
    }
}

fn note(by: char, objects: &[NonNull<u8>]) {
    let call = CALLS.get();
    CALLS.set(call + 1);
    FREED.with_borrow_mut(|all| all.extend(objects.iter().map(|o| (by, call, o.addr().get()))));
}

unsafe fn many_a(objects: &mut [NonNull<u8>]) -> usize {
    note('a', objects);
    0
}

unsafe fn many_b(objects: &mut [NonNull<u8>]) -> usize {
    note('b', objects);
    usize::from(objects.len() > 1)
}

unsafe fn each(object: NonNull<u8>) {
    note('e', &[object]);
}

fn number(n: usize) -> NonNull<u8> {
    NonNull::new(ptr::without_provenance_mut(n)).unwrap()
}

struct Page(NonNull<Block>);

impl Page {
    fn new(kind: Kind) -> Self {
        let page = NonNull::from(Box::leak(Box::new(MaybeUninit::<Block>::uninit())));
        // SAFETY: a page's worth of memory.
        Self(unsafe { Block::init(page.cast(), kind) })
    }

    fn block(&mut self) -> &mut Block {
        // SAFETY: this value's own.
        unsafe { self.0.as_mut() }
    }

    /// Pushes if there is room.
    fn push(&mut self, n: usize, glue: Option<Glue>) -> bool {
        let room = self.block().has_room(glue);
        if room {
            self.block().push(number(n), glue, 1, Cookie::COMPLETED);
        }
        room
    }

    fn free(&mut self) -> (Freed, Vec<(char, usize, usize)>) {
        CALLS.set(0);
        // SAFETY: numbers may be freed at any time.
        let freed = unsafe { self.block().free_all(&None_) };
        (freed, FREED.take())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by nobody.
        drop(unsafe { Box::from_raw(self.0.cast::<MaybeUninit<Block>>().as_ptr()) });
    }
}

const A: Option<Glue> = Some(Glue::Many(many_a));
const B: Option<Glue> = Some(Glue::Many(many_b));

#[test]
fn one_type_takes_one_word_and_one_call() {
    let mut page = Page::new(Kind::Typed);
    let n = (1..).take_while(|&n| page.push(n, A)).count();
    assert_eq!((n, page.block().nr_objects()), (ENTRIES, ENTRIES));
    let (freed, seen) = page.free();
    assert_eq!(freed, Freed::default());
    assert_eq!(seen, (1..=n).map(|n| ('a', 0, n)).collect::<Vec<_>>());
    assert_eq!(page.block().nr_objects(), 0);
}

#[test]
fn types_that_take_turns_are_freed_by_type() {
    let mut page = Page::new(Kind::Typed);
    let n = (1..)
        .take_while(|&n| page.push(n, if n.is_multiple_of(2) { A } else { B }))
        .count();
    assert_eq!((n, page.block().nr_objects()), (ENTRIES / 2, ENTRIES / 2));
    let mut count = 0;
    page.block().for_each(|_| count += 1);
    assert_eq!(count, n);
    let (freed, mut seen) = page.free();
    // A call for each so many of a type, and `many_b` says that one in each of its calls panicked.
    let calls = |of: usize| of.div_ceil(GATHER);
    assert_eq!(freed.panicked, calls(n.div_ceil(2)));
    assert_eq!(
        seen.last().unwrap().1 + 1,
        calls(n / 2) + calls(n.div_ceil(2))
    );
    seen.sort_by_key(|&(_, _, n)| n);
    let by = |n: usize| if n.is_multiple_of(2) { 'a' } else { 'b' };
    assert!(
        seen.iter()
            .map(|&(f, _, n)| (f, n))
            .eq((1..=n).map(|n| (by(n), n)))
    );
}

/// Whenever the second type comes, each object is freed by its own function, and no block holds fewer than one of pairs.
#[test]
fn a_run_is_spread_or_sealed() {
    // Each length takes as many steps: not all where a step is dear.
    let every = if cfg!(miri) { 83 } else { 1 };
    for k in (1..=ENTRIES).step_by(every) {
        let mut page = Page::new(Kind::Typed);
        assert!((1..=k).all(|n| page.push(n, A)));
        let mixed = page.push(k + 1, B);
        assert_eq!(mixed, 2 * (k + 1) <= ENTRIES, "{k}");
        assert!(mixed || k >= ENTRIES / 2, "{k}");
        assert_eq!(page.block().nr_objects(), k + usize::from(mixed));
        let (_, mut seen) = page.free();
        seen.sort_by_key(|&(_, _, n)| n);
        let last = mixed.then_some(('b', k + 1));
        let expected = (1..=k).map(|n| ('a', n)).chain(last);
        assert!(seen.iter().map(|&(f, _, n)| (f, n)).eq(expected), "{k}");
    }
}

/// K18: at the latest when its block is freed, and freed once; a `DropFn`'s argument is its own affair.
#[test]
fn k18_what_is_twice_in_a_block_is_freed_once() {
    for (kind, glue) in [(Kind::Typed, A), (Kind::Large, None)] {
        let mut page = Page::new(kind);
        for n in [16, 32, 16, 48, 32, 16] {
            assert!(page.push(n, glue));
        }
        let (freed, seen) = page.free();
        assert_eq!((freed.doubles, freed.panicked), (3, 0));
        assert_eq!(freed.double, Some(number(16)));
        assert!(seen.iter().map(|s| s.2).eq([16, 32, 48]));
    }
    let mut mixed = Page::new(Kind::Typed);
    assert!(mixed.push(16, A) && mixed.push(32, B) && mixed.push(16, A));
    let (freed, seen) = mixed.free();
    assert_eq!((freed.doubles, seen.len()), (1, 2));
    let mut counted = Page::new(Kind::Glue);
    let each = Some(Glue::Each(each));
    assert!(counted.push(16, each) && counted.push(16, each));
    let (freed, seen) = counted.free();
    assert_eq!((freed.doubles, seen.len()), (0, 2));
}

// Without `std` nothing is contained.
#[cfg(feature = "std")]
#[test]
fn what_panics_is_counted_and_the_rest_goes_on() {
    let objects: Vec<_> = (1..=10).map(number).collect();
    let mut seen = Vec::new();
    let panicked = each_contained(&objects, |object| {
        let n = object.addr().get();
        seen.push(n);
        assert!(!n.is_multiple_of(3), "expected");
    });
    assert_eq!(panicked, 3);
    assert!(seen.into_iter().eq(1..=10));
}
