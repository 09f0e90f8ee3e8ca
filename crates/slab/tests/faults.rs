//! What each check finds: each case runs in a child process, which must end with the right message.
#![cfg(not(loom))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;
mod common;
#[path = "common/victim.rs"]
mod victim;

use aborts::aborts;
use slab::Checks;
use std::alloc::Layout;
use std::ptr::NonNull;
use victim::{Raw, SIZE, cache, free, kmalloc, retire, scribble};

/// A test that `deed`, done to a cache with these checks, ends the program with all of `words`.
macro_rules! caught {
    ($name:ident, $checks:expr, $words:expr, $deed:expr) => {
        #[test]
        fn $name() {
            let deed: fn(&Raw) = $deed;
            let deed = || deed(&cache($checks));
            aborts(stringify!($name), deed, &$words);
        }
    };
}

const DOUBLE: [&str; 4] = [
    "slab: object freed twice",
    "cache victim",
    "object 0x",
    "slab 0x",
];

caught!(l15_at_once_freed_twice, Checks::AT_ONCE, DOUBLE, |cache| {
    let object = cache.alloc().unwrap();
    free(cache, object);
    free(cache, object);
});

caught!(
    l15_at_once_freed_twice_in_bulk,
    Checks::AT_ONCE,
    DOUBLE,
    |cache| {
        let (a, b) = (cache.alloc().unwrap(), cache.alloc().unwrap());
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free_bulk(&mut [a, b, a]) };
    }
);

caught!(
    l15_at_once_freed_twice_on_another_slot,
    Checks::AT_ONCE,
    DOUBLE,
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        cache.cpus().go(Some(1));
        free(cache, object);
    }
);

caught!(
    l15_at_once_freed_twice_from_the_quarantine,
    Checks::QUARANTINE,
    DOUBLE,
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        let other = cache.alloc().unwrap();
        assert_ne!(object, other);
        free(cache, object);
    }
);

caught!(
    l15_at_once_retired_object_freed,
    Checks::AT_ONCE,
    ["retired object freed", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        retire(cache, object);
        free(cache, object);
    }
);

caught!(
    l15_at_once_freed_object_retired,
    Checks::AT_ONCE,
    ["freed object retired", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        retire(cache, object);
    }
);

caught!(
    l15_at_once_retired_twice,
    Checks::AT_ONCE,
    ["object retired twice", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        retire(cache, object);
        retire(cache, object);
    }
);

caught!(
    l15_at_once_freed_after_the_grace_period_of_its_retirement,
    Checks::AT_ONCE,
    DOUBLE,
    |cache| {
        let object = cache.alloc().unwrap();
        let _keeps_the_slab = cache.alloc().unwrap();
        retire(cache, object);
        cache.barrier();
        free(cache, object);
    }
);

caught!(
    l15_at_once_foreign,
    Checks::AT_ONCE,
    ["pointer is not from this cache", "cache victim"],
    |mine| {
        let other = cache(Checks::AT_ONCE);
        free(mine, other.alloc().unwrap());
    }
);

caught!(
    l15_at_once_retired_foreign,
    Checks::AT_ONCE,
    ["pointer is not from this cache", "cache victim"],
    |cache| {
        retire(
            cache,
            NonNull::from(Box::leak(Box::new([0_u64; 32]))).cast(),
        )
    }
);

caught!(
    l15_at_once_misaligned,
    Checks::AT_ONCE,
    ["start of an object", "cache victim"],
    |cache| {
        let object = cache.alloc().unwrap();
        // SAFETY: inside the object.
        free(cache, unsafe { object.add(8) });
    }
);

caught!(
    l15_words_overwritten,
    Checks::AT_ONCE,
    ["words of the checks before the object overwritten"],
    |cache| {
        let object = cache.alloc().unwrap();
        (1..=32).for_each(|at| scribble(object, -at, 0x41));
        free(cache, object);
    }
);

caught!(
    l15_red_zone_right_at_free,
    Checks::RED_ZONE,
    [
        "red zone overwritten",
        "right, byte +61: is 0x41, should be 0xcc",
        "cc cc",
        " 41 ",
    ],
    |cache| {
        let object = cache.alloc().unwrap();
        scribble(object, SIZE as isize, 0x41);
        free(cache, object);
    }
);

caught!(
    l15_red_zone_left_at_free,
    Checks::RED_ZONE,
    [
        "red zone overwritten",
        "left, byte -1: is 0x00, should be 0xcc",
    ],
    |cache| {
        let object = cache.alloc().unwrap();
        scribble(object, -1, 0);
        free(cache, object);
    }
);

caught!(
    l15_red_zone_at_retire,
    Checks::RED_ZONE,
    ["red zone overwritten", "right, byte +68"],
    |cache| {
        let object = cache.alloc().unwrap();
        scribble(object, 68, 1);
        retire(cache, object);
    }
);

caught!(
    l15_red_zone_at_the_end_of_the_grace_period,
    Checks::RED_ZONE,
    ["red zone overwritten", "left, byte -8"],
    |cache| {
        let object = cache.alloc().unwrap();
        retire(cache, object);
        scribble(object, -8, 1);
        cache.barrier();
    }
);

caught!(
    l15_red_zone_at_alloc,
    Checks::RED_ZONE,
    ["red zone overwritten", "should be 0xbb"],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        scribble(object, SIZE as isize + 1, 1);
        cache.alloc().unwrap();
    }
);

caught!(
    l15_poison_at_alloc,
    Checks::POISON,
    [
        "object written to after it was freed",
        "inside, byte +17: is 0x42, should be 0x6b",
        "+16: 6b 42 6b",
    ],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        scribble(object, 17, 0x42);
        cache.alloc().unwrap();
    }
);

caught!(
    l15_poison_of_the_last_byte,
    Checks::POISON,
    ["byte +60: is 0x6b, should be 0xa5"],
    |cache| {
        let object = cache.alloc().unwrap();
        free(cache, object);
        scribble(object, SIZE as isize - 1, 0x6b);
        cache.alloc().unwrap();
    }
);

caught!(
    l15_poison_after_the_grace_period,
    Checks::POISON,
    ["object written to after it was freed", "byte +0"],
    |cache| {
        let object = cache.alloc().unwrap();
        let _keeps_the_slab = cache.alloc().unwrap();
        retire(cache, object);
        cache.barrier();
        scribble(object, 0, 1);
        cache.alloc().unwrap();
    }
);

#[test]
fn l15_owners_are_in_the_message() {
    const BEFORE: u32 = line!();
    let deed = || {
        let cache = cache(Checks::OWNER);
        let object = cache.alloc().unwrap();
        free(&cache, object);
        free(&cache, object);
    };
    let at = |deed: &str, line: u32| format!("{deed} at {}:{}:", file!(), BEFORE + line);
    let lines = [
        at("last allocated", 3),
        at("last freed or retired", 4),
        at("now freed", 5),
    ];
    aborts(
        "l15_owners_are_in_the_message",
        deed,
        &[&lines[0], &lines[1], &lines[2]],
    );
}

#[test]
fn l15_the_byte_after_a_class_is_not() {
    let deed = || {
        let km = kmalloc();
        let memory = km.kmalloc(Layout::new::<[u8; 96]>()).unwrap();
        scribble(memory, 96, 0);
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { km.kfree(memory) };
    };
    let words = [
        "red zone overwritten",
        "cache kmalloc-96",
        "right, byte +96",
        file!(),
    ];
    aborts("l15_the_byte_after_a_class_is_not", deed, &words);
}

/// The second free is found before the value is dropped once more.
#[cfg(feature = "checks")]
#[test]
fn l15_a_value_is_not_dropped_twice() {
    struct Loud(u8);
    impl Drop for Loud {
        fn drop(&mut self) {
            assert_eq!(self.0, 7);
            eprintln!("dropped");
        }
    }
    let deed = || {
        let pages: &'static common::Pages = Box::leak(Box::new(common::Pages::new()));
        let cache =
            slab::Cache::new("victim", rcu_core::cpu::Threads, pages, rcu_core::NoReaders).unwrap();
        let value = cache.alloc(Loud(7)).unwrap();
        // SAFETY: the test had the value.
        unsafe { cache.free(value) };
        // SAFETY: none: the test breaks the contract on purpose.
        unsafe { cache.free(value) };
    };
    let words = ["dropped\nslab: object freed twice", "now freed at", file!()];
    aborts("l15_a_value_is_not_dropped_twice", deed, &words);
}
