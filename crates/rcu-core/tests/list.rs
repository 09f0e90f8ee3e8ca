//! R22: the list against a model, with readers at arbitrary places, and an RCU that frees as early as it may.

#![cfg(all(feature = "std", not(loom)))]

mod exact;

use exact::{Exact, Kept};
use proptest::prelude::*;
use rcu_core::{Detached, Guard, Iter, ListNode, Owned, RcuList, Retired, read_lock};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Knows whether it was dropped; its memory outlives it in these tests.
struct Item {
    id: usize,
    alive: AtomicBool,
    drops: Arc<AtomicUsize>,
}

impl Item {
    fn id(&self) -> usize {
        assert!(self.alive.load(Ordering::Relaxed), "dropped under a reader");
        self.id
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        assert!(self.alive.swap(false, Ordering::Relaxed), "dropped twice");
        self.drops.fetch_add(1, Ordering::Relaxed);
    }
}

type List = RcuList<Item, Kept>;
type Node = ListNode<Item, Kept>;

/// A list, its model, and what came out of it.
struct Tested {
    /// Leaked, so that readers may borrow it; taken back in the end.
    list: &'static List,
    leaked: *mut List,
    model: Vec<usize>,
    out: Vec<Retired<Node>>,
    owned: Vec<Owned<Node>>,
    detached: Option<(Detached<Item, Kept>, Vec<usize>)>,
    next_id: usize,
    drops: Arc<AtomicUsize>,
    /// Items made, which all have to be dropped in the end.
    made: usize,
}

impl Tested {
    fn new() -> Self {
        let leaked = Box::into_raw(Box::default());
        Self {
            // SAFETY: made just now.
            list: unsafe { &*leaked },
            leaked,
            model: Vec::new(),
            out: Vec::new(),
            owned: Vec::new(),
            detached: None,
            next_id: 0,
            drops: Arc::default(),
            made: 0,
        }
    }

    fn id(&mut self) -> usize {
        self.next_id += 1;
        self.next_id
    }

    /// A node with a fresh id: one that was in the list before, if there is one.
    fn node(&mut self) -> (usize, Node) {
        let id = self.id();
        if let Some(mut owned) = self.owned.pop() {
            owned.id = id;
            return (id, owned.into_pointer());
        }
        self.made += 1;
        let (alive, drops) = (AtomicBool::new(true), self.drops.clone());
        (id, Node::new(Item { id, alive, drops }))
    }

    fn apply(&mut self, op: &Op) {
        let place = |at: usize, len: usize| at % (len + 1);
        match *op {
            Op::Push { back } => {
                let (id, node) = self.node();
                if back {
                    self.list.write().push_back(node);
                    self.model.push(id);
                } else {
                    self.list.write().push_front(node);
                    self.model.insert(0, id);
                }
            }
            Op::Pop { back, keep } => {
                let mut writer = self.list.write();
                let (popped, id) = if back {
                    (writer.pop_back(), self.model.pop())
                } else {
                    let id = (!self.model.is_empty()).then(|| self.model.remove(0));
                    (writer.pop_front(), id)
                };
                drop(writer);
                assert_eq!(popped.is_some(), id.is_some());
                self.out.extend(popped.filter(|_| keep));
            }
            Op::Insert { at, after } => {
                let (id, node) = self.node();
                let at = place(at, self.model.len());
                let mut writer = self.list.write();
                let mut cursor = writer.cursor_front();
                (0..at).for_each(|_| cursor.move_next());
                let nowhere = at == self.model.len();
                assert_eq!(cursor.current().is_none(), nowhere);
                if after {
                    cursor.insert_after(node);
                    self.model.insert(if nowhere { 0 } else { at + 1 }, id);
                } else {
                    cursor.insert_before(node);
                    self.model.insert(at, id);
                }
            }
            Op::Remove { at, keep } => {
                let at = place(at, self.model.len());
                let mut writer = self.list.write();
                let mut cursor = writer.cursor_front();
                (0..at).for_each(|_| cursor.move_next());
                let removed = if keep {
                    let taken = cursor.take();
                    let some = taken.is_some();
                    self.out.extend(taken);
                    some
                } else {
                    cursor.remove()
                };
                let then = cursor.current().map(Item::id);
                drop(writer);
                assert_eq!(removed, at < self.model.len());
                if removed {
                    self.model.remove(at);
                    assert_eq!(then, self.model.get(at).copied());
                }
            }
            Op::Replace { at } => {
                let (id, node) = self.node();
                let at = place(at, self.model.len());
                let mut writer = self.list.write();
                let mut cursor = writer.cursor_front();
                (0..at).for_each(|_| cursor.move_next());
                let refused = cursor.replace(node);
                assert_eq!(refused.is_ok(), at < self.model.len());
                if at < self.model.len() {
                    assert_eq!(cursor.current().map(Item::id), Some(id));
                    self.model[at] = id;
                }
            }
            Op::Retain { modulus } => {
                self.list.write().retain(|item| item.id() % modulus != 0);
                self.model.retain(|id| id % modulus != 0);
            }
            Op::Clear { drain } => {
                let mut writer = self.list.write();
                if drain {
                    self.out.extend(writer.drain().take(2));
                } else {
                    writer.clear();
                }
                self.model.clear();
            }
            Op::Detach => {
                if self.detached.is_none() {
                    let detached = self.list.write().detach();
                    assert_eq!(detached.len(), self.model.len());
                    self.detached = Some((detached, std::mem::take(&mut self.model)));
                }
            }
            Op::Splice { back } => {
                let Some((detached, ids)) = self.detached.take() else {
                    return;
                };
                let ripe = detached.is_ripe();
                let mut writer = self.list.write();
                let result = if back {
                    writer.splice_back(detached)
                } else {
                    writer.splice_front(detached)
                };
                drop(writer);
                assert_eq!(result.is_ok(), ripe);
                match result {
                    Ok(()) if back => self.model.extend(ids),
                    Ok(()) => drop(self.model.splice(0..0, ids)),
                    Err(detached) => self.detached = Some((detached, ids)),
                }
            }
            Op::TakeBack => {
                for retired in std::mem::take(&mut self.out) {
                    match retired.try_take() {
                        Ok(owned) => self.owned.push(owned),
                        Err(retired) => self.out.push(retired),
                    }
                }
            }
        }
        Exact::reclaim();
        self.check();
    }

    fn check(&self) {
        let mut writer = self.list.write();
        assert_eq!(writer.len(), self.model.len());
        assert!(writer.iter().map(Item::id).eq(self.model.iter().copied()));
        let mut cursor = writer.cursor_back();
        let mut back = Vec::new();
        while let Some(item) = cursor.current() {
            back.push(item.id());
            cursor.move_prev();
        }
        assert!(back.iter().rev().eq(&self.model), "{back:?} is no mirror");
        drop(writer);
        let guard = read_lock::<Exact>();
        assert!(
            self.list
                .iter(&guard)
                .map(Item::id)
                .eq(self.model.iter().copied())
        );
        assert_eq!(self.list.is_empty(), self.model.is_empty());
    }
}

#[derive(Clone, Debug)]
enum Op {
    Push { back: bool },
    Pop { back: bool, keep: bool },
    Insert { at: usize, after: bool },
    Remove { at: usize, keep: bool },
    Replace { at: usize },
    Retain { modulus: usize },
    Clear { drain: bool },
    Detach,
    Splice { back: bool },
    TakeBack,
}

#[derive(Clone, Debug)]
enum Step {
    Write(Op),
    Start,
    Read(usize),
    Leave(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..12usize;
    let yes = any::<bool>;
    prop_oneof![
        4 => yes().prop_map(|back| Op::Push { back }),
        2 => (yes(), yes()).prop_map(|(back, keep)| Op::Pop { back, keep }),
        3 => (at(), yes()).prop_map(|(at, after)| Op::Insert { at, after }),
        4 => (at(), yes()).prop_map(|(at, keep)| Op::Remove { at, keep }),
        2 => at().prop_map(|at| Op::Replace { at }),
        1 => (2..5usize).prop_map(|modulus| Op::Retain { modulus }),
        1 => yes().prop_map(|drain| Op::Clear { drain }),
        1 => Just(Op::Detach),
        2 => yes().prop_map(|back| Op::Splice { back }),
        2 => Just(Op::TakeBack),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => op().prop_map(Step::Write),
        1 => Just(Step::Start),
        5 => any::<usize>().prop_map(Step::Read),
        1 => any::<usize>().prop_map(Step::Leave),
    ]
}

/// A reader, what it saw, and what was in the list all the while.
struct Reader<'l> {
    _guard: &'l Guard<Exact>,
    iter: Iter<'l, Item>,
    kept: Vec<&'l Item>,
    seen: Vec<usize>,
    stayed: BTreeSet<usize>,
}

impl<'l> Reader<'l> {
    /// One step; false at the end.
    fn read(&mut self) -> bool {
        let Some(item) = self.iter.next() else {
            let seen: BTreeSet<usize> = self.seen.iter().copied().collect();
            assert_eq!(seen.len(), self.seen.len(), "twice: {:?}", self.seen);
            let missed: Vec<_> = self.stayed.difference(&seen).collect();
            assert!(missed.is_empty(), "missed {missed:?}");
            return false;
        };
        self.seen.push(item.id());
        self.kept.push(item);
        // What was seen stays valid as long as the section does.
        assert!(self.kept.iter().all(|item| item.id() > 0));
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]

    #[test]
    fn r22_readers_see_what_stays_once_and_nothing_freed(steps in prop::collection::vec(step(), 1..120)) {
        let mut tested = Tested::new();
        let mut guards: Vec<*mut Guard<Exact>> = Vec::new();
        {
            let mut readers: Vec<Option<Reader<'_>>> = Vec::new();
            let leave = |which: usize, readers: &mut Vec<Option<Reader<'_>>>, guards: &mut Vec<*mut _>| {
                while readers[which].as_mut().unwrap().read() {}
                drop(readers.swap_remove(which));
                // SAFETY: leaked below; its reader is gone.
                drop(unsafe { Box::from_raw(guards.swap_remove(which)) });
                Exact::reclaim();
            };
            for step in &steps {
                match *step {
                    Step::Write(ref op) => {
                        tested.apply(op);
                        for reader in readers.iter_mut().flatten() {
                            reader.stayed.retain(|id| tested.model.contains(id));
                        }
                    }
                    Step::Start => {
                        let guard = Box::into_raw(Box::new(read_lock::<Exact>()));
                        guards.push(guard);
                        // SAFETY: leaked until `leave`.
                        let guard = unsafe { &*guard };
                        readers.push(Some(Reader {
                            _guard: guard,
                            iter: tested.list.iter(guard),
                            kept: Vec::new(),
                            seen: Vec::new(),
                            stayed: tested.model.iter().copied().collect(),
                        }));
                    }
                    Step::Read(which) if !readers.is_empty() => {
                        let which = which % readers.len();
                        readers[which].as_mut().unwrap().read();
                    }
                    Step::Leave(which) if !readers.is_empty() => {
                        leave(which % readers.len(), &mut readers, &mut guards);
                    }
                    _ => {}
                }
            }
            while !readers.is_empty() {
                leave(0, &mut readers, &mut guards);
            }
        }
        let (drops, made) = (tested.drops.clone(), tested.made);
        let list = tested.leaked;
        drop(tested);
        // SAFETY: leaked by `Tested::new`; its readers are gone.
        drop(unsafe { Box::from_raw(list) });
        Exact::finish();
        prop_assert_eq!(drops.load(Ordering::Relaxed), made, "leaked");
    }
}

fn numbers(list: &RcuList<usize, Kept>) -> Vec<usize> {
    list.iter(&read_lock::<Exact>()).copied().collect()
}

#[test]
fn r22_splice_waits_for_a_grace_period() {
    let (from, to) = ((0..3).collect(), (10..12).collect());
    let (from, to): (RcuList<usize, Kept>, RcuList<usize, Kept>) = (from, to);
    let guard = read_lock::<Exact>();
    let mut reader = from.iter(&guard);
    assert_eq!(reader.next(), Some(&0));
    let detached = from.write().detach();
    assert!(from.is_empty() && detached.len() == 3 && !detached.is_ripe());
    let detached = to.write().splice_back(detached).unwrap_err();
    assert!(reader.copied().eq([1, 2]), "and not the other list's");
    drop(guard);
    to.write().splice_back(detached).unwrap();
    assert_eq!(numbers(&to), [10, 11, 0, 1, 2]);
    assert_eq!(from.prepend(&to), 5);
    assert_eq!(from.append(&from), 5, "with itself");
    assert_eq!(
        (numbers(&from), to.is_empty()),
        (vec![10, 11, 0, 1, 2], true)
    );
    assert_eq!(from.append(&to), 0, "of nothing");
    drop((from, to));
    Exact::finish();
}

#[test]
fn r22_splice_that_cannot_wait_puts_everything_back() {
    let (from, to): (RcuList<usize, Kept>, _) = ((0..3).collect(), RcuList::new());
    let guard = read_lock::<Exact>();
    let mut reader = from.iter(&guard);
    reader.next();
    let panicked = catch_unwind(AssertUnwindSafe(|| to.append(&from)));
    assert!(panicked.is_err(), "inside a section");
    from.push_back(3);
    assert!(reader.copied().eq([1, 2, 3]));
    drop(guard);
    assert_eq!((numbers(&from), to.is_empty()), (vec![0, 1, 2, 3], true));
    drop((from, to));
    Exact::finish();
}

#[test]
fn r22_what_is_removed_is_retired_when_the_writer_is_gone() {
    let list: RcuList<usize, Kept> = (0..4).collect();
    let before = Exact::queued();
    let mut writer = list.write();
    writer.retain(|n| n % 2 == 0);
    let mut cursor = writer.cursor_front();
    assert!(cursor.seek(|&n| n == 2) && cursor.remove() && !cursor.remove());
    assert_eq!(Exact::queued(), before, "nothing under the lock");
    assert!(list.try_write().is_none());
    drop(writer);
    assert_eq!(Exact::queued(), before + 3);
    assert_eq!(numbers(&list), [0]);
    drop(list);
    Exact::finish();
}

#[test]
fn r22_a_closure_that_panics_leaves_a_whole_list_and_a_free_lock() {
    let list: RcuList<usize, Kept> = (0..5).collect();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        list.write()
            .retain(|&n| if n == 2 { panic!("on purpose") } else { n > 0 });
    }));
    assert!(panicked.is_err());
    assert_eq!(numbers(&list), [1, 2, 3, 4]);
    assert_eq!(list.write().len(), 4);
    drop(list);
    Exact::finish();
}

#[test]
fn formatting_looks_at_no_object_without_a_section() {
    let list: RcuList<usize, Kept> = (0..2).collect();
    assert_eq!(format!("{list:?}"), "RcuList { is_empty: false }");
    assert_eq!(format!("{:?}", list.write()), "Writer { len: 2, .. }");
    assert_eq!(format!("{:?}", ListNode::<u8, Kept>::new(3)), "ListNode(3)");
    drop(list);
    Exact::finish();
}

#[test]
fn lists_and_nodes_cross_threads() {
    fn both<T: Send + Sync>() {}
    both::<RcuList<usize, Kept>>();
    both::<ListNode<usize, Kept>>();
    both::<Detached<usize, Kept>>();
}
