//! What may cross threads, and what must not (holes 5 and 6 of the peers).
#![cfg(all(feature = "std", not(loom)))]

use rcu_core::cpu::{
    BiasedLock, HookList, OfflineHook, OwnerGuard, PerSlot, SlotTable, SpinGuard, SpinLock,
    SpinMutex, Threads, VisitorGuard,
};
use rcu_core::{
    CbList, Guard, Head, HeadStack, NullsHead, NullsLink, Online, OnlineGuard, RcuWork, ReadyWork,
    RefCount, SendGuard, Walk, WorkList,
};
use rcu_tree::{Event, SendToken, Token, Trace, Tree, TreeSlot};
use static_assertions::{assert_impl_all, assert_not_impl_any};
use std::cell::Cell;

rcu_tree::static_tree! {
    /// Of these tests.
    struct Readers;
}

/// A listener for one thread.
struct Local(Cell<u32>);

impl Trace for Local {
    fn event(&self, _: Event) {
        self.0.set(self.0.get() + 1);
    }
}

type Plain = Tree<'static, Threads>;
type Traced = Tree<'static, Threads, Local>;

// A section of a thread stays there; the one that belongs to none may go anywhere that its RCU may.
assert_not_impl_any!(Guard<Readers>: Send, Sync);
assert_not_impl_any!(Guard<&'static Plain>: Send, Sync);
assert_not_impl_any!(Online<Readers>: Send, Sync);
assert_not_impl_any!(OnlineGuard<'static, Readers>: Send, Sync);
assert_impl_all!(SendGuard<Readers>: Send, Sync);
assert_impl_all!(SendGuard<&'static Plain>: Send, Sync);
assert_not_impl_any!(SendGuard<&'static Traced>: Send, Sync);
assert_not_impl_any!(Token: Send, Sync);
assert_impl_all!(SendToken: Send, Sync);

assert_impl_all!(Plain: Send, Sync);
assert_impl_all!(Traced: Send);
assert_not_impl_any!(Traced: Sync);
assert_impl_all!(TreeSlot<BiasedLock>: Send, Sync);

// A guard of a lock shows the value: `Sync` as the value is.
assert_impl_all!(SpinMutex<Cell<u32>>: Send, Sync);
assert_not_impl_any!(SpinMutex<*mut ()>: Send, Sync);
assert_not_impl_any!(SpinGuard<'static, Cell<u32>>: Sync);
assert_impl_all!(SpinGuard<'static, u32>: Send, Sync);
assert_not_impl_any!(VisitorGuard<'static, SpinLock, Cell<u32>>: Sync);
assert_impl_all!(VisitorGuard<'static, SpinLock, u32>: Send, Sync);
assert_not_impl_any!(OwnerGuard<'static, BiasedLock, u32>: Send, Sync);

assert_impl_all!(PerSlot<'static, u32>: Send, Sync);
assert_not_impl_any!(PerSlot<'static, Cell<u32>>: Send, Sync);
assert_impl_all!(OfflineHook: Send, Sync);
assert_impl_all!(HookList: Send, Sync);
assert_impl_all!(SlotTable<4>: Send, Sync);

// Heads are shared by readers; a list of them is one thread's at a time.
assert_impl_all!(Head: Send, Sync);
assert_impl_all!(HeadStack: Send, Sync);
assert_impl_all!(CbList: Send);
assert_not_impl_any!(CbList: Sync);
assert_impl_all!(RefCount: Send, Sync);
assert_impl_all!(NullsLink: Send, Sync);
assert_impl_all!(NullsHead<*mut ()>: Send, Sync);
assert_not_impl_any!(Walk<'static>: Send, Sync);

assert_impl_all!(RcuWork<u32>: Send, Sync);
assert_not_impl_any!(RcuWork<Cell<u32>>: Sync);
assert_impl_all!(ReadyWork: Send);
assert_not_impl_any!(ReadyWork: Sync);
assert_impl_all!(WorkList: Send, Sync);
