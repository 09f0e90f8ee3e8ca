//! A machine of several CPUs played by one thread, and a listener that keeps what it hears.

#![allow(dead_code)]

use rcu_core::cpu::{Cpus, OfflineHook, PerSlot, Slot, SpinLock};
use rcu_tree::{Event, Geometry, Lane, Node, Trace, Tree, TreeSlot};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// CPUs that the test switches between.
#[derive(Debug)]
pub(crate) struct Puppet {
    nr_slots: u32,
    current: AtomicU32,
}

impl Puppet {
    const NOWHERE: u32 = u32::MAX;

    /// From now on the thread runs on `slot`, or on none.
    pub(crate) fn go(&self, slot: Option<u32>) {
        self.current
            .store(slot.unwrap_or(Self::NOWHERE), Ordering::Relaxed);
    }
}

// SAFETY: slots are below `nr_slots` by the tests; one thread plays all of them, and none goes offline.
unsafe impl Cpus for Puppet {
    type Lock = SpinLock;

    fn nr_slots(&self) -> usize {
        self.nr_slots as usize
    }

    fn current(&self) -> Option<Slot> {
        let slot = self.current.load(Ordering::Relaxed);
        (slot != Self::NOWHERE).then(|| Slot::new(slot))
    }

    unsafe fn add_offline_hook(&self, _hook: NonNull<OfflineHook>) {}

    unsafe fn remove_offline_hook(&self, _hook: NonNull<OfflineHook>) {}
}

/// Keeps what happened.
#[derive(Debug, Default)]
pub(crate) struct Log(Mutex<Vec<Event>>);

impl Log {
    /// What happened since the last time.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Trace for Log {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

pub(crate) type PuppetTree = Tree<'static, &'static Puppet, &'static Log>;

/// A tree of `nr_slots` CPUs played by one thread, which is on slot 0, with what it tells.
pub(crate) fn puppet(nr_slots: u32) -> (&'static PuppetTree, &'static Puppet, &'static Log) {
    let cpus: &'static Puppet = Box::leak(Box::new(Puppet {
        nr_slots,
        current: AtomicU32::new(0),
    }));
    let log: &'static Log = Box::leak(Box::default());
    let slots: Vec<_> = (0..nr_slots)
        .map(|_| TreeSlot::new(SpinLock::new()))
        .collect();
    let geometry = Geometry::with_fanout(nr_slots as usize, 2, 2);
    let nodes: Vec<_> = (0..geometry.nr_nodes()).map(|_| Node::new()).collect();
    let slots = PerSlot::from_slice(Box::leak(slots.into_boxed_slice()));
    // SAFETY: leaked before its first use; one thread at a time uses it.
    let tree = unsafe {
        Tree::traced(
            cpus,
            slots,
            geometry,
            Box::leak(nodes.into_boxed_slice()),
            log,
        )
    };
    (Box::leak(Box::new(tree)), cpus, log)
}

/// How many grace periods of each lane have ended.
pub(crate) fn ended<C: Cpus, T: Trace>(tree: &Tree<'_, C, T>, lane: Lane) -> usize {
    let stats = tree.stats();
    match lane {
        Lane::Normal => stats.grace_periods,
        Lane::Expedited => stats.expedited,
    }
}
