//! What a zone's own structures need.

use super::Place;
use crate::api::PAGE_SIZE;
use crate::frames::Metas;
#[cfg(target_has_atomic = "64")]
use crate::lower::BitTree;
use crate::lower::{Buddies, Extent, Lower};
use rcu_core::cpu::{Cpus, OneCpu, Threads};

/// What is kept about each page, by everybody.
const BYTES_PER_PAGE: usize = 16;

fn bytes<C: Cpus, B: Lower>(pages: u32, bias: u32, slots: u32) -> usize {
    let place = Place::new::<C, B>(Extent::new(pages, bias, slots));
    place.expect("a layout").layout.size()
}

/// At every size: twice as many pages need at most 16 bytes more for each. And all that the lower level keeps, its constant part
/// included, has room beside the pages' metadata from 16 MiB on.
fn sixteen_bytes_a_page<B: Lower>() {
    for bias in [0, 1, 1023] {
        for log2 in 10..28 {
            let pages = 1 << log2;
            let more = bytes::<OneCpu, B>(2 * pages, bias, 1) - bytes::<OneCpu, B>(pages, bias, 1);
            assert!(
                more <= BYTES_PER_PAGE * pages as usize,
                "{more} bytes for {pages} more pages"
            );
            let lower = B::layout(Extent::new(pages, bias, 8)).expect("a layout");
            let metas = Metas::layout(pages as usize).expect("a layout");
            let all = lower.size() + metas.size();
            assert!(
                log2 < 12 || all <= BYTES_PER_PAGE * pages as usize,
                "{all} bytes for {pages} pages"
            );
        }
    }
    // Lines of slots are no page's: what a zone for many threads costs is theirs.
    let slots = bytes::<Threads, B>(1 << 20, 0, 64) - bytes::<Threads, B>(1 << 20, 0, 1);
    assert!(slots <= 63 * (2 * PAGE_SIZE), "{slots} bytes for 63 slots");
}

#[test]
fn metadata_is_at_most_16_bytes_a_page_whatever_keeps_the_free_ones() {
    sixteen_bytes_a_page::<Buddies>();
    #[cfg(target_has_atomic = "64")]
    sixteen_bytes_a_page::<BitTree>();
}
