//! The state of every address, kept beside the memory and not in it.
//!
//! What lies in an object says only what its last user wrote; the shadow knows what has become of it since. One word for
//! every sixteen bytes, used where an object starts:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | free, or no object's start |
//! | `OUT` | somebody's |
//! | a cookie, and `RETIRED` | retired; may be handed out again once the cookie is done |

use crate::books::{Books, Fault};
use pagealloc::Span;
use rcu_core::Cookie;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

const GRAIN: usize = 16;
const OUT: usize = 1;
const RETIRED: usize = 2;
/// What cookies leave to others: they are of idle sequences, whose low bits are zero.
const STATE: usize = 3;

pub(crate) struct Shadow {
    base: usize,
    words: Box<[AtomicUsize]>,
}

impl Shadow {
    pub(crate) fn new(span: Span) -> Self {
        let grains = span.pages * pagealloc::PAGE_SIZE / GRAIN;
        Self {
            base: span.base.addr().get(),
            words: (0..grains).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    fn word(&self, object: NonNull<u8>) -> Option<&AtomicUsize> {
        let offset = object.addr().get().checked_sub(self.base)?;
        self.words.get(offset / GRAIN)
    }

    /// An object was handed out: was it free to be?
    pub(crate) fn hand_out(
        &self,
        object: NonNull<u8>,
        books: &Books,
        is_done: impl FnOnce(Cookie) -> bool,
    ) {
        let Some(word) = self.word(object) else {
            // Larger than any block: memory apart.
            return;
        };
        let old = word.swap(OUT, Ordering::AcqRel);
        match old & STATE {
            OUT => books.fault(Fault::Overlap, || format!("{object:p} is somebody's")),
            RETIRED => {
                let cookie = Cookie::from_raw(old & !STATE);
                books.check(is_done(cookie), Fault::Early, || {
                    format!("{object:p} was retired, {cookie:?}, and handed out again")
                });
            }
            _ => {}
        }
    }

    /// Its owner is about to retire it, with a cookie from before.
    pub(crate) fn retire(&self, object: NonNull<u8>, cookie: Cookie) {
        if let Some(word) = self.word(object) {
            word.store(cookie.raw() & !STATE | RETIRED, Ordering::Release);
        }
    }

    /// Its owner is about to free it.
    pub(crate) fn free(&self, object: NonNull<u8>) {
        if let Some(word) = self.word(object) {
            word.store(0, Ordering::Release);
        }
    }

    /// A function of its own is about to free it: has its time come?
    pub(crate) fn ripe(
        &self,
        object: NonNull<u8>,
        books: &Books,
        is_done: impl FnOnce(Cookie) -> bool,
    ) {
        let Some(word) = self.word(object) else {
            return;
        };
        let old = word.swap(0, Ordering::AcqRel);
        if old & STATE == RETIRED {
            let cookie = Cookie::from_raw(old & !STATE);
            books.check(is_done(cookie), Fault::Early, || {
                format!("{object:p} was retired, {cookie:?}, and freed")
            });
        } else {
            books.fault(Fault::Twice, || format!("{object:p} freed, state {old}"));
        }
    }
}
