//! Tiny against the conformance tests of rcu-core, as a value, by reference, and as a domain.

use rcu_core::conformance::note_free;
use rcu_core::{Domain, grace_period_conformance, rcu_conformance};
use rcu_tiny::{Tiny, TinyStatic};

grace_period_conformance!(tiny_gp, Tiny::new());
grace_period_conformance!(tiny_gp_by_reference, &Tiny::new());
rcu_conformance!(tiny, Tiny::new());
rcu_conformance!(tiny_by_reference, &Tiny::new());
rcu_conformance!(tiny_free, free: Tiny::new().with_kfree(note_free));

/// A domain of its own for a test that names it, on which the test's thread is the only one.
macro_rules! domain_test {
    ($module:ident, $test:ident) => {
        mod $module {
            use super::*;

            // SAFETY: only the one test below uses it, on one thread.
            static RCU: TinyStatic = unsafe { TinyStatic::new(Tiny::new()) };
            rcu_core::domain! {
                struct Only = RCU: Tiny;
            }

            #[test]
            fn $test() {
                fn is_domain<D: Domain>(domain: D) -> D {
                    domain
                }
                rcu_core::conformance::$test(&is_domain(Only));
            }
        }
    };
}
domain_test!(domain_sections, r1_never_done_inside_a_section);
domain_test!(domain_full, r8_t35_full_cookie_never_misses);
domain_test!(domain_online, r20_g10_online_is_a_section);
domain_test!(domain_lazy, r17_lazy_and_ordinary_callbacks_run_once);
domain_test!(
    domain_callbacks,
    r4_callbacks_run_once_after_a_grace_period_in_order
);
domain_test!(domain_again, t45_callbacks_call_again);
