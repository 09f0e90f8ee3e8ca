//! In a build with AddressSanitizer (`cargo xtask asan`), a reader that keeps a pointer too long is reported, whatever way the object
//! went: each does it in a child process, which has to say so.

#![cfg(all(address_sanitizer, feature = "std", target_os = "linux", not(loom)))]

#[path = "../../rcu-core/tests/common/aborts.rs"]
mod aborts;

use aborts::aborts;
use kvfree::{RcuBox, RcuCell, read_lock};
use std::alloc::Layout;
use std::ptr::NonNull;

/// Runs `deed` in a child of its own, which must end with a report.
fn is_reported(test: &str, deed: impl FnOnce()) {
    aborts(test, deed, &["ERROR: AddressSanitizer: use-after-poison"]);
}

#[repr(C)]
struct Drops([u64; 8], String);

/// Publishes two, one after the other, and reads the first in its section, and then behind a barrier.
fn reads_too_long<T: Send + Sync + 'static>(make: impl Fn() -> T) {
    let cell = RcuCell::new(RcuBox::new(make()));
    let guard = read_lock();
    let seen = NonNull::from_ref(cell.load(&guard).unwrap()).cast::<u64>();
    cell.store(Some(RcuBox::new(make())));
    // SAFETY: the section keeps it.
    assert_eq!(unsafe { seen.read_volatile() }, 7);
    drop(guard);
    kvfree::barrier();
    // SAFETY: none: it is free.
    let stale = unsafe { seen.read_volatile() };
    eprintln!("read {stale} and nobody noticed");
}

#[test]
fn a_small_object_read_after_its_section() {
    is_reported("a_small_object_read_after_its_section", || {
        reads_too_long(|| [7_u64; 8]);
    });
}

#[test]
fn one_with_a_destructor() {
    is_reported("one_with_a_destructor", || {
        reads_too_long(|| Drops([7; 8], String::from("needs dropping")));
    });
}

#[test]
fn a_large_object_read_after_its_section() {
    is_reported("a_large_object_read_after_its_section", || {
        reads_too_long(|| [7_u64; 4000]);
    });
}

#[test]
fn one_that_was_retired_without_a_head() {
    is_reported("one_that_was_retired_without_a_head", || {
        let layout = Layout::new::<[u64; 20]>();
        let object = kvfree::objects().kmalloc(layout).unwrap().cast::<u64>();
        // SAFETY: fresh memory of this layout.
        unsafe { object.write(7) };
        // SAFETY: allocated above, and seen by nobody.
        unsafe { kvfree::retire_mightsleep(object.cast()) };
        kvfree::barrier();
        // SAFETY: none: it is free.
        unsafe { object.write_volatile(8) };
    });
}
