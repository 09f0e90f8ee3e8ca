//! Several stacks in one process: they share threads, and nothing else.

#![cfg(feature = "std")]

use kvfree::{Builder, Config, InUse, RcuBox, RcuBoxIn, RcuCellIn, read_lock};
use rcu_core::GracePeriod;
use std::alloc::Layout;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

kvfree::stack! {
    /// What plugins see.
    pub struct Plugins;
}

kvfree::stack! { struct Other, stall = rcu_tree::StallConfig::never(); }

struct Counts(&'static AtomicUsize);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A reader of one stack, stalled for ever, holds up what waits in its own only.
#[test]
fn a_reader_holds_up_its_own_stack_only() {
    static MINE: AtomicUsize = AtomicUsize::new(0);
    static THEIRS: AtomicUsize = AtomicUsize::new(0);
    static DEFAULT: AtomicUsize = AtomicUsize::new(0);
    let cell: RcuCellIn<Counts, Plugins> = RcuBoxIn::new(Counts(&MINE)).into();
    let guard = Plugins::read_lock();
    let seen = cell.load(&guard).unwrap();
    cell.store(None);
    drop(RcuBoxIn::<_, Other>::new(Counts(&THEIRS)));
    drop(RcuBox::new(Counts(&DEFAULT)));
    Other::stack().barrier();
    kvfree::barrier();
    let counts = [&MINE, &THEIRS, &DEFAULT].map(|n| n.load(Ordering::Acquire));
    assert_eq!(counts, [0, 1, 1]);
    assert!(std::ptr::eq(seen.0, &raw const MINE));
    drop(guard);
    Plugins::stack().barrier();
    assert_eq!(MINE.load(Ordering::Acquire), 1);
}

/// Each has its own monitor: nobody waits for these.
#[test]
fn k8_each_stack_has_a_monitor() {
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    let guard = read_lock();
    for n in 1..=2 {
        drop(RcuBoxIn::<_, Plugins>::new(Counts(&DROPPED)));
        drop(RcuBoxIn::<_, Other>::new(Counts(&DROPPED)));
        wait_until(|| DROPPED.load(Ordering::Acquire) == 2 * n);
    }
    drop(guard);
}

/// Objects, pages, numbers and typed caches are each stack's own.
#[test]
fn nothing_of_one_is_seen_in_another() {
    let (plugins, other) = (Plugins::stack(), Other::stack());
    let layout = Layout::new::<[u64; 700]>();
    let object = plugins.objects().kmalloc(layout).unwrap();
    let of_ours = |cache: &slab::CacheStats| cache.live > 0 && cache.object_bytes >= 5600;
    let live = |stack: &'static dyn Fn() -> kvfree::StackStats| {
        stack()
            .objects
            .is_some_and(|all| all.classes.iter().any(of_ours))
    };
    assert!(live(&|| Plugins::stack().stats()));
    assert!(!live(&|| Other::stack().stats()));
    // SAFETY: allocated just now, and seen by nobody.
    unsafe { plugins.retire_mightsleep(object) };
    plugins.barrier();
    assert!(!live(&|| Plugins::stack().stats()));

    let cache = other.cache::<[u64; 3]>("first-mine").unwrap();
    let again = other.cache::<[u64; 3]>("second-mine").unwrap();
    for _ in 0..100 {
        let object = cache.alloc([1; 3]).unwrap();
        // SAFETY: allocated just now, and seen by nobody.
        unsafe { other.retire_in_mightsleep(&cache, object) };
    }
    other.barrier();
    assert_eq!(cache.raw().stats().waiting, 0);
    let names = |stats: kvfree::StackStats| stats.to_string().matches("-mine").count();
    assert_eq!((names(other.stats()), names(plugins.stats())), (2, 0));
    let shown = other.stats().to_string();
    assert!(
        shown.find("first-mine") < shown.find("second-mine"),
        "{shown}"
    );
    again.destroy().unwrap();
    assert_eq!(names(other.stats()), 1);
    drop(cache);
    assert_eq!(names(other.stats()), 0);
}

/// Settings are each stack's own, and each stack's first user decides.
#[test]
fn each_stack_has_settings() {
    kvfree::stack! { struct Late; }
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    let config = Config::new().hard_limit(64 << 10).tells(|_| {
        TOLD.fetch_add(1, Ordering::Relaxed);
    });
    let settings = Builder::new().config(config).wait_at_limit(false);
    assert_eq!(Late::stack().install(settings), Ok(()));
    assert_eq!(Late::stack().install(settings), Err(InUse));
    drop(RcuBoxIn::<_, Other>::new(1_u8));
    assert_eq!(Other::stack().install(settings), Err(InUse));
    let guard = Late::read_lock();
    for _ in 0..300 {
        drop(RcuBoxIn::<_, Late>::new([0_u8; 1000]));
        drop(RcuBoxIn::<_, Other>::new([0_u8; 1000]));
    }
    wait_until(|| TOLD.load(Ordering::Relaxed) > 0);
    drop(guard);
    Late::stack().barrier();
    assert_eq!(Other::stack().stats().front.unwrap().overdrawn, 0);
    assert!(format!("{:?}", Late::stack()).starts_with("Stack { domain: Late"));
}

/// Cookies of one say nothing about another, so each polls its own; the unbatched twin goes with its stack, too.
#[test]
fn k20_the_twin_of_a_stack_waits_for_its_readers() {
    use kvfree::DeferFree;
    use rcu_core::{HasHead, Head, has_head};
    struct Node {
        head: Head,
    }
    has_head!(Node, head);
    let stack = Plugins::stack();
    let twin = stack.unbatched();
    let guard = Plugins::read_lock();
    let before = Plugins.snapshot();
    let object = twin
        .objects()
        .kmalloc(Layout::new::<Node>())
        .unwrap()
        .cast::<Node>();
    // SAFETY: fresh memory of the layout.
    unsafe { object.write(Node { head: Head::new() }) };
    // SAFETY: the head of a whole object.
    let head = unsafe { Node::head_of(object) };
    // SAFETY: of the stack's objects, seen by nobody.
    unsafe { twin.retire(head, Node::OFFSET) };
    Other.synchronize();
    assert!(!Plugins.poll(before));
    drop(guard);
    twin.barrier();
    assert!(Plugins.poll(before));
}
