//! The macro that names a static RCU by a type, for [`Domain`](crate::Domain).

/// Makes a domain: a zero-sized type that stands for a static RCU.
///
/// ```text
/// static ROUTES: Tree<'static, Threads> = …;
///
/// rcu_core::domain! {
///     /// Readers of the routing table.
///     pub struct Routes = ROUTES: Tree<'static, Threads>;
/// }
/// ```
///
/// It has to be a `static`: each use of a constant would be another RCU.
///
/// ```compile_fail
/// use rcu_core::manual::ManualGp;
/// const EACH_TIME_ANOTHER: ManualGp = ManualGp::new();
/// fn named() -> &'static ManualGp {
///     &EACH_TIME_ANOTHER // what the macro expands to
/// }
/// ```
///
/// Nor may what it is read through be another at another time, so it is not looked for behind a `Deref` of anybody's:
///
/// ```compile_fail
/// # mod hidden {
/// #     use rcu_core::{GracePeriod, Cookie, Rcu, Head, Callback};
/// #     pub struct Other;
/// #     // SAFETY: nobody reads.
/// #     unsafe impl GracePeriod for Other {
/// #         fn snapshot(&self) -> Cookie { Cookie::COMPLETED }
/// #         fn start(&self) -> Cookie { Cookie::COMPLETED }
/// #         fn poll(&self, _: Cookie) -> bool { true }
/// #         fn wait(&self, _: Cookie) {}
/// #         fn drive(&self) -> bool { false }
/// #         fn grace_periods(&self) -> usize { 0 }
/// #     }
/// #     // SAFETY: for this example, which does not compile.
/// #     unsafe impl Rcu for Other {
/// #         type Token = ();
/// #         fn enter(&self) {}
/// #         unsafe fn exit(&self, _: ()) {}
/// #         unsafe fn call(&self, _: core::ptr::NonNull<Head>, _: Callback) {}
/// #         fn barrier(&self) {}
/// #     }
/// # }
/// # use hidden::Other;
/// static FIRST: Other = Other;
/// static SECOND: Other = Other;
/// struct NowThisNowThat;
/// impl core::ops::Deref for NowThisNowThat {
///     type Target = Other;
///     fn deref(&self) -> &Other {
///         if std::process::id() % 2 == 0 { &FIRST } else { &SECOND }
///     }
/// }
/// static EITHER: NowThisNowThat = NowThisNowThat;
/// rcu_core::domain! {
///     struct Routes = EITHER: Other;
/// }
/// ```
#[macro_export]
macro_rules! domain {
    ($(#[$m:meta])* $vis:vis struct $name:ident = $rcu:path : $t:ty;) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        $vis struct $name;

        $crate::__domain!(unsafe $name, $rcu, $t);
    };
}

/// What a static is, or always stands for, that a domain is made of.
///
/// # Safety
/// 1. `named` returns the same value at every call.
#[doc(hidden)]
pub unsafe trait Named {
    type Rcu: crate::Rcu;
    fn named(&'static self) -> &'static Self::Rcu;
}

// SAFETY: the value itself.
unsafe impl<R: crate::Rcu> Named for R {
    type Rcu = R;

    #[inline(always)]
    fn named(&'static self) -> &'static R {
        self
    }
}

#[doc(hidden)]
#[macro_export]
macro_rules! __domain {
    (unsafe $name:ident, $rcu:path, $t:ty) => {
        $crate::__domain!(unsafe $name, $rcu, $t, <$t as $crate::Rcu>::enter);
    };
    // With another way to enter the static than its own `enter`, for which whoever writes `unsafe` vouches.
    (unsafe $name:ident, $rcu:path, $t:ty, $enter:expr) => {
        const _: () = {
            use $crate::{Callback, Cookie, FullCookie, GracePeriod, Head, Rcu};

            /// The static behind the domain. A constant does not pass: what has inner state is not promoted. A `Deref`
            /// does not either: it need not lead to the same place each time.
            #[inline(always)]
            fn rcu() -> &'static $t {
                $crate::__Named::named(&$rcu)
            }

            // SAFETY: every method is that of one static RCU.
            unsafe impl GracePeriod for $name {
                #[inline(always)]
                fn snapshot(&self) -> Cookie {
                    rcu().snapshot()
                }
                #[inline(always)]
                fn start(&self) -> Cookie {
                    rcu().start()
                }
                #[inline(always)]
                fn poll(&self, cookie: Cookie) -> bool {
                    rcu().poll(cookie)
                }
                fn wait(&self, cookie: Cookie) {
                    rcu().wait(cookie);
                }
                fn drive(&self) -> bool {
                    rcu().drive()
                }
                fn synchronize(&self) {
                    rcu().synchronize();
                }
                fn synchronize_expedited(&self) {
                    rcu().synchronize_expedited();
                }
                fn start_expedited(&self) -> Cookie {
                    rcu().start_expedited()
                }
                fn wait_expedited(&self, cookie: Cookie) {
                    rcu().wait_expedited(cookie);
                }
                fn snapshot_full(&self) -> FullCookie {
                    rcu().snapshot_full()
                }
                fn poll_full(&self, cookie: FullCookie) -> bool {
                    rcu().poll_full(cookie)
                }
                fn start_full(&self) -> FullCookie {
                    rcu().start_full()
                }
                fn start_full_expedited(&self) -> FullCookie {
                    rcu().start_full_expedited()
                }
                fn wait_full(&self, cookie: FullCookie) {
                    rcu().wait_full(cookie);
                }
                fn wait_full_expedited(&self, cookie: FullCookie) {
                    rcu().wait_full_expedited(cookie);
                }
                fn grace_periods(&self) -> usize {
                    rcu().grace_periods()
                }
            }

            // SAFETY: every method is that of one static RCU.
            unsafe impl Rcu for $name {
                type Token = <$t as Rcu>::Token;

                #[inline(always)]
                fn enter(&self) -> Self::Token {
                    $enter(rcu())
                }
                #[inline(always)]
                unsafe fn exit(&self, token: Self::Token) {
                    // SAFETY: the caller's debt 1, for the same static.
                    unsafe { rcu().exit(token) };
                }
                unsafe fn call(&self, head: ::core::ptr::NonNull<Head>, callback: Callback) {
                    // SAFETY: the caller's debts.
                    unsafe { rcu().call(head, callback) };
                }
                unsafe fn call_lazy(&self, head: ::core::ptr::NonNull<Head>, callback: Callback) {
                    // SAFETY: the caller's debts.
                    unsafe { rcu().call_lazy(head, callback) };
                }
                #[inline(always)]
                unsafe fn quiescent_state(&self, token: Self::Token) -> Self::Token {
                    // SAFETY: the caller's debt, for the same static.
                    unsafe { rcu().quiescent_state(token) }
                }
                fn barrier(&self) {
                    rcu().barrier();
                }
            }

            // SAFETY: one static, which lives for ever.
            unsafe impl $crate::Domain for $name {}
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __domain_send {
    // Whoever writes `unsafe` vouches that the static is that of the domain.
    (unsafe $name:ident, $rcu:path, $t:ty) => {
        // SAFETY: every method is that of one static RCU.
        unsafe impl $crate::RcuSend for $name {
            type SendToken = <$t as $crate::RcuSend>::SendToken;

            fn enter_send(&self) -> Self::SendToken {
                $crate::RcuSend::enter_send(&$rcu)
            }
            unsafe fn exit_send(&self, token: Self::SendToken) {
                // SAFETY: the caller's debt, for the same static.
                unsafe { $crate::RcuSend::exit_send(&$rcu, token) };
            }
            unsafe fn move_off(&self, token: Self::Token) -> Self::SendToken {
                // SAFETY: the caller's debt, for the same static.
                unsafe { $crate::RcuSend::move_off(&$rcu, token) }
            }
        }
    };
}
