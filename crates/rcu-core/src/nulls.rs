//! Hash chains of objects that may be freed and used again under a reader.
//!
//! Source: Linux `include/linux/list_nulls.h` and `rculist_nulls.h` (facts only; R22, T23). In *type-stable* memory a freed
//! object is used again at once, as another object of its type, in another chain perhaps; only the memory waits for
//! readers. A reader that stands on it is carried off into the other chain and, at that chain's end, would take what it
//! looked for as missing. So the end of a chain is not null but a *marker* with the chain's number: a reader that ends on
//! another marker than it set out for starts again. Why not a version in each object: the reader would have to look at it
//! at every step; the marker costs nothing until the end.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `NullsHead::first`, `NullsLink::next` | the next link (even), or marker `2n + 1` of the chain numbered `n` | the chain's one writer |
//! | `NullsLink::pprev` | the word that points to this link; null: in no chain | the same |
//!
//! # Invariants
//! - I1. From each word of a chain, `next` by `next`, one comes to the chain's own marker; from a link that left its chain,
//!   to the marker of a chain in which the link, or one that it led to, was at some time.
//! - I2. Links come in at the front only. So of the links that stay in a chain while a reader walks, none is passed by
//!   unless the reader ends on another marker: whoever comes back to the chain starts in front of all of them. (At the end
//!   of a chain a link could be taken out and put back in behind a reader's back, with the right marker. So there is no
//!   `add_tail`.)
//! - I3. `next` of a link that left its chain stays as it is until the link is put into a chain again.
//!
//! # Orderings
//! - P1. Every store to `first` or `next` is Release, every reader's load of them Acquire: forbids seeing the pointer before
//!   what it leads to. Also the store to the `next` of a link that is not published yet: a reader may stand on the link
//!   from its former life. And a reader that was carried off, and starts again, finds the link gone.
//!
//! # Progress and contexts
//! Adding and removing are a few stores. A walk is as long as the chains it is carried through; [`NullsHead::lookup`] starts
//! again as often as somebody moves the link that it stands on. Readers and writers may be in any context; one writer a chain.

use crate::section::Section;
use crate::sync::atomic::{AtomicPtr, Ordering};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

static_assertions::const_assert!(align_of::<NullsLink>() >= 2);

/// What the store to the `next` of a link is worth that comes into a chain, and its mutant.
#[inline(always)]
fn link_order() -> Ordering {
    if crate::weakened!("p1_nulls") {
        Ordering::Relaxed
    } else {
        Ordering::Release
    }
}

/// The link of an object that lies in type-stable memory.
///
/// It is made once, when the memory becomes objects, and not again when an object is used again: a reader may stand on it.
#[doc(alias = "hlist_nulls_node")]
#[repr(C)]
pub struct NullsLink {
    next: AtomicPtr<NullsLink>,
    pprev: AtomicPtr<AtomicPtr<NullsLink>>,
}

const fn marker(number: usize) -> *mut NullsLink {
    ptr::without_provenance_mut(number << 1 | 1)
}

/// The number of the marker that `word` is, or the link it points to.
fn end_or_link(word: *mut NullsLink) -> Result<NonNull<NullsLink>, usize> {
    match NonNull::new(word) {
        Some(link) if word.addr() & 1 == 0 => Ok(link),
        _ => Err(word.addr() >> 1),
    }
}

impl NullsLink {
    crate::const_fn! {
        /// A link in no chain.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                next: AtomicPtr::new(marker(usize::MAX >> 1)),
                pprev: AtomicPtr::new(ptr::null_mut()),
            }
        }
    }

    /// Whether the link is in a chain. Exact for its writer, a hint for others.
    #[doc(alias = "hlist_nulls_unhashed")]
    #[must_use]
    pub fn is_linked(&self) -> bool {
        // ORDERING: Relaxed: written by the one who asks, or a hint.
        !self.pprev.load(Ordering::Relaxed).is_null()
    }

    /// Takes the link out of its chain, if it is in one. Readers that stand on it go on from here, and others may still
    /// come by it (I3); the object may be used again, and put into this chain or another, at once.
    ///
    /// # Safety
    /// 1. Nobody else adds to, or removes from, the link's chain meanwhile, nor touches the link.
    /// 2. The chain's head is where it was when the link was added.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{NullsHead, NullsLink};
    /// let (link, head) = (NullsLink::new(), NullsHead::<()>::new(7));
    /// // SAFETY: the only writer; the link and the head stay where they are.
    /// unsafe { head.add_head(NonNull::from(&link)) };
    /// // SAFETY: as above.
    /// unsafe { link.del() };
    /// assert!(head.is_empty() && !link.is_linked());
    /// ```
    #[doc(alias = "hlist_nulls_del_init_rcu")]
    pub unsafe fn del(&self) {
        // ORDERING: Relaxed: of links in the chain, and of this one, the caller is the only writer (1).
        let Some(pprev) = NonNull::new(self.pprev.load(Ordering::Relaxed)) else {
            return;
        };
        // ORDERING: Relaxed: as above.
        let next = self.next.load(Ordering::Relaxed);
        // SAFETY: the word that points here is the head's, which is in its place (2), or that of a link in the chain,
        // which is valid as its own adder owes.
        let before = unsafe { pprev.as_ref() };
        // ORDERING: P1 (publish side).
        before.store(next, Ordering::Release);
        if let Ok(next) = end_or_link(next) {
            // SAFETY: links in the chain are valid, as their adders owe.
            let next = unsafe { next.as_ref() };
            // ORDERING: Relaxed: the writer's own.
            next.pprev.store(pprev.as_ptr(), Ordering::Relaxed);
        }
        // ORDERING: Relaxed: the writer's own.
        self.pprev.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

impl Default for NullsLink {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for NullsLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NullsLink")
            .field("is_linked", &self.is_linked())
            .finish_non_exhaustive()
    }
}

/// What a [`NullsHead::lookup`] is to do after it came to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit<T> {
    /// This is not it.
    Next,
    /// This is it.
    Found(T),
    /// This was it, and has become another object under the reader: from the start again.
    Restart,
}

/// The start of a chain of [`NullsLink`]s, of readers in sections of `R`.
///
/// # The pattern
/// A lookup in type-stable memory is, in this order:
/// 1. walk the chain; at each link, look at the object's key, which is an atomic word or something that may be read while
///    it is written: the object may be on its way to another life;
/// 2. if the key is the one sought, take a reference ([`RefCount::get`](crate::RefCount::get)); if there is none to be had,
///    the object is dead: go on ([`Visit::Next`]);
/// 3. look at the key *again*: before the reference was taken, the object could be used again; now it cannot. If it is
///    another one, put the reference down (and retire the object, should it have been the last) and start again
///    ([`Visit::Restart`]);
/// 4. at the end of the chain, look at the marker: if it is another chain's, start again.
///
/// [`Self::lookup`] sees to 1 and 4; 2 and 3 are its closure's. Who uses an object again writes its key, then
/// [resets](crate::RefCount::reset) its count, then adds it to its chain.
///
/// ```
/// use core::ptr::NonNull;
/// use core::sync::atomic::{AtomicU64, Ordering};
/// use rcu_core::{NullsHead, NullsLink, RefCount, Section, Visit};
///
/// #[repr(C)]
/// struct Connection { link: NullsLink, key: AtomicU64, refs: RefCount }
///
/// /// # Safety
/// /// The links of `chain` are those of `Connection`s in a type-stable cache of `R`.
/// unsafe fn find<'g, R>(
///     chain: &'g NullsHead<R>,
///     bucket: usize,
///     key: u64,
///     section: &'g impl Section<R>,
/// ) -> Option<&'g Connection> {
///     chain.lookup(section, bucket, |link| {
///         // SAFETY: the link is the first field of a connection, which stays one while the section lasts.
///         let connection = unsafe { link.cast::<Connection>().as_ref() };
///         if connection.key.load(Ordering::Relaxed) != key || !connection.refs.get() {
///             return Visit::Next;
///         }
///         if connection.key.load(Ordering::Relaxed) != key {
///             if connection.refs.put() { /* the last reference: give the connection back */ }
///             return Visit::Restart;
///         }
///         Visit::Found(connection)
///     })
/// }
/// # let table = [NullsHead::<()>::new(0), NullsHead::new(1)];
/// # let it = Connection { link: NullsLink::new(), key: AtomicU64::new(5), refs: RefCount::new(1) };
/// # struct Inside;
/// # // SAFETY: nothing is freed here.
/// # unsafe impl Section<()> for Inside {}
/// # // SAFETY: the only writer; everything stays where it is.
/// # unsafe { table[1].add_head(NonNull::from(&it).cast()) };
/// # // SAFETY: a chain of connections.
/// # assert_eq!(unsafe { find(&table[1], 1, 5, &Inside) }.unwrap().refs.read(), 2);
/// # // SAFETY: a chain of connections.
/// # assert!(unsafe { find(&table[1], 1, 6, &Inside) }.is_none());
/// ```
///
/// Chains between which objects move have different numbers, or this is all in vain. A section of another RCU does not
/// pass:
/// ```compile_fail
/// use rcu_core::{Guard, NullsHead, Rcu};
/// fn mix<'g, A: Rcu, B: Rcu>(chain: &'g NullsHead<A>, guard: &'g Guard<B>) {
///     chain.walk(guard);
/// }
/// ```
#[doc(alias = "hlist_nulls_head")]
#[repr(C)]
pub struct NullsHead<R> {
    first: AtomicPtr<NullsLink>,
    _readers: PhantomData<fn() -> R>,
}

impl<R> NullsHead<R> {
    /// The highest number of a chain.
    pub const MAX_NUMBER: usize = (usize::MAX >> 1) - 1;

    crate::const_fn! {
        /// An empty chain, numbered `number`.
        ///
        /// # Panics
        /// If the number is above [`Self::MAX_NUMBER`].
        #[doc(alias = "INIT_HLIST_NULLS_HEAD")]
        #[must_use]
        pub const fn new(number: usize) -> Self {
            assert!(number <= Self::MAX_NUMBER, "a marker has one bit less than a word");
            Self { first: AtomicPtr::new(marker(number)), _readers: PhantomData }
        }
    }

    /// Whether the chain is empty at this moment.
    #[doc(alias = "hlist_nulls_empty")]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // ORDERING: Relaxed: the value only.
        end_or_link(self.first.load(Ordering::Relaxed)).is_err()
    }

    /// Puts `link` in front of the chain. Readers find it from now on.
    ///
    /// # Safety
    /// 1. `link` is in no chain, and nobody else touches it, or adds to or removes from this chain, meanwhile.
    /// 2. From now until a grace period of `R` that began after its last [`del`](NullsLink::del), its memory holds a
    ///    [`NullsLink`] that nothing but the functions of this module write; in this chain and in any other, whose
    ///    readers are also in sections of `R`. (Of every RCU that a section of `R` may stand for: a domain stands for one, a
    ///    reference to a tree for any tree.)
    /// 3. The head does not move while links are in its chain.
    ///
    /// ```
    /// use core::ptr::NonNull;
    /// use rcu_core::{NullsHead, NullsLink};
    /// static CHAIN: NullsHead<()> = NullsHead::new(3);
    /// static LINK: NullsLink = NullsLink::new();
    /// // SAFETY: the only writer; statics stay where they are, and links, for ever.
    /// unsafe { CHAIN.add_head(NonNull::from(&LINK)) };
    /// assert!(LINK.is_linked() && !CHAIN.is_empty());
    /// ```
    #[doc(alias = "hlist_nulls_add_head_rcu")]
    pub unsafe fn add_head(&self, link: NonNull<NullsLink>) {
        // SAFETY: valid (2).
        let new = unsafe { link.as_ref() };
        debug_assert!(!new.is_linked(), "the link is in a chain");
        // ORDERING: Relaxed: the caller is the only writer (1).
        let first = self.first.load(Ordering::Relaxed);
        // ORDERING: P1 (publish side): a reader may stand here from the link's former life.
        new.next.store(first, link_order());
        let to_new = ptr::from_ref(&self.first).cast_mut();
        // ORDERING: Relaxed: the writer's own.
        new.pprev.store(to_new, Ordering::Relaxed);
        // ORDERING: P1 (publish side).
        self.first.store(link.as_ptr(), Ordering::Release);
        if let Ok(first) = end_or_link(first) {
            // SAFETY: links in the chain are valid, as their adders owe.
            let first = unsafe { first.as_ref() };
            let to_first = ptr::from_ref(&new.next).cast_mut();
            // ORDERING: Relaxed: the writer's own.
            first.pprev.store(to_first, Ordering::Relaxed);
        }
    }

    /// Goes through the chain's links as they are at each step; see [`Walk::end_marker`].
    #[doc(alias = "hlist_nulls_for_each_entry_rcu")]
    #[must_use]
    pub fn walk<'g>(&'g self, section: &'g impl Section<R>) -> Walk<'g> {
        let _ = section;
        Walk {
            at: &raw const self.first,
            end: None,
            _section: PhantomData,
        }
    }

    /// Looks for something in this chain, which is numbered `number`: calls `visit` with each link until it has found what
    /// it looks for, or the chain's end; from the start again when it asks for that, or when a link carried the reader
    /// off to another chain. See [the pattern](Self#the-pattern).
    ///
    /// `None` means that at no time between the call and the return what `visit` looks for was in the chain all the time.
    pub fn lookup<'g, T>(
        &'g self,
        section: &'g impl Section<R>,
        number: usize,
        mut visit: impl FnMut(NonNull<NullsLink>) -> Visit<T>,
    ) -> Option<T> {
        'restart: loop {
            let mut walk = self.walk(section);
            for link in &mut walk {
                match visit(link) {
                    Visit::Next => {}
                    Visit::Found(found) => return Some(found),
                    Visit::Restart => continue 'restart,
                }
            }
            if crate::weakened!("nulls") || walk.end_marker() == Some(number) {
                return None;
            }
        }
    }
}

impl<R> fmt::Debug for NullsHead<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NullsHead")
            .field("is_empty", &self.is_empty())
            .finish()
    }
}

/// A way through a chain, and through others when a link under it moves there.
#[derive(Debug)]
pub struct Walk<'g> {
    /// The word that points to the next link.
    at: *const AtomicPtr<NullsLink>,
    end: Option<usize>,
    _section: PhantomData<&'g ()>,
}

impl Walk<'_> {
    /// The number of the chain at whose end the walk came to its own; `None` before that. Another chain's number means that
    /// links of this one may have been passed by: walk again.
    #[doc(alias = "get_nulls_value")]
    #[must_use]
    pub const fn end_marker(&self) -> Option<usize> {
        self.end
    }
}

impl Iterator for Walk<'_> {
    type Item = NonNull<NullsLink>;

    fn next(&mut self) -> Option<NonNull<NullsLink>> {
        if self.end.is_some() {
            return None;
        }
        // SAFETY: the head's word, borrowed for the walk; or that of a link that was found in the walk's section, which
        // its adder keeps valid until a grace period after its last removal.
        let word = unsafe { &*self.at };
        // ORDERING: P1 (load side).
        match end_or_link(word.load(Ordering::Acquire)) {
            Ok(link) => {
                // SAFETY: valid, as above.
                self.at = unsafe { &raw const (*link.as_ptr()).next };
                Some(link)
            }
            Err(end) => {
                self.end = Some(end);
                None
            }
        }
    }
}

impl core::iter::FusedIterator for Walk<'_> {}
