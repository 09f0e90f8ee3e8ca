//! What is linked into an object that waits for a grace period.
//!
//! Source: the 2008 `kfree_rcu` proposal: most callbacks only free their object, so the function
//! word may hold *where the object starts* instead of a function (K1).
//!
//! # State
//! | `func` word | meaning |
//! |---|---|
//! | below 4096 | words from the object's start to this head; "free the object" |
//! | else | a function that gets the head |
//!
//! # Invariants
//! - I1. A head is on at most one list, and its two words are written only by who holds it: the retiring thread
//!   before it is queued, the list's lock holder while it is queued, the callback's runner afterwards. (The methods that
//!   write are safe: that nobody calls them meanwhile is a debt of whoever queues the head, as that it stays valid.)
//! - I2. Both words are interior-mutable: readers may still hold a shared reference to the object around the head.
//! - I3. Where heads are watched (debug builds, feature `debug-heads`), `next` is null exactly while the head is on no
//!   list: the end of a list is a mark, which [`Head::next`] reads as null. All-zero bytes stay a head on no list. What
//!   pops a head makes its `next` null before anyone runs the callback, which may free the head or queue it again.

use crate::double_call::{self, DoubleCall};
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::fmt;
use core::ptr::{self, NonNull};

/// Whether heads know that they are queued (R18).
pub(crate) const WATCHED: bool = cfg!(any(debug_assertions, feature = "debug-heads"));

/// What a queued head without a successor is linked to, where heads are watched (I3). Never followed.
const END: *mut Head = ptr::without_provenance_mut(usize::MAX);

/// Offsets stay below this many words; anything at or above it is a function's address (K1).
#[doc(alias = "KVFREE_RCU_OFFSET")]
pub const MAX_OFFSET_WORDS: usize = 4096;

const WORD: usize = size_of::<usize>();

/// A function that is run after a grace period, once, with the head that was queued.
pub type HeadFn = unsafe fn(NonNull<Head>);

/// Link and callback of an object that waits for a grace period; 16 bytes on 64-bit machines.
///
/// Embed one in a type and name it with [`has_head!`](crate::has_head).
#[doc(alias = "rcu_head")]
#[repr(C)]
pub struct Head {
    next: AtomicPtr<Head>,
    func: AtomicPtr<()>,
}

#[cfg(not(loom))]
static_assertions::const_assert_eq!(size_of::<Head>(), 2 * WORD);
#[cfg(not(loom))]
// SAFETY: two null words: on no list, no callback.
unsafe impl crate::cpu::ZeroInit for Head {}

/// Where in an object its head lies, in words; below [`MAX_OFFSET_WORDS`] by construction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HeadOffset(u16);

impl HeadOffset {
    /// The offset of `bytes` bytes.
    ///
    /// Evaluated in a constant (as [`head_offset!`](crate::head_offset) does), a head that lies too far
    /// in is a compile-time error:
    ///
    /// ```compile_fail
    /// use rcu_core::{Head, head_offset};
    /// #[repr(C)]
    /// struct TooFar { data: [u64; 4096], head: Head }
    /// const AT: rcu_core::HeadOffset = head_offset!(TooFar, head);
    /// ```
    ///
    /// # Panics
    /// If `bytes` is not a multiple of the word size or is 4096 words or more.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Self {
        assert!(
            bytes.is_multiple_of(WORD),
            "the head is not aligned to a word"
        );
        assert!(
            bytes / WORD < MAX_OFFSET_WORDS,
            "the head lies 4096 words or more into the object"
        );
        Self((bytes / WORD) as u16)
    }

    /// The offset in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize * WORD
    }

    /// The start of the object around `head`.
    ///
    /// # Safety
    /// 1. `head` lies this many bytes into an object, and its provenance covers the whole object.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{HasHead, Head, has_head};
    /// struct Route { gateway: u32, head: Head }
    /// has_head!(Route, head);
    ///
    /// let route = NonNull::from(Box::leak(Box::new(Route { gateway: 1, head: Head::new() })));
    /// // SAFETY: a whole route.
    /// let head = unsafe { Route::head_of(route) };
    /// // SAFETY: the head lies at its offset in the route, and came from the whole of it.
    /// assert_eq!(unsafe { Route::OFFSET.object(head) }, route.cast());
    /// # // SAFETY: leaked above.
    /// # drop(unsafe { Box::from_raw(route.as_ptr()) });
    /// ```
    #[must_use]
    pub const unsafe fn object(self, head: NonNull<Head>) -> NonNull<u8> {
        // SAFETY: the object starts `bytes` before the head, in the same allocation (debt 1).
        unsafe { head.cast::<u8>().sub(self.bytes()) }
    }
}

/// What is to happen to a queued head after its grace period.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Callback {
    /// Run this function on the head.
    Run(HeadFn),
    /// Free the object that the head lies in, at this offset (the 2008 encoding).
    Free(HeadOffset),
}

impl Callback {
    fn encode(self) -> *mut () {
        match self {
            Self::Run(func) => {
                let word = func as *mut ();
                assert!(
                    word.addr() >= MAX_OFFSET_WORDS,
                    "a function in the first page"
                );
                word
            }
            Self::Free(at) => ptr::without_provenance_mut(usize::from(at.0)),
        }
    }

    fn decode(word: *mut ()) -> Self {
        if word.addr() < MAX_OFFSET_WORDS {
            Self::Free(HeadOffset(word.addr() as u16))
        } else {
            // SAFETY: a word that is no offset was made from a `HeadFn` by `encode` (I1).
            Self::Run(unsafe { core::mem::transmute::<*mut (), HeadFn>(word) })
        }
    }
}

impl Head {
    crate::const_fn! {
        /// A head on no list.
        #[must_use]
        pub const fn new() -> Self {
            Self { next: AtomicPtr::new(ptr::null_mut()), func: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Notes what is to happen, before the head is queued.
    #[inline]
    pub fn set_callback(&self, callback: Callback) {
        // ORDERING: Relaxed: I1; whoever takes the head over is ordered by the list it is queued on.
        self.func.store(callback.encode(), Ordering::Relaxed);
    }

    /// What is to happen. A head whose callback was never set frees its object at offset zero.
    #[must_use]
    pub fn callback(&self) -> Callback {
        // ORDERING: Relaxed: I1.
        Callback::decode(self.func.load(Ordering::Relaxed))
    }

    /// Notes what is to happen to a head that is about to be queued: what every [`Rcu::call`](crate::Rcu::call) does
    /// first.
    ///
    /// False where heads are watched (debug builds, feature `debug-heads`) and this one is queued already: the caller
    /// then leaves the head alone. The two queueings cannot both be right, so the object is leaked, its callback
    /// replaced by one that does nothing, and the first few times this is [reported](crate::on_double_call). Elsewhere
    /// nothing is checked, and a head that is queued twice corrupts the list.
    ///
    /// Who keeps heads in other places than this crate's lists calls [`Self::set_unlinked`] before it runs the callback.
    #[doc(alias = "debug_rcu_head_queue")]
    #[inline(always)]
    #[must_use = "a head that is queued already must not be queued again"]
    #[track_caller]
    pub fn begin_call(&self, callback: Callback) -> bool {
        if WATCHED && !self.claim(callback) {
            return false;
        }
        self.set_callback(callback);
        true
    }

    /// Marks a head on no list as queued.
    #[track_caller]
    fn claim(&self, callback: Callback) -> bool {
        // ORDERING: Relaxed: I1; of two threads that break it, one is told so.
        let claimed =
            self.next
                .compare_exchange(ptr::null_mut(), END, Ordering::Relaxed, Ordering::Relaxed);
        if claimed.is_ok() {
            return true;
        }
        let queued = self.callback();
        self.set_callback(Callback::Run(leak));
        double_call::report(&DoubleCall {
            head: NonNull::from(self),
            queued,
            refused: callback,
            by: core::panic::Location::caller(),
        });
        false
    }

    /// Whether the head is queued, where heads are watched (debug builds, feature `debug-heads`); else `None`.
    #[must_use]
    pub fn is_queued(&self) -> Option<bool> {
        // ORDERING: Relaxed: I1, I3.
        WATCHED.then(|| !self.next.load(Ordering::Relaxed).is_null())
    }

    /// Whether this head was given to [`Rcu::call`](crate::Rcu::call) with the function `func` since it was made, or
    /// since the last [`Self::reset`]; true also after the function has run, as long as the memory is a head.
    ///
    /// For a reader that finds an object and wants to know whether it is on its way out. Whoever may call `call`
    /// meanwhile must be excluded, or the answer is old. A function is known by its address: two functions of one body
    /// may have one address, and a function compiled twice may have two.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{Callback, Head};
    /// unsafe fn free(_: NonNull<Head>) {}
    /// let head = Head::new();
    /// assert!(!head.was_called(free));
    /// assert!(head.begin_call(Callback::Run(free)));
    /// assert!(head.was_called(free));
    /// ```
    #[doc(alias = "rcu_head_after_call_rcu")]
    #[must_use]
    pub fn was_called(&self, func: HeadFn) -> bool {
        // ORDERING: Relaxed: the value only.
        self.func.load(Ordering::Relaxed).addr() == (func as *mut ()).addr()
    }

    /// Forgets the callback, so that [`Self::was_called`] says no again. The head is on no list.
    #[doc(alias = "rcu_head_init")]
    pub fn reset(&self) {
        debug_assert_ne!(self.is_queued(), Some(true), "I1: a queued head");
        // ORDERING: Relaxed: I1.
        self.func.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// The next head on the list this one is on.
    #[must_use]
    #[inline]
    pub fn next(&self) -> *mut Head {
        // ORDERING: Relaxed: I1.
        let next = self.next.load(Ordering::Relaxed);
        if WATCHED && next == END {
            return ptr::null_mut();
        }
        next
    }

    /// Links this head, which is on a list or about to be, to `next`, or to nothing.
    #[inline]
    pub fn set_next(&self, next: *mut Head) {
        let next = if WATCHED && next.is_null() { END } else { next };
        // ORDERING: Relaxed: I1.
        self.next.store(next, Ordering::Relaxed);
    }

    /// Notes that the head is on no list any more, where heads are watched (I3): the last thing that is done to a head
    /// before its callback gets it, for lists other than [`CbList`](crate::CbList), which does so itself.
    #[inline(always)]
    pub fn set_unlinked(&self) {
        if WATCHED {
            // ORDERING: Relaxed: I1.
            self.next.store(ptr::null_mut(), Ordering::Relaxed);
        }
    }
}

/// What becomes of a head that was queued twice: nothing, for ever.
#[doc(alias = "rcu_leak_callback")]
unsafe fn leak(_: NonNull<Head>) {}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("next", &self.next())
            .field("callback", &self.callback())
            .finish()
    }
}

/// Types with a [`Head`] inside. Implemented by [`has_head!`](crate::has_head).
///
/// # Safety
/// 1. A [`Head`] lies `OFFSET` bytes into every value of the type.
pub unsafe trait HasHead: Sized {
    /// Where the head lies.
    const OFFSET: HeadOffset;

    /// The head of the object at `object`.
    ///
    /// # Safety
    /// 1. `object` points to an object of this type (its value may be under readers' references).
    #[must_use]
    unsafe fn head_of(object: NonNull<Self>) -> NonNull<Head> {
        // SAFETY: the head lies inside the object (the trait's debt 1).
        unsafe { object.cast::<u8>().add(Self::OFFSET.bytes()) }.cast()
    }
}

/// The [`HeadOffset`] of a field, checked at compile time.
///
/// ```
/// use rcu_core::{Head, head_offset};
/// #[repr(C)]
/// struct Route { prefix: u64, head: Head }
/// assert_eq!(head_offset!(Route, head).bytes(), 8);
/// ```
#[macro_export]
macro_rules! head_offset {
    ($object:ty, $field:ident) => {
        const { $crate::HeadOffset::from_bytes(::core::mem::offset_of!($object, $field)) }
    };
}

/// Implements [`HasHead`] for a type with a field of type [`Head`].
///
/// ```
/// use rcu_core::{HasHead, Head, has_head};
/// struct Route { prefix: u64, head: Head }
/// has_head!(Route, head);
/// assert!(Route::OFFSET.bytes() < size_of::<Route>());
/// ```
///
/// A field of another type is refused:
/// ```compile_fail
/// use rcu_core::has_head;
/// struct Route { prefix: u64 }
/// has_head!(Route, prefix);
/// ```
/// also one that leads to a head, which is not in the object:
/// ```compile_fail
/// use rcu_core::{Head, has_head};
/// struct Route { prefix: u64, head: Box<Head> }
/// has_head!(Route, head);
/// ```
/// and a head that may lie askew:
/// ```compile_fail
/// use rcu_core::{Head, has_head};
/// #[repr(C, packed)]
/// struct Route { prefix: u64, head: Head }
/// has_head!(Route, head);
/// ```
#[macro_export]
macro_rules! has_head {
    ($object:ty, $field:ident) => {
        // SAFETY: the offset is the field's own, and the function below only compiles for a `Head`: a reference in an
        // array is not coerced to what its referent derefs to.
        unsafe impl $crate::HasHead for $object {
            const OFFSET: $crate::HeadOffset = {
                const fn field_is_a_head(object: &$object) -> [&$crate::Head; 1] {
                    let field = [&object.$field];
                    field
                }
                let _ = field_is_a_head;
                $crate::head_offset!($object, $field)
            };
        }
    };
}
