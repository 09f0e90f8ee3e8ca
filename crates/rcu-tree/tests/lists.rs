//! R18, R22: `RcuList` and watched heads over a real tree, with threads.
#![cfg(all(feature = "std", not(loom)))]

#[path = "common/reclaimer.rs"]
mod reclaimer;

use rcu_core::{Callback, Head, ListNode, Online, Rcu, RcuList, read_lock};
use reclaimer::{Boxes, Readers};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const ALIVE: usize = 0x0a11_7e00;

/// Poisons itself when dropped, and counts.
struct Canary {
    state: AtomicUsize,
    key: usize,
    live: &'static AtomicUsize,
}

impl Canary {
    fn new(key: usize, live: &'static AtomicUsize) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        let state = AtomicUsize::new(ALIVE);
        Self { state, key, live }
    }

    fn key(&self) -> usize {
        let state = self.state.load(Ordering::Relaxed);
        assert_eq!(state, ALIVE, "freed under a reader");
        self.key
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.state.store(0, Ordering::Relaxed);
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

const STAY: usize = 3;
const CHANGES: usize = if cfg!(miri) { 60 } else { 4_000 };

/// Sets the flag however its owner ends, so that nobody waits for one who panicked.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two writers insert, remove, replace and move; readers always see the ones that stay, in order and once, and nothing
/// freed.
#[test]
fn r22_readers_walk_while_writers_change() {
    static LIVE: AtomicUsize = AtomicUsize::new(0);
    // Keys below STAY stay; the rest is 10 and above.
    let list: RcuList<Canary, Boxes> = (0..STAY).map(|key| Canary::new(key, &LIVE)).collect();
    let node = |key| ListNode::new(Canary::new(key, &LIVE));
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for online in [false, true] {
            let (list, done) = (&list, &done);
            s.spawn(move || {
                let check = |stayed: Vec<usize>| assert!(stayed.iter().copied().eq(0..STAY));
                let stayed = |key: &usize| *key < STAY;
                if online {
                    let mut thread = Online::new(Readers);
                    while !done.load(Ordering::Relaxed) {
                        let guard = thread.guard();
                        check(list.iter(&guard).map(Canary::key).filter(stayed).collect());
                        thread.quiescent();
                    }
                } else {
                    while !done.load(Ordering::Relaxed) {
                        let guard = read_lock::<Readers>();
                        check(list.iter(&guard).map(Canary::key).filter(stayed).collect());
                    }
                }
            });
        }
        let _done = SetAtEnd(&done);
        std::thread::scope(|s| {
            for writer in 0..2 {
                let list = &list;
                s.spawn(move || {
                    let mut kept = Vec::new();
                    for turn in 0..CHANGES / 2 {
                        let key = 10 + 2 * turn + writer;
                        let new = node(key);
                        let mut writer = list.write();
                        let mut cursor = writer.cursor_front();
                        let at = turn % STAY;
                        assert!(cursor.seek(|item| item.key() == at));
                        match turn % 5 {
                            0 => cursor.insert_before(new),
                            1 => cursor.insert_after(new),
                            2 => writer.push_back(new),
                            3 => {
                                // Any other: replaced, or else taken out of the way.
                                if cursor.seek(|item| item.key() >= 10) {
                                    assert!(cursor.replace(new).is_ok());
                                    kept.extend(cursor.take());
                                }
                            }
                            _ => writer.retain(|item| item.key() < STAY || item.key() % 3 != 0),
                        }
                        drop(writer);
                        if turn % 64 == 63 {
                            // Back into the list, if their readers are gone.
                            for retired in kept.drain(..) {
                                if let Ok(owned) = retired.try_take() {
                                    list.write().push_front(owned.into_pointer());
                                }
                            }
                        }
                    }
                });
            }
        });
    });
    let left = list.write().len();
    Readers.barrier();
    assert_eq!(LIVE.load(Ordering::Relaxed), left, "removed and not freed");
    drop(list);
    Readers.barrier();
    assert_eq!(LIVE.load(Ordering::Relaxed), 0);
}

/// Everything goes back and forth between two lists: a reader of one never sees an element twice, nor comes to an end of the
/// other without having been let go.
#[test]
fn r22_splice_moves_lists_behind_their_readers() {
    static LIVE: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = if cfg!(miri) { 3 } else { 60 };
    let lists: [RcuList<Canary, Boxes>; 2] = [
        (0..8).map(|key| Canary::new(key, &LIVE)).collect(),
        RcuList::new(),
    ];
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        for list in &lists {
            let done = &done;
            s.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let guard = read_lock::<Readers>();
                    let seen: Vec<usize> = list.iter(&guard).map(Canary::key).collect();
                    assert!(seen.is_empty() || seen.iter().copied().eq(0..8), "{seen:?}");
                }
            });
        }
        let _done = SetAtEnd(&done);
        for round in 0..ROUNDS {
            let (to, from) = (&lists[(round + 1) % 2], &lists[round % 2]);
            let moved = if round % 3 == 0 {
                to.append(from)
            } else {
                to.prepend(from)
            };
            assert_eq!(moved, 8);
        }
    });
    drop(lists);
    Readers.barrier();
    assert_eq!(LIVE.load(Ordering::Relaxed), 0);
}

/// The tree refuses a head that is queued, and runs neither of the two callbacks.
#[test]
#[cfg(debug_assertions)]
fn r18_a_tree_leaks_what_is_called_twice() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static HEAD: Head = Head::new();
    unsafe fn count(_: NonNull<Head>) {
        RUNS.fetch_add(1, Ordering::Relaxed);
    }
    rcu_core::on_double_call(|report| assert!(report.to_string().contains("queued twice")));
    let head = NonNull::from(&HEAD);
    let guard = read_lock::<Readers>();
    // SAFETY: the head is a static one.
    unsafe { Readers.call(head, Callback::Run(count)) };
    assert_eq!(
        (HEAD.is_queued(), HEAD.was_called(count)),
        (Some(true), true)
    );
    let before = rcu_core::double_calls();
    // SAFETY: not in order, which is what is tested: the head is queued.
    unsafe { Readers.call(head, Callback::Run(count)) };
    assert_eq!(rcu_core::double_calls(), before + 1);
    drop(guard);
    Readers.barrier();
    assert_eq!(
        (RUNS.load(Ordering::Relaxed), HEAD.is_queued()),
        (0, Some(false))
    );
    // SAFETY: popped, so on no list.
    unsafe { Readers.call(head, Callback::Run(count)) };
    Readers.barrier();
    assert_eq!(RUNS.load(Ordering::Relaxed), 1);
}
