//! A chain that left its list as a whole.

use super::node::{Node, retire_chain};
use super::{Ends, RcuList, Reclaimer};
use crate::contract::GracePeriod;
use crate::seq::Cookie;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};

/// What [`Writer::detach`](super::Writer::detach) took out of a list: its readers may still be on it. Goes into a list again
/// after a grace period; dropped, it is retired.
#[must_use = "dropped, everything in it is retired"]
pub struct Detached<T: Send + Sync + 'static, R: Reclaimer> {
    first: *mut Node<T>,
    ends: Ends<T>,
    cookie: Cookie,
    _owns: PhantomData<(T, R)>,
}

// SAFETY: it owns its nodes, which any thread may look at and retire.
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> Send for Detached<T, R> {}
// SAFETY: shared, it shows no object.
unsafe impl<T: Send + Sync + 'static, R: Reclaimer> Sync for Detached<T, R> {}

impl<T: Send + Sync + 'static, R: Reclaimer> Detached<T, R> {
    /// # Safety
    /// 1. The chain from `first` to `ends.last` belongs to the caller, and no new reader can find it.
    pub(super) unsafe fn new(first: *mut Node<T>, ends: Ends<T>) -> Self {
        let cookie = if first.is_null() {
            Cookie::COMPLETED
        } else {
            R::Domain::default().start()
        };
        Self {
            first,
            ends,
            cookie,
            _owns: PhantomData,
        }
    }

    /// How many objects there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.len == 0
    }

    /// The cookie that has to be done before this may go into a list again.
    #[must_use]
    pub const fn cookie(&self) -> Cookie {
        self.cookie
    }

    /// Whether no reader is on it any more.
    #[must_use]
    pub fn is_ripe(&self) -> bool {
        self.is_empty() || R::Domain::default().poll(self.cookie)
    }

    /// Blocks until no reader is on it any more; not inside a section.
    pub fn wait(&self) {
        if !self.is_ripe() {
            R::Domain::default().wait(self.cookie);
        }
    }

    /// The first node, and the rest of the chain; `None` if it is empty.
    pub(super) fn into_parts(self) -> Option<(NonNull<Node<T>>, Ends<T>)> {
        let this = ManuallyDrop::new(self);
        let Ends { last, len } = this.ends;
        Some((NonNull::new(this.first)?, Ends { last, len }))
    }

    const fn empty() -> Self {
        let last = ptr::null_mut();
        Self {
            first: ptr::null_mut(),
            ends: Ends { last, len: 0 },
            cookie: Cookie::COMPLETED,
            _owns: PhantomData,
        }
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> Drop for Detached<T, R> {
    fn drop(&mut self) {
        // SAFETY: the chain is owned, and nobody finds it.
        unsafe { retire_chain::<T, R>(self.first) };
    }
}

impl<T: Send + Sync + 'static, R: Reclaimer> fmt::Debug for Detached<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detached")
            .field("len", &self.len())
            .field("cookie", &self.cookie)
            .finish_non_exhaustive()
    }
}

/// Detaches what is in `list` and waits for its readers; if that panics, everything goes back.
pub(super) fn wait_or_restore<T: Send + Sync + 'static, R: Reclaimer>(
    list: &RcuList<T, R>,
) -> Detached<T, R> {
    struct Restore<'l, T: Send + Sync + 'static, R: Reclaimer> {
        list: &'l RcuList<T, R>,
        chain: Detached<T, R>,
    }
    impl<T: Send + Sync + 'static, R: Reclaimer> Drop for Restore<'_, T, R> {
        fn drop(&mut self) {
            let chain = core::mem::replace(&mut self.chain, Detached::empty());
            // In front of what came meanwhile; readers on the chain go on into it, in their own list.
            self.list.write().link_front(chain);
        }
    }
    let chain = list.write().detach();
    let mut waiting = Restore { list, chain };
    waiting.chain.wait();
    core::mem::replace(&mut waiting.chain, Detached::empty())
}
