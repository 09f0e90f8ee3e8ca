//! The barn: sheaves between the slots and the slabs.
//!
//! Source: Linux `mm/slub.c` (6.18), `struct node_barn` (facts and constants only).
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `full` | sheaves with objects, free to hand out, by who put them there | under the lock |
//! | `empty` | sheaves without | under the lock |
//! | `orphans` | sealed sheaves, waiting for their cookies: what slots have beyond their share, and of slots that went offline | under the lock |
//! | `left` | sheaves with objects that were left here while the lock was taken | anyone, see [`Inbox`] |
//!
//! # Invariants
//! - I1. Objects in `full` and `left` are free to hand out; objects in `orphans` are not before their sheaf's cookie is done.
//! - I2. The limits are soft (T18): `left` is taken in whatever its length.
//!
//! # How much is kept
//! A barn starts small, so that an idle cache holds little, and learns: an allocation that finds no full sheaf, though some were turned
//! away since the last one that did, raises the limit by as many, at most to twice what it was and to [`Limits::most`]. Had they
//! been kept, it would have found one. [`Stock::forget`] starts anew. Sheaves of retired objects that are taken out again as surplus do
//! not count: with more in the barn, allocations would not push their own slot's line on.
//!
//! # Contexts
//! The lock is taken inside a slot's local lock, and the slabs' lock inside this one. No page is asked for or given
//! back under it.

use crate::inbox::Inbox;
use crate::pool::lock;
use crate::sheaf::{Sheaf, SheafList};
use core::ptr::NonNull;
use pagealloc::Attempt;
use rcu_core::cpu::{SpinGuard, SpinMutex};
use rcu_core::{Cookie, GracePeriod};

/// Slots whose sheaves are kept apart: a slot finds its own again first, whose objects its CPU's caches still have.
const STRIPES: usize = 8;
/// Sheaves without objects that a cache keeps at least.
#[doc(alias = "MAX_EMPTY_SHEAVES")]
const MAX_EMPTY: usize = 10;

/// How many sheaves with objects a cache keeps.
#[derive(Clone, Copy, Debug)]
#[doc(alias = "MAX_FULL_SHEAVES")]
pub(crate) struct Limits {
    /// At first.
    pub(crate) first: u32,
    /// However often they are missed.
    pub(crate) most: u32,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct Stock {
    full: [SheafList; STRIPES],
    empty: SheafList,
    pub(crate) orphans: SheafList,
    /// Somebody took an orphan since the monitor last came by.
    is_drawn_on: bool,
    limits: Limits,
    /// Sheaves in `full` that are not too many.
    limit: u32,
    /// Sheaves turned away since `full` was last found empty.
    turned_away: u32,
}

impl Stock {
    fn nr_full(&self) -> usize {
        self.full.iter().map(SheafList::sheaves).sum()
    }

    fn pop_full(&mut self, near: usize) -> Option<Sheaf> {
        (0..STRIPES).find_map(|n| self.full[(near + n) % STRIPES].pop_front())
    }

    /// Takes a sheaf with objects, for nobody who would miss it.
    pub(crate) fn take_any(&mut self) -> Option<Sheaf> {
        self.pop_full(0)
    }

    /// Takes a sheaf with objects, one that was put by the slot of the number `near` if there is one.
    pub(crate) fn take_full(&mut self, near: usize) -> Option<Sheaf> {
        let full = self.pop_full(near);
        if full.is_none() && self.turned_away > 0 {
            let missing = self.turned_away.min(self.limit);
            self.limit = (self.limit + missing).min(self.limits.most);
            self.turned_away = 0;
        }
        full
    }

    /// Keeps no more than at first.
    pub(crate) fn forget(&mut self) {
        self.limit = self.limits.first;
        self.turned_away = 0;
    }

    fn has_room(&mut self) -> bool {
        let has_room = self.nr_full() < self.limit as usize;
        self.turned_away += u32::from(!has_room);
        has_room
    }

    /// Keeps a sheaf with objects, unless there are enough, and gives one without for it if there is one.
    pub(crate) fn exchange(&mut self, full: Sheaf, near: usize) -> Result<Option<Sheaf>, Sheaf> {
        self.put_full(full, near)?;
        Ok(self.take_empty())
    }

    /// Takes the eldest orphan if its cookie is done.
    pub(crate) fn take_ripe<G: GracePeriod>(&mut self, gp: &G) -> Option<Sheaf> {
        let ripe = (self.orphans.first()).is_some_and(|s| gp.poll(s.cookie()));
        self.is_drawn_on |= ripe;
        if ripe { self.orphans.pop_front() } else { None }
    }

    /// Whether nobody took an orphan since this was last asked, so that those that are ripe are nobody's who is at work.
    pub(crate) fn are_orphans_idle(&mut self) -> bool {
        !core::mem::take(&mut self.is_drawn_on)
    }

    /// Takes a sheaf without objects.
    pub(crate) fn take_empty(&mut self) -> Option<Sheaf> {
        self.empty.pop_front()
    }

    /// Keeps a sheaf without objects, unless there are enough.
    pub(crate) fn put_empty(&mut self, sheaf: Sheaf) -> Result<(), Sheaf> {
        // T16: a sheaf that still has objects would lose them here.
        debug_assert!(sheaf.is_empty(), "T16: objects in an empty sheaf");
        // As many as would hold what may be kept.
        let enough = (self.limit as usize).saturating_sub(self.nr_full());
        if self.empty.sheaves() >= MAX_EMPTY.max(enough) {
            return Err(sheaf);
        }
        self.empty.push_front(sheaf);
        Ok(())
    }

    /// Keeps a sheaf with objects, unless there are enough.
    pub(crate) fn put_full(&mut self, sheaf: Sheaf, near: usize) -> Result<(), Sheaf> {
        debug_assert!(!sheaf.is_empty(), "I1: no objects in a full sheaf");
        if !self.has_room() {
            return Err(sheaf);
        }
        self.full[near % STRIPES].push_front(sheaf);
        Ok(())
    }

    /// Takes a sheaf with objects in whatever there is already; [`Self::take_surplus`] finds it later.
    pub(crate) fn add_full(&mut self, sheaf: Sheaf) {
        debug_assert!(!sheaf.is_empty(), "I1: no objects in a full sheaf");
        self.full[0].push_front(sheaf);
    }

    /// Takes a sheaf with objects if there are more than enough.
    pub(crate) fn take_surplus(&mut self) -> Option<Sheaf> {
        if self.nr_full() > self.limit as usize {
            self.pop_full(0)
        } else {
            None
        }
    }

    /// Takes in every orphan whose cookie is done, and says how many objects that were.
    pub(crate) fn adopt_ripe<G: GracePeriod>(
        &mut self,
        gp: &G,
        freed: impl Fn(&[NonNull<u8>]),
    ) -> usize {
        let mut objects = 0;
        // Orphans of several slots: their cookies are in no order, so all are looked at.
        for _ in 0..self.orphans.sheaves() {
            let Some(sheaf) = self.orphans.pop_front() else {
                break;
            };
            if gp.poll(sheaf.cookie()) {
                freed(sheaf.as_slice());
                objects += sheaf.len();
                self.full[0].push_front(sheaf);
            } else {
                self.orphans.push_back(sheaf);
            }
        }
        objects
    }

    /// The latest cookie that an orphan waits for.
    pub(crate) fn latest_orphan(&mut self) -> Option<Cookie> {
        let mut latest = None;
        for _ in 0..self.orphans.sheaves() {
            let Some(sheaf) = self.orphans.pop_front() else {
                break;
            };
            latest = later(latest, Some(sheaf.cookie()));
            self.orphans.push_back(sheaf);
        }
        latest
    }

    /// How many sheaves with, and without, objects there are.
    pub(crate) fn sheaves(&self) -> (usize, usize) {
        (self.nr_full(), self.empty.sheaves())
    }

    /// Objects free to hand out.
    pub(crate) fn objects(&self) -> usize {
        self.full.iter().map(SheafList::objects).sum()
    }
}

/// The cookie of the two that is reached last.
pub(crate) fn later(a: Option<Cookie>, b: Option<Cookie>) -> Option<Cookie> {
    match (a, b) {
        (Some(a), Some(b)) if b.is_no_later_than(a) => Some(a),
        (a, None) => a,
        (_, b) => b,
    }
}

/// The barn of one cache.
#[derive(Debug)]
pub(crate) struct Barn {
    stock: SpinMutex<Stock>,
    left: Inbox,
}

impl Barn {
    rcu_core::const_fn! {
        /// An empty barn.
        pub(crate) const fn new(limits: Limits) -> Self {
            Self {
                stock: SpinMutex::new(Stock {
                    full: [const { SheafList::new() }; STRIPES],
                    empty: SheafList::new(),
                    orphans: SheafList::new(),
                    is_drawn_on: false,
                    limits,
                    limit: limits.first,
                    turned_away: 0,
                }),
                left: Inbox::new(),
            }
        }
    }

    /// Goes in, waiting.
    pub(crate) fn enter(&self) -> SpinGuard<'_, Stock> {
        self.take_in(self.stock.lock())
    }

    /// Goes in as `attempt` allows.
    pub(crate) fn lock(&self, attempt: Attempt) -> Option<SpinGuard<'_, Stock>> {
        Some(self.take_in(lock(&self.stock, attempt)?))
    }

    /// Takes in what was left while the lock was taken.
    fn take_in<'a>(&self, mut stock: SpinGuard<'a, Stock>) -> SpinGuard<'a, Stock> {
        let mut next = self.left.take_all();
        while let Some(link) = next {
            // SAFETY: taken nodes are this call's and begin with a link.
            next = unsafe { link.as_ref() }.next;
            // SAFETY: the node came from `leave`, and is off the list.
            stock.full[0].push_front(unsafe { Sheaf::from_link(link) });
        }
        stock
    }

    /// Leaves a sheaf with objects for whoever goes in next. Never waits.
    pub(crate) fn leave(&self, sheaf: Sheaf) {
        // SAFETY: a sheaf begins with a link, and is the barn's now.
        unsafe { self.left.push(sheaf.into_link()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Pages;
    use crate::pool::Pool;
    use core::ptr::NonNull;

    const LIMITS: Limits = Limits { first: 2, most: 5 };

    #[test]
    fn what_was_turned_away_and_missed_is_kept_the_next_time() {
        let (pages, mut pool) = (Pages::new(), Pool::new(64));
        let full = || {
            let block = pool.get(&pages, Attempt::MayGrow).unwrap();
            // SAFETY: the block has room for the header and five pointers.
            let mut sheaf = unsafe { Sheaf::init(block, 5) };
            assert!(sheaf.push(NonNull::dangling()));
            sheaf
        };
        // SAFETY: blocks of the pool.
        let drop_sheaf = |sheaf: Sheaf| unsafe { pool.put(sheaf.into_block()) };
        let barn = Barn::new(LIMITS);
        for kept in [2, 4, 5, 5] {
            let mut stock = barn.enter();
            for n in 0..7 {
                let put = stock.put_full(full(), 1);
                assert_eq!(put.is_ok(), n < kept, "{n} of {kept}");
                let _ = put.map_err(drop_sheaf);
            }
            // Not missed yet, so not more the next time.
            assert!(stock.put_full(full(), 1).map_err(drop_sheaf).is_err());
            (0..kept).for_each(|_| drop_sheaf(stock.take_full(0).unwrap()));
            assert!(stock.take_full(0).is_none());
            assert!(stock.take_full(0).is_none(), "counted once");
        }
        barn.enter().forget();
        assert_eq!(barn.enter().limit, 2);
        pool.release(&pages);
        assert_eq!(pages.outstanding(), 0);
    }

    #[test]
    fn a_sheaf_left_at_the_door_is_taken_in() {
        let (pages, mut pool) = (Pages::new(), Pool::new(64));
        let block = pool.get(&pages, Attempt::MayGrow).unwrap();
        // SAFETY: the block has room for the header and five pointers.
        let mut sheaf = unsafe { Sheaf::init(block, 5) };
        assert!(sheaf.push(NonNull::dangling()));
        let barn = Barn::new(LIMITS);
        let held = barn.enter();
        assert!(barn.lock(Attempt::TryLock).is_none());
        barn.leave(sheaf);
        drop(held);
        let mut stock = barn.enter();
        assert_eq!((stock.sheaves(), stock.objects()), ((1, 0), 1));
        let sheaf = stock.take_full(0).unwrap();
        // SAFETY: the block came from the pool.
        unsafe { pool.put(sheaf.into_block()) };
        pool.release(&pages);
        assert_eq!(pages.outstanding(), 0);
    }

    #[test]
    fn the_later_of_two_cookies_is_kept() {
        let cookie = |n: usize| Some(Cookie::from_raw(n * 4));
        assert_eq!(later(cookie(3), cookie(5)), cookie(5));
        assert_eq!(later(cookie(5), cookie(3)), cookie(5));
        assert_eq!(later(None, cookie(3)), cookie(3));
        assert_eq!(later(cookie(3), None), cookie(3));
        assert_eq!(later(cookie(3), Some(Cookie::COMPLETED)), cookie(3));
        assert_eq!(later(Some(Cookie::COMPLETED), cookie(3)), cookie(3));
    }
}
