//! Slabs by themselves.

use super::random::nth_free;
use super::*;
use crate::CacheConfig;
use core::alloc::Layout;

#[test]
fn a_new_slab_has_its_objects_free_and_no_more() {
    for size in [8, 16, 24, 64, 1000, 4096, 32768] {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let shape = CacheConfig::new("test", layout)
            .checks(Checks::empty())
            .shape()
            .unwrap();
        let slab = Slab::new(core::ptr::null(), NonNull::dangling(), &shape, 0);
        let free: u32 = slab.free.iter().map(|w| w.count_ones()).sum();
        assert_eq!(free as usize, shape.nr_objects);
        let last = slab.free.iter().rposition(|&w| w != 0).unwrap();
        let top = 64 * last + 64 - slab.free[last].leading_zeros() as usize;
        assert_eq!(top, shape.nr_objects);
    }
}

#[test]
fn l15_the_nth_free_object_is_found() {
    let free = [0b1011, 0, 1 << 63, 0, 0, 0, 1, 0];
    let indices = [0, 1, 2, 3, 4].map(|n| nth_free(&free, n));
    assert_eq!(indices, [0, 1, 3, 191, 384]);
}

#[test]
fn colours_stay_inside_the_block_and_aligned() {
    for (size, align) in [
        (1280, 128),
        (2560, 8),
        (320, 64),
        (24, 8),
        (64, 64),
        (9000, 8),
    ] {
        let layout = Layout::from_size_align(size, align).unwrap();
        let config = CacheConfig::new("test", layout);
        assert_eq!(config.shape().unwrap().colours, 1);
        let shape = config.colour(true).shape().unwrap();
        let last = (shape.colours - 1) * shape.colour_bytes;
        assert!(last + shape.nr_objects * shape.size <= shape.order.bytes());
        assert_eq!(shape.colour_bytes % align, 0);
        // An address before the first object is the place of none.
        for offset in 0..last {
            assert_eq!(shape.index_of(offset.wrapping_sub(last)), None);
        }
    }
}

#[test]
fn lists_go_by_quarters() {
    let shape = CacheConfig::new("test", Layout::new::<[u64; 8]>())
        .checks(Checks::empty())
        .shape()
        .unwrap();
    assert_eq!(shape.nr_objects, 64);
    let lists = [0, 1, 15, 16, 31, 32, 47, 48, 63, 64].map(|n| list_of(n, &shape));
    assert_eq!(lists, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]);
}

#[test]
fn a_slab_stays_exactly_where_its_list_is() {
    for size in [8, 24, 64, 1000, 4096, 8192, 32768] {
        let layout = Layout::from_size_align(size, 8).unwrap();
        let shape = CacheConfig::new("test", layout).shape().unwrap();
        for inuse in 0..=shape.nr_objects {
            for list in EMPTY..=FULL {
                let (from, span) = stay_of(list, &shape);
                let stays = (inuse as u16).wrapping_sub(from) < span;
                assert_eq!(
                    stays,
                    list == list_of(inuse, &shape),
                    "{size}: {inuse}, {list}"
                );
            }
        }
    }
}
