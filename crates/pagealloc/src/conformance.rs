//! What every [`PageAlloc`](crate::PageAlloc) must do, as tests that an implementation runs.
//!
//! ```
//! # mod demo {
//! use pagealloc::{Fixed, Zone, page_alloc_conformance};
//! # use rcu_core::cpu::OneCpu;
//!
//! # fn make() -> Zone<OneCpu, Fixed<'static>> {
//! #     let memory = vec![core::mem::MaybeUninit::uninit(); 32 << 20].leak();
//! #     // SAFETY: each test runs its zone in one thread.
//! #     Zone::new(unsafe { OneCpu::new() }, Fixed::new(memory).unwrap()).unwrap()
//! # }
//! // `make` returns an allocator of at least 16 MiB.
//! page_alloc_conformance!(my_allocator, make());
//! # }
//! ```
//!
//! `page_alloc_conformance!(name, expression, threads)` adds the test that uses the allocator from several threads.

/// Makes a module of tests that check an allocator against the guarantees of [`PageAlloc`](crate::PageAlloc).
#[macro_export]
macro_rules! page_alloc_conformance {
    ($name:ident, $make:expr) => {
        $crate::page_alloc_conformance!(@module $name, $make, {});
    };
    ($name:ident, $make:expr, threads) => {
        $crate::page_alloc_conformance!(@module $name, $make, {
            #[test]
            fn pages_may_be_freed_by_another_thread() {
                let pages = &$make;
                ::std::thread::scope(|scope| {
                    for seed in 0..3 {
                        scope.spawn(move || $crate::conformance::checks::churn(pages, seed, 400));
                    }
                });
                let out = $crate::conformance::checks::Out::take(pages, $crate::Order::ZERO);
                ::std::thread::scope(|scope| {
                    scope.spawn(move || out.give_back(pages));
                });
            }
        });
    };
    (@module $name:ident, $make:expr, { $($more:item)* }) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn blocks_are_aligned_disjoint_and_whole() {
                $crate::conformance::checks::blocks_are_aligned_disjoint_and_whole(&$make);
            }

            #[test]
            fn zeroed_blocks_read_as_zeroes() {
                $crate::conformance::checks::zeroed_blocks_read_as_zeroes(&$make);
            }

            #[test]
            fn p16_free_never_fails_at_any_level() {
                $crate::conformance::checks::p16_free_never_fails_at_any_level(&$make);
            }

            #[test]
            fn p13_bulk_calls_are_many_single_calls() {
                $crate::conformance::checks::p13_bulk_calls_are_many_single_calls(&$make);
            }

            #[test]
            fn p13_only_vacant_places_are_filled() {
                $crate::conformance::checks::p13_only_vacant_places_are_filled(&$make);
            }

            #[test]
            fn tags_are_found_from_every_page() {
                $crate::conformance::checks::tags_are_found_from_every_page(&$make);
            }

            #[test]
            fn orders_are_found_from_the_first_page() {
                $crate::conformance::checks::orders_are_found_from_the_first_page(&$make);
            }

            #[test]
            fn a_long_mix_of_calls() {
                $crate::conformance::checks::churn(&$make, 7, 3000);
            }

            $($more)*
        }
    };
}

#[doc(hidden)]
pub mod checks;
#[doc(hidden)]
pub mod faulty;
#[doc(hidden)]
pub mod forbidden;
#[cfg(feature = "std")]
#[doc(hidden)]
pub mod lowers;
#[cfg(feature = "std")]
#[doc(hidden)]
pub mod sources;
