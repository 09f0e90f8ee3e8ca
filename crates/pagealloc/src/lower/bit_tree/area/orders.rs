//! What the accesses to an area's words are worth, and their mutants.

use rcu_core::sync::atomic::Ordering;

/// P7 (bits): what a giver's words are worth, and their mutants.
#[inline(always)]
pub(super) fn give_bits_order() -> Ordering {
    if rcu_core::weakened!("p7_bits") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}
#[inline(always)]
pub(super) fn give_count_order() -> Ordering {
    if rcu_core::weakened!("p7_count") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}
/// A claimer's side that did not find all, and its mutant.
#[inline(always)]
pub(super) fn back_count_order() -> Ordering {
    if rcu_core::weakened!("p7_back") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}
/// The claimers' sides: a count taken, a whole half or area, bits of a row, a row, bits of a range; and their mutants.
#[inline(always)]
pub(super) fn take_count_order() -> Ordering {
    if rcu_core::weakened!("p7_claim_count") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}
#[inline(always)]
pub(super) fn take_whole_order() -> Ordering {
    if rcu_core::weakened!("p7_claim_whole") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}
#[inline(always)]
pub(super) fn take_bits_order() -> Ordering {
    if rcu_core::weakened!("p7_claim_bits") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}
#[inline(always)]
pub(super) fn take_row_order() -> Ordering {
    if rcu_core::weakened!("p7_claim_row") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}
#[inline(always)]
pub(super) fn take_range_order() -> Ordering {
    if rcu_core::weakened!("p7_claim_range") {
        Ordering::Relaxed
    } else {
        Ordering::Acquire
    }
}
