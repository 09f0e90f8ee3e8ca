//! A front end over slots, pages and grace periods by hand, and the ways to retire.

use super::{Hand, Item, Ledger, ManualRcu, Pages};
use kvfree::{Config, DeferFree, Kvfree};

/// Objects in a block.
pub(crate) const BLOCK: usize = 507;

pub(crate) type Books<'a> = Ledger<&'a ManualRcu>;
pub(crate) type Front<'a> = Kvfree<&'a Hand, &'a Pages, &'a ManualRcu, &'a Books<'a>>;

pub(crate) fn front<'a>(
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
pub(crate) fn retire(front: &impl DeferFree, ledger: &Books<'_>, large: bool) -> Item {
    let item = ledger.alloc(large);
    ledger.retiring(item);
    // SAFETY: the ledger's object, with its head, given up.
    ledger.without_freeing(|| unsafe { front.retire(item.head(), Item::OFFSET) });
    item
}

pub(crate) fn retire_many(front: &impl DeferFree, ledger: &Books<'_>, objects: usize) {
    for _ in 0..objects {
        retire(front, ledger, false);
    }
}

/// One with a function that drops it.
pub(crate) fn retire_with(front: &Front<'_>, ledger: &Books<'_>) -> Item {
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object and its function, given up.
    unsafe { front.retire_with_mightsleep(item.at, Books::DROP, 64) };
    item
}

/// One with a head and a function of its own.
pub(crate) fn retire_head(front: &Front<'_>, ledger: &Books<'_>) -> Item {
    let item = ledger.alloc(false);
    ledger.retiring(item);
    // SAFETY: the ledger's object, its head and its function, given up.
    unsafe { front.retire_head(item.head(), Books::CALLBACK, 64) };
    item
}
