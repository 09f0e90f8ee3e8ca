//! The rows of kvfree, and the posts that asked for them, as far as slots, pages and grace periods by hand can show.

mod common;

use common::{Defer, Failure, Hand, Item, LARGE_BYTES, Ledger, ManualRcu, Pages};
use kvfree::{Config, DeferFree, Kvfree, Objects, Unbatched};
use pagealloc::{Attempt, Order, PageAlloc, PageReq};
use rcu_core::cpu::Slot;
use rcu_core::{Callback, Cookie, GracePeriod, Head, HeadOffset, Rcu};
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// Objects in a block.
const BLOCK: usize = 507;

type Books<'a> = Ledger<&'a ManualRcu>;
type Front<'a> = Kvfree<&'a Hand, &'a Pages, &'a ManualRcu, &'a Books<'a>>;

fn front<'a>(
    hand: &'a Hand,
    pages: &'a Pages,
    rcu: &'a ManualRcu,
    ledger: &'a Books<'a>,
    config: Config,
) -> Front<'a> {
    // SAFETY: the ledger waits for the grace periods of `rcu`; every test drops the front end before what it borrows.
    unsafe { Kvfree::new(hand, pages, rcu, ledger, config) }.unwrap()
}

/// A new object, retired with two arguments.
fn retire(front: &impl DeferFree, ledger: &Books<'_>, large: bool) -> Item {
    let item = ledger.alloc(large);
    ledger.retiring(item);
    // SAFETY: the ledger's object, with its head, given up.
    ledger.without_freeing(|| unsafe { front.retire(item.head(), Item::OFFSET) });
    item
}

fn retire_many(front: &impl DeferFree, ledger: &Books<'_>, objects: usize) {
    for _ in 0..objects {
        retire(front, ledger, false);
    }
}

/// One with a function that drops it.
fn retire_with(front: &Front<'_>, ledger: &Books<'_>) -> Item {
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object and its function, given up.
    unsafe { front.retire_with_mightsleep(item.at, Books::DROP, 64) };
    item
}

/// One with a head and a function of its own.
fn retire_head(front: &Front<'_>, ledger: &Books<'_>) -> Item {
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, its head and its function, given up.
    unsafe { front.retire_head(item.head(), Books::CALLBACK, 64) };
    item
}

/// Small ones, large ones, pairs and heads wait apart, each as it is to be freed.
#[test]
fn k4_each_channel_has_its_own_blocks() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    let before = pages.outstanding();
    for _ in 0..5 {
        retire(&front, &ledger, false);
        retire(&front, &ledger, true);
        retire_with(&front, &ledger);
        retire_head(&front, &ledger);
    }
    assert_eq!(pages.outstanding(), before + 3, "a block a channel");
    let stats = front.stats();
    assert_eq!((stats.objects_waiting, stats.by_head), (20, 5));
    assert!(stats.bytes_waiting >= 5 * LARGE_BYTES);
    front.barrier();
    assert_eq!(front.stats().blocks_freed, 3);
    ledger.assert_no_faults();
    assert_eq!(ledger.waiting(), 0);
}

/// A slot keeps a few empty pages, and who retires in any context never reaches for others'.
#[test]
fn k6_retiring_takes_pages_of_its_slot_only() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    // Whatever goes beyond the slot's own list fails, and is not even asked for.
    pages.set_failure(Failure::Below(Attempt::TryLock));
    for n in 1..=10 {
        retire(&front, &ledger, false);
        assert_eq!((front.stats().by_head, pages.refused()), (n, n));
    }
    pages.set_failure(Failure::Never);
    for _ in 0..20 * BLOCK {
        retire(&front, &ledger, false);
    }
    rcu.advance();
    rcu.advance();
    while front.tick() > 0 {
        rcu.advance();
    }
    assert_eq!(front.stats().pages_kept, 5, "rcu_min_cached_objs");
    ledger.assert_no_faults();
}

/// After a shrinker came by: nothing for a while, then one page, then as before.
#[test]
fn k7_t4_the_stock_is_refilled_only_after_a_back_off() {
    const ROUNDS: u32 = 5;
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let config = Config::new().back_off(ROUNDS);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    retire(&front, &ledger, false);
    while front.tick() > 0 {}
    assert_eq!(front.stats().pages_kept, 1);
    // A starved slot, as far as the back-off does not concern it, has five pages after one look.
    pages.set_failure(Failure::Below(Attempt::NoWait));
    assert_eq!(front.shrink_count(), 1, "K12: a page");
    assert_eq!(front.shrink_scan(100), 1);
    assert_eq!(pages.outstanding(), 1, "the slots");
    let mut kept = Vec::new();
    for _ in 0..2 * ROUNDS {
        // Keeps the slot starved: no page is to be had without waiting.
        for _ in 0..=front.stats().pages_kept * BLOCK {
            retire(&front, &ledger, false);
        }
        front.tick();
        kept.push(front.stats().pages_kept);
        front.barrier();
    }
    let none = ROUNDS as usize - 1;
    assert!(kept[..none].iter().all(|&pages| pages == 0), "{kept:?}");
    assert_eq!(kept[none], 1, "{kept:?}");
    assert!(kept[none + 1..].iter().any(|&pages| pages > 1), "{kept:?}");
    ledger.assert_no_faults();
}

/// A block that fills hurries the monitor; an object that is alone does not.
#[test]
fn k8_post_2020_headless_much_is_drained_soon() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static LATER: AtomicUsize = AtomicUsize::new(0);
    static SOON: AtomicUsize = AtomicUsize::new(0);
    let config = Config::new().ask_after_blocks(1).watched_by(|soon| {
        if soon { &SOON } else { &LATER }.fetch_add(1, Ordering::Relaxed);
    });
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    retire(&front, &ledger, false);
    let counts = || (LATER.load(Ordering::Relaxed), SOON.load(Ordering::Relaxed));
    assert_eq!(counts(), (1, 0), "watched from the first on");
    retire_many(&front, &ledger, BLOCK - 1);
    assert_eq!(counts(), (1, 0), "and by nobody else");
    retire(&front, &ledger, false);
    assert_eq!(counts(), (1, 1), "a block is full");
    front.barrier();
    ledger.assert_no_faults();
}

/// How `Objects` are freed: counts calls of its bulk.
struct Bulks<'a> {
    ledger: &'a Books<'a>,
    calls: Cell<usize>,
}

// SAFETY: the ledger's answers, and its frees.
unsafe impl Objects for Bulks<'_> {
    unsafe fn try_defer(&self, _object: NonNull<u8>) -> bool {
        false
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        self.ledger.is_large(object)
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        self.ledger.size_bytes(object)
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        self.calls.set(self.calls.get() + 1);
        // SAFETY: the caller's debt.
        unsafe { self.ledger.free_bulk(objects) };
    }

    fn barrier(&self) {}

    fn reap(&self) -> usize {
        0
    }

    fn waiting_bytes(&self) -> usize {
        0
    }
}

/// The follow-up of 2019: an array of pointers, freed at once; and heads, gathered.
#[test]
fn k10_post_2019_objects_are_freed_in_bulk() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let calls = Cell::new(0);
    let objects = Bulks {
        ledger: &ledger,
        calls,
    };
    // SAFETY: nothing is deferred; the front end is dropped first.
    let front = unsafe { Kvfree::new(&hand, &pages, &rcu, &objects, Config::new()) }.unwrap();
    for _ in 0..10 * BLOCK {
        retire(&front, &ledger, false);
    }
    front.barrier();
    assert_eq!((ledger.waiting(), objects.calls.get()), (0, 10));
    pages.set_failure(Failure::From(0));
    hand.bounce();
    for _ in 0..640 {
        retire(&front, &ledger, false);
    }
    front.barrier();
    assert_eq!((ledger.waiting(), objects.calls.get()), (0, 20));
    ledger.assert_no_faults();
}

/// However many objects a drain interval has, it costs a grace period, not one for each of them or their blocks.
#[test]
fn k11_a_drain_interval_costs_one_grace_period() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let config = Config::new().ask_after_blocks(1000).slot_limit(usize::MAX);
    let config = config.ask_after_bytes(usize::MAX);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    for intervals in 1..=20 {
        for _ in 0..3 * BLOCK {
            retire(&front, &ledger, false);
        }
        front.tick();
        rcu.advance_wanted();
        assert_eq!(front.tick(), 0);
        assert_eq!((ledger.waiting(), rcu.grace_periods()), (0, intervals));
    }
    ledger.assert_no_faults();
}

/// Objects and pages are counted, ripe ones freed, and all that is kept goes back.
#[test]
fn k12_the_shrinker_frees_what_is_ripe_and_drops_what_is_kept() {
    let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    assert_eq!((front.shrink_count(), front.shrink_scan(10)), (0, 0), "EMPTY");
    let first: Vec<_> = (0..2 * BLOCK + 1).map(|_| retire(&front, &ledger, false)).collect();
    hand.go(Some(1));
    let large: Vec<_> = (0..30).map(|_| retire(&front, &ledger, true)).collect();
    let with = retire_with(&front, &ledger);
    assert_eq!(front.shrink_count(), 2 * BLOCK + 1 + 31);
    // Nothing is ripe, but a grace period is on its way.
    assert_eq!(front.shrink_scan(10), 0);
    assert!(rcu.drive());
    rcu.advance();
    let freed = ledger.without_calling(|| front.shrink_scan(1));
    assert_eq!(freed, 3, "of one slot: about as much as was asked for");
    assert!(first.iter().all(|&item| ledger.is_freed(item)));
    assert!(large.iter().all(|&item| !ledger.is_freed(item)));
    let freed = ledger.without_calling(|| front.shrink_scan(1000));
    assert!(freed >= 30 * (LARGE_BYTES / pagealloc::PAGE_SIZE));
    assert!(large.iter().all(|&item| ledger.is_freed(item)));
    assert!(!ledger.is_freed(with), "foreign code is the monitor's");
    front.barrier();
    assert_eq!(front.shrink_count(), 0);
    ledger.assert_no_faults();
    assert_eq!(pages.outstanding(), 1, "the slots");
}

/// Pressure strikes inside of the front end's own allocation.
#[test]
fn k12_the_shrinker_may_run_inside_of_an_allocation() {
    let hand: &'static Hand = Box::leak(Box::new(Hand::new(1)));
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let rcu: &'static ManualRcu = Box::leak(Box::new(ManualRcu::new()));
    let ledger: &'static Books<'static> = Box::leak(Box::new(Ledger::new(rcu, Defer::Never)));
    let front: &'static Front<'static> =
        Box::leak(Box::new(front(hand, pages, rcu, ledger, Config::new())));
    let old = retire(front, ledger, false);
    front.tick();
    rcu.advance();
    pages.set_failure(Failure::Below(Attempt::MayGrow));
    struct Anywhere(&'static Front<'static>);
    // SAFETY: this test has one thread.
    unsafe impl Send for Anywhere {}
    let shared = Anywhere(front);
    pages.meanwhile(move || {
        let Anywhere(front) = &shared;
        front.shrink_count();
        front.shrink_scan(5);
    });
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, given up.
    unsafe { front.retire_mightsleep(item.at) };
    assert!(ledger.is_freed(old), "the hook has run");
    front.barrier();
    ledger.assert_no_faults();
}

/// Before anybody looks, and on a thread that has no slot yet, objects are taken in, and the first look finds them.
#[test]
fn k13_post_2019_what_is_retired_before_the_monitor_is_there() {
    let (hand, pages, rcu) = (Hand::new(2), Pages::failing(Failure::Never), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    for slot in [None, Some(1), None] {
        hand.go(slot);
        retire_many(&front, &ledger, 20);
    }
    assert_eq!((front.stats().shared, ledger.freed()), (40, 0));
    hand.go(Some(0));
    while front.tick() > 0 {
        rcu.advance_wanted();
    }
    assert_eq!(ledger.waiting(), 0);
    ledger.assert_no_faults();
}

/// What waits anywhere: in open blocks, in line, by heads, sealed, among orphans, without a slot, and with the allocator.
#[test]
fn k14_a_barrier_covers_all_that_was_retired() {
    for defer in [Defer::Never, Defer::Sometimes, Defer::Always] {
        let (hand, pages, rcu) = (Hand::new(3), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, defer);
        let front = front(&hand, &pages, &rcu, &ledger, Config::new());
        for slot in [Some(0), Some(1), None] {
            for failure in [Failure::Never, Failure::From(0)] {
                hand.go(slot);
                pages.set_failure(failure);
                for _ in 0..BLOCK + 3 {
                    retire(&front, &ledger, false);
                    retire(&front, &ledger, true);
                }
                retire_head(&front, &ledger);
                front.tick();
            }
            if slot == Some(1) {
                hand.bounce();
            }
        }
        assert!(ledger.waiting() > BLOCK);
        hand.go(Some(2));
        front.barrier();
        assert_eq!((ledger.waiting(), front.stats().objects_waiting), (0, 0));
        ledger.assert_no_faults();
    }
}

/// A barrier runs a grace period if it needs one, and none for what is ripe.
#[test]
fn k14_a_barrier_waits_for_no_more_than_it_must() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    front.barrier();
    assert_eq!(rcu.grace_periods(), 0, "nothing waits");
    for failure in [Failure::Never, Failure::From(0)] {
        pages.set_failure(failure);
        hand.bounce();
        retire(&front, &ledger, false);
        rcu.synchronize();
        let before = rcu.grace_periods();
        front.barrier();
        assert_eq!(rcu.grace_periods(), before, "ripe already");
        retire(&front, &ledger, false);
        front.barrier();
        assert_eq!(rcu.grace_periods(), before + 1);
    }
    ledger.assert_no_faults();
}

/// Reclaiming asks nobody for memory: it goes on when there is none.
#[test]
fn k17_reclaiming_needs_no_memory() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    for _ in 0..3 * BLOCK {
        retire(&front, &ledger, false);
    }
    retire_head(&front, &ledger);
    pages.set_failure(Failure::From(0));
    let calls = pages.calls();
    while front.tick() > 0 {
        rcu.advance_wanted();
    }
    assert_eq!((ledger.waiting(), pages.calls()), (0, calls));
    ledger.assert_no_faults();
}

/// Where heads are watched: the second retiring is refused, and the object leaks instead of being freed twice.
#[test]
#[cfg(debug_assertions)]
fn k18_a_head_that_is_retired_twice_leaks() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    pages.set_failure(Failure::From(0));
    let (other, item) = (retire_head(&front, &ledger), retire_head(&front, &ledger));
    // SAFETY: wrong, as is the test's purpose; the head is watched.
    unsafe { front.retire_head(item.head(), Books::CALLBACK, 64) };
    front.barrier();
    assert!(ledger.is_freed(other) && !ledger.is_freed(item));
    ledger.assert_no_faults();
}

/// An RCU that says once that a grace period is over, and then that it is not.
struct Liar<'a> {
    rcu: &'a ManualRcu,
    lies: Cell<usize>,
}

// SAFETY: none: that is the point. Nothing but this test's objects, whose memory stays, is freed by it.
unsafe impl GracePeriod for Liar<'_> {
    fn snapshot(&self) -> Cookie {
        self.rcu.snapshot()
    }

    fn start(&self) -> Cookie {
        self.rcu.start()
    }

    fn poll(&self, cookie: Cookie) -> bool {
        if self.lies.get() > 0 {
            self.lies.set(self.lies.get() - 1);
            return true;
        }
        self.rcu.poll(cookie)
    }

    fn wait(&self, cookie: Cookie) {
        self.rcu.wait(cookie);
    }

    fn drive(&self) -> bool {
        self.rcu.drive()
    }

    fn grace_periods(&self) -> usize {
        self.rcu.grace_periods()
    }
}

// SAFETY: as the RCU inside, but for the lies.
unsafe impl Rcu for Liar<'_> {
    type Token = ();

    fn enter(&self) {
        self.rcu.enter();
    }

    unsafe fn exit(&self, token: ()) {
        // SAFETY: the caller's debt.
        unsafe { self.rcu.exit(token) };
    }

    unsafe fn call(&self, head: NonNull<Head>, callback: Callback) {
        // SAFETY: the caller's debts.
        unsafe { self.rcu.call(head, callback) };
    }

    fn barrier(&self) {
        self.rcu.barrier();
    }
}

/// Every block has its own cookie, which is asked once more before anything is freed.
#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "T2: freed before its grace period")]
fn t2_a_block_that_is_freed_early_is_found() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let lies = Cell::new(0);
    let liar = Liar { rcu: &rcu, lies };
    // SAFETY: nothing is deferred; never dropped, for it would wait for what it lost.
    let made = unsafe { Kvfree::new(&hand, &pages, &liar, &ledger, Config::new()) };
    let front = ManuallyDrop::new(made.unwrap());
    retire(&*front, &ledger, false);
    liar.lies.set(1);
    front.tick();
}

/// Without memory, too, nobody waits for a grace period but who asked to: not the monitor, not two arguments.
#[test]
fn t7_reclaiming_never_waits_for_a_grace_period() {
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Sometimes);
        let front = front(&hand, &pages, &rcu, &ledger, Config::new());
        pages.set_failure(failure);
        for _ in 0..10 {
            retire_many(&front, &ledger, 100);
            assert!(front.tick() > 0);
            front.relieve();
            front.shrink_scan(10);
        }
        assert_eq!((rcu.grace_periods(), ledger.freed()), (0, 0));
        front.barrier();
        ledger.assert_no_faults();
    }
}

/// A head 4096 words or more into its object is refused (in a constant, when compiled: the doctest of `HeadOffset::from_bytes`), and one word less is
/// not, on objects of any size.
#[test]
fn t12_offsets_end_at_4096_words() {
    const WORD: usize = size_of::<usize>();
    let most = HeadOffset::from_bytes((rcu_core::MAX_OFFSET_WORDS - 1) * WORD);
    assert_eq!(most.bytes(), 4095 * WORD);
    for words in [rcu_core::MAX_OFFSET_WORDS, 1 << 20] {
        let made = std::panic::catch_unwind(|| HeadOffset::from_bytes(words * WORD));
        assert!(made.is_err());
    }
    assert!(std::panic::catch_unwind(|| HeadOffset::from_bytes(WORD + 1)).is_err());
}

/// Frees by the word in the head alone: no function of who retired is needed any more, so none need be waited for before its code goes.
#[test]
fn k1_post_2008_callbacks_free_by_offset() {
    let rcu = ManualRcu::new();
    let ledger = Ledger::new(&rcu, Defer::Never);
    rcu.set_free(Books::FREE);
    // SAFETY: `rcu` frees objects of the ledger.
    let twin = unsafe { Unbatched::new(&rcu, &ledger) };
    let items: Vec<_> = (0..50).map(|_| retire(&twin, &ledger, false)).collect();
    for item in &items {
        // SAFETY: queued, and not freed yet.
        let callback = unsafe { item.head().as_ref() }.callback();
        assert!(matches!(callback, Callback::Free(offset) if offset == Item::OFFSET));
    }
    rcu.advance();
    rcu.advance();
    rcu.run_callbacks();
    assert!(items.iter().all(|&item| ledger.is_freed(item)));
    ledger.assert_no_faults();
}

/// Large objects, whose freeing may take locks of the system's, are freed where that is allowed only, blocks or no blocks.
#[test]
fn k10_post_2008_large_objects_are_freed_outside_of_callbacks() {
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::auto());
        let ledger = Ledger::new(&rcu, Defer::Never);
        let front = front(&hand, &pages, &rcu, &ledger, Config::new().ask_after_blocks(1));
        pages.set_failure(failure);
        for _ in 0..200 {
            // Ripe ones in line, and nothing freed by who retires and may not wait.
            retire(&front, &ledger, true);
            ledger.without_freeing(|| rcu.run_callbacks());
        }
        assert_eq!(ledger.freed(), 0);
        front.barrier();
        assert_eq!(ledger.freed(), 200);
        ledger.assert_no_faults();
    }
}

/// Blocks in a chain, oldest first: what is not ripe holds nothing up that came before it.
#[test]
fn k5_post_2020_lockless_blocks_in_a_chain() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    let old: Vec<_> = (0..2 * BLOCK).map(|_| retire(&front, &ledger, false)).collect();
    rcu.step();
    let new: Vec<_> = (0..2 * BLOCK).map(|_| retire(&front, &ledger, false)).collect();
    rcu.step();
    front.tick();
    assert!(old.iter().all(|&item| ledger.is_freed(item)));
    assert!(new.iter().all(|&item| !ledger.is_freed(item)));
    rcu.advance();
    front.tick();
    assert!(new.iter().all(|&item| ledger.is_freed(item)));
    ledger.assert_no_faults();
}

/// Who calls knows its context: two arguments go by the head without a page, one argument asks for one and waits.
#[test]
fn k2_k3_post_2020_lockless_callers_know_their_context() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    pages.set_failure(Failure::From(0));
    rcu.enter();
    let two = retire(&front, &ledger, false);
    // SAFETY: entered above.
    unsafe { rcu.exit(()) };
    assert_eq!((front.stats().by_head, front.stats().synchronized), (1, 0));
    assert_eq!(rcu.grace_periods(), 0);
    let one = ledger.alloc(false);
    ledger.retiring(one);
    // SAFETY: the ledger's object, given up.
    unsafe { front.retire_mightsleep(one.at) };
    assert_eq!((front.stats().by_head, front.stats().synchronized), (1, 1));
    assert!(ledger.is_freed(one) && !ledger.is_freed(two));
    front.barrier();
    ledger.assert_no_faults();
}

/// What `stats` says of what waits: how long, where, and which ways were left.
#[test]
fn statistics_tell_age_and_place() {
    let (hand, pages, rcu) = (Hand::new(3), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new());
    hand.go(Some(1));
    retire(&front, &ledger, true);
    for _ in 0..7 {
        front.tick();
    }
    hand.go(Some(0));
    pages.set_failure(Failure::From(0));
    retire(&front, &ledger, false);
    for _ in 0..3 {
        front.tick();
    }
    let young = front.slot_stats(Slot::new(0)).unwrap();
    let old = front.slot_stats(Slot::new(1)).unwrap();
    assert_eq!((young.oldest_rounds, young.objects_waiting, young.by_head), (3, 1, 1));
    assert_eq!((old.oldest_rounds, old.bytes_waiting), (10, LARGE_BYTES));
    assert!(front.slot_stats(Slot::new(2)).is_none());
    let stats = front.stats();
    assert_eq!((stats.oldest_rounds, stats.objects_waiting), (10, 2));
    // A thread that ends takes nothing away.
    hand.bounce();
    assert_eq!(front.stats().oldest_rounds, 10);
    hand.go(Some(1));
    hand.bounce();
    front.tick();
    assert_eq!(front.stats().oldest_rounds, 11);
    let report = front.report().to_string();
    assert!(report.contains("oldest for 11 rounds") && !report.contains("slot "), "{report}");
    front.barrier();
    retire(&front, &ledger, false);
    assert_eq!(front.stats().oldest_rounds, 0);
    assert!(front.report().to_string().contains("\nslot 1: waiting 1 objects"));
    front.barrier();
    ledger.assert_no_faults();
}

/// Above a slot's limit, every chunk asks for a grace period, by blocks or by heads; below it, nobody does.
#[test]
fn a_slot_above_its_limit_asks_at_once() {
    const LIMIT: usize = 1 << 20;
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Never);
        let config = Config::new().slot_limit(LIMIT).ask_after_bytes(usize::MAX);
        let config = config.ask_after_blocks(usize::MAX).soft_limit(usize::MAX);
        let front = front(&hand, &pages, &rcu, &ledger, config);
        pages.set_failure(failure);
        let mut bytes = [0; 2];
        for n in 0..2 * (LIMIT / LARGE_BYTES) - 2 {
            // Each by itself is below.
            hand.go(Some(n as u32 % 2));
            retire(&front, &ledger, true);
            bytes[n % 2] += LARGE_BYTES;
            assert!(!rcu.drive(), "asked for at {bytes:?}");
        }
        while !rcu.drive() {
            retire(&front, &ledger, true);
            bytes[1] += LARGE_BYTES;
            assert!(bytes[1] <= LIMIT + (64 << 10) + LARGE_BYTES, "late");
        }
        front.barrier();
        ledger.assert_no_faults();
    }
}

/// At the limit the allocator's own batches take no more in than ours do.
#[test]
fn at_the_limit_nothing_is_deferred() {
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Always);
    let front = front(&hand, &pages, &rcu, &ledger, Config::new().hard_limit(10 * LARGE_BYTES));
    for _ in 0..11 {
        retire(&front, &ledger, true);
    }
    front.tick();
    let item = ledger.alloc(true);
    // SAFETY: the ledger's object, still the test's if it comes back.
    assert_eq!(unsafe { front.try_retire(item.at) }, Err(item.at));
    assert_eq!(front.stats().refused, 1);
    ledger.retiring(item);
    // SAFETY: the ledger's object, given up.
    unsafe { front.retire_mightsleep(item.at) };
    assert!(ledger.is_freed(item), "its owner has waited");
    assert_eq!(front.stats().synchronized, 1);
    front.barrier();
    ledger.assert_no_faults();
}

/// Whom the limit is told to may panic: what was charged for is discharged, and nothing is lost.
#[test]
fn a_panic_at_the_limit_loses_nothing() {
    let config = Config::new().hard_limit(LARGE_BYTES).tells(|_| panic!("on purpose"));
    let (hand, pages, rcu) = (Hand::new(1), Pages::new(), ManualRcu::new());
    let ledger = Ledger::new(&rcu, Defer::Never);
    let front = front(&hand, &pages, &rcu, &ledger, config);
    for _ in 0..4 {
        retire(&front, &ledger, true);
    }
    let tick = std::panic::AssertUnwindSafe(|| front.tick());
    assert!(std::panic::catch_unwind(tick).is_err());
    while front.tick() > 0 {
        rcu.advance_wanted();
        rcu.advance();
    }
    assert_eq!((ledger.waiting(), front.stats().bytes_charged), (0, 0));
    front.barrier();
    ledger.assert_no_faults();
}

/// The slots' pages are the front end's own, and all of them go back.
#[test]
fn dropping_a_front_end_waits_for_its_own() {
    for failure in [Failure::Never, Failure::From(0)] {
        let (hand, pages, rcu) = (Hand::new(2), Pages::new(), ManualRcu::new());
        let ledger = Ledger::new(&rcu, Defer::Sometimes);
        let made = front(&hand, &pages, &rcu, &ledger, Config::new());
        pages.set_failure(failure);
        for slot in [Some(0), None, Some(1)] {
            hand.go(slot);
            retire_many(&made, &ledger, 100);
            retire_head(&made, &ledger);
        }
        drop(made);
        assert_eq!((ledger.waiting(), pages.outstanding()), (0, 0));
        ledger.assert_no_faults();
        // Nothing of it is left behind: the pages are whole.
        pages.set_failure(Failure::Never);
        let page = pages.alloc(PageReq::new(Order::ZERO)).unwrap();
        // SAFETY: allocated just now.
        unsafe { pages.free(page, Order::ZERO) };
    }
}
