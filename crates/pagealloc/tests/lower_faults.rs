//! The suite for lower levels finds each of these faults.

#![cfg(all(feature = "std", target_has_atomic = "64", not(loom)))]

use pagealloc::conformance::faulty::{self, Faulty};
use pagealloc::conformance::lowers::{self, offers};
use pagealloc::{BitTree, Buddies};

macro_rules! finds {
    ($($name:ident: $test:path, $fault:ident in $($lower:ident)|+, $words:literal;)+) => {
        $(mod $name {
            use super::*;
            finds!(@each $test, $fault, $words, $($lower)+);
        })+
    };
    (@each $test:path, $fault:ident, $words:literal, $($lower:ident)+) => {
        $(
            #[test]
            #[should_panic(expected = $words)]
            #[expect(non_snake_case, reason = "named after the type")]
            fn $lower() {
                use $test as test;
                test::<Faulty<super::$lower, { faulty::$fault }>>();
            }
        )+
    };
}

finds! {
    a_lost_page: lowers::blocks_are_aligned_disjoint_and_merge_again, LOSES in Buddies | BitTree, "";
    a_page_in_two_hands: lowers::holes_are_never_handed_out, DOUBLES in Buddies | BitTree, "a page that was free";
    dirt_called_zero: lowers::zero_is_true_of_every_page, ZEROES in Buddies | BitTree, "a part was used";
    a_block_beside_its_place: lowers::blocks_are_aligned_disjoint_and_merge_again, SHIFTS in Buddies | BitTree, "";
    a_range_half_taken: lowers::a_range_is_taken_whole_or_not_at_all, KEEPS in Buddies | BitTree, "";
    a_page_left_in_a_region: offers::regions_come_and_go, SKIPS in Buddies | BitTree, "a free page was passed over";
    memory_in_use_called_idle: offers::idle_pages_are_those_that_nobody_needed, ALL_IDLE in Buddies | BitTree, "all were needed";
    a_picture_without_free_pages: lowers::holes_are_never_handed_out, HIDES in BitTree, "the picture";
    contention_alone: lowers::blocks_are_aligned_disjoint_and_merge_again, CONTENDS in Buddies | BitTree, "nobody else is here";
    clean_memory_offered: lowers::whole_blocks_are_shown_once, OFFERS_CLEAN in Buddies | BitTree, "!run.zero";
    a_wrong_count: lowers::holes_are_never_handed_out, MISCOUNTS in Buddies | BitTree, "";
    words_that_are_too_many: offers::it_keeps_at_most_two_bytes_a_page, FAT in Buddies | BitTree, "bytes for";
    a_page_kept_for_nobody: offers::slots_that_leave_keep_nothing, CLINGS in Buddies | BitTree, "";
    types_without_blocks: offers::types_are_kept_by_pageblock_or_not_at_all, NO_TYPES in Buddies | BitTree, "";
    silence_about_what_waits: offers::what_waits_is_counted, SILENT in Buddies, "what waits is free, too";
}
