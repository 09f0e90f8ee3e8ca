//! Sheaves: arrays of pointers to free objects, with a header, and lists of them.
//!
//! A sheaf is memory of a power of two bytes from the [pool](crate::pool); [`Sheaf`] owns it as a
//! `Box` would, except that it must be given back by hand (the pool's lock is not at hand in a
//! destructor).
//!
//! # Invariants
//! - I1. A [`Sheaf`] is the only handle of its block, whose header is initialised.
//! - I2. `len <= cap`, the block has room for `cap` pointers, and the first `len` are initialised. While a sheaf is
//!   *installed*, the installing [`Installed`] holds `len`, and the header's is out of date.

use crate::inbox::Link;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use rcu_core::Cookie;
use rcu_core::cpu::ZeroInit;
use static_assertions::const_assert;

/// What precedes the pointers.
#[repr(C)]
struct Header {
    link: Link,
    cookie: Cookie,
    len: u32,
    cap: u32,
}

/// Bytes before the pointers.
pub(crate) const HEADER_BYTES: usize = size_of::<Header>();

/// How many allocations ahead an object's first line is fetched, to be written.
///
/// A new object is written at once, and a processor waits for few such lines at a time. Allocators with lists through the objects have them
/// fetched by following the list; an array of pointers has to ask.
const AHEAD: usize = 2;
const_assert!(AHEAD * size_of::<usize>() <= HEADER_BYTES);

/// Has the line at an address, if there is one, brought into the first cache, to be written.
#[inline(always)]
#[doc(alias = "prefetchw")]
fn prefetch(address: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint: it neither reads, writes nor faults, and processors without it do nothing.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, nomem));
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}]", in(reg) address, options(nostack, preserves_flags, nomem));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// An array of pointers to objects, owned.
#[repr(transparent)]
#[derive(Debug)]
#[must_use = "a sheaf that is dropped leaks its objects"]
pub(crate) struct Sheaf(NonNull<Header>);

// SAFETY: a sheaf is owned memory (I1) and pointers to objects that belong to whoever has the sheaf.
unsafe impl Send for Sheaf {}

impl Sheaf {
    /// Makes an empty sheaf for `cap` objects in `block`.
    ///
    /// # Safety
    /// 1. `block` is the caller's, valid for writes, aligned to 8, and has room for [`HEADER_BYTES`] and `cap` pointers.
    pub(crate) unsafe fn init(block: NonNull<u8>, cap: u32) -> Self {
        let header = block.cast::<Header>();
        let empty = Header {
            link: Link { next: None },
            cookie: Cookie::COMPLETED,
            len: 0,
            cap,
        };
        // SAFETY: the block is writable and large enough (debt 1).
        unsafe { header.write(empty) };
        // INVARIANT: I1, I2.
        Self(header)
    }

    /// The block of a sheaf that is not needed any more.
    pub(crate) fn into_block(self) -> NonNull<u8> {
        self.0.cast()
    }

    /// The sheaf as a node of an [`Inbox`](crate::inbox::Inbox).
    pub(crate) fn into_link(self) -> NonNull<Link> {
        self.0.cast()
    }

    /// The sheaf that was made a node.
    ///
    /// # Safety
    /// 1. `link` came from [`Self::into_link`] and was taken off its list.
    pub(crate) unsafe fn from_link(link: NonNull<Link>) -> Self {
        Self(link.cast())
    }

    fn header(&self) -> &Header {
        // SAFETY: the header is initialised, and this handle is the only one (I1).
        unsafe { self.0.as_ref() }
    }

    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: the header is initialised, and this handle is the only one (I1).
        unsafe { self.0.as_mut() }
    }

    /// The first pointer's place.
    #[inline(always)]
    fn objects(&self) -> NonNull<NonNull<u8>> {
        // SAFETY: the pointers follow the header in the same block (I2).
        unsafe { self.0.add(1) }.cast()
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.header().len as usize
    }

    /// How many objects there can be.
    pub(crate) fn cap(&self) -> usize {
        self.header().cap as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.cap()
    }

    /// When the objects may be reused; [`Cookie::COMPLETED`] unless it was sealed.
    pub(crate) fn cookie(&self) -> Cookie {
        self.header().cookie
    }

    pub(crate) fn set_cookie(&mut self, cookie: Cookie) {
        self.header_mut().cookie = cookie;
    }

    /// The objects.
    pub(crate) fn as_slice(&self) -> &[NonNull<u8>] {
        // SAFETY: the first `len` places are initialised (I2), and the handle is borrowed.
        unsafe { core::slice::from_raw_parts(self.objects().as_ptr(), self.len()) }
    }

    /// The objects, to be reordered.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [NonNull<u8>] {
        // SAFETY: the first `len` places are initialised (I2), and the handle, which is the only one (I1), is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.objects().as_ptr(), self.len()) }
    }

    /// Takes the last object.
    pub(crate) fn pop(&mut self) -> Option<NonNull<u8>> {
        let last = *self.as_slice().last()?;
        self.header_mut().len -= 1;
        Some(last)
    }

    /// Adds an object, unless the sheaf is full.
    pub(crate) fn push(&mut self, object: NonNull<u8>) -> bool {
        let len = self.len();
        if len == self.cap() {
            return false;
        }
        // SAFETY: `len < cap`, so the place is inside the block (I2).
        let place = unsafe { self.objects().add(len) };
        // SAFETY: as above; the handle is the only one (I1).
        unsafe { place.write(object) };
        self.header_mut().len += 1;
        true
    }

    /// The places behind the objects.
    pub(crate) fn places(&mut self) -> &mut [MaybeUninit<NonNull<u8>>] {
        let (len, cap) = (self.len(), self.cap());
        // SAFETY: `len <= cap`, so the place is inside the block or at its end (I2).
        let first = unsafe { self.objects().add(len) };
        // SAFETY: the block has room for `cap` pointers, and the handle, which is the only one, is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(first.cast().as_ptr(), cap - len) }
    }

    /// Counts objects in that were written to the first of the [`places`](Self::places).
    ///
    /// # Safety
    /// 1. `objects` places behind the objects are initialised, and no more than there are.
    pub(crate) unsafe fn count_up(&mut self, objects: usize) {
        debug_assert!(objects <= self.cap() - self.len(), "I2");
        // INVARIANT: I2 (debt 1).
        self.header_mut().len += objects as u32;
    }

    /// Forgets the objects, which have gone elsewhere.
    pub(crate) fn clear(&mut self) {
        self.header_mut().len = 0;
    }
}

/// A place for a sheaf whose length is kept beside the pointer, for the fast paths. All-zero is an
/// empty place, which looks both empty and full: fast paths need no test for null.
///
/// # Invariants
/// If `len` or `cap` is not zero there is a sheaf, `cap` is its capacity (or `len`, if the place was closed), and its first
/// `len` pointers are initialised.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Installed {
    sheaf: Option<Sheaf>,
    len: u32,
    cap: u32,
}

// SAFETY: zero is `None` (the niche of `NonNull` in a transparent wrapper), and owns nothing.
unsafe impl ZeroInit for Installed {}

impl Installed {
    pub(crate) fn is_vacant(&self) -> bool {
        self.sheaf.is_none()
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// How many more fit.
    pub(crate) fn room(&self) -> usize {
        (self.cap - self.len) as usize
    }

    /// Takes the last object, if there is any, and has the processor fetch one that comes soon after it.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<NonNull<u8>> {
        if self.len == 0 {
            return None;
        }
        // SAFETY: `len` is not zero, so there is a sheaf.
        let sheaf = unsafe { self.sheaf.as_ref().unwrap_unchecked() };
        self.len -= 1;
        // SAFETY: the index is below the old `len`, so inside the block.
        let place = unsafe { sheaf.objects().add(self.len as usize) };
        // SAFETY: no further in front of the first place than the header is long.
        let soon = unsafe { place.sub(AHEAD) }.cast::<usize>();
        // SAFETY: as above; an initialised place, or a word of the header, which is as good: nothing is fetched from where there is nothing.
        prefetch(unsafe { soon.read() });
        // SAFETY: as above, so initialised.
        Some(unsafe { place.read() })
    }

    /// Adds an object, if there is room.
    #[inline(always)]
    pub(crate) fn push(&mut self, object: NonNull<u8>) -> bool {
        if self.len == self.cap {
            return false;
        }
        // SAFETY: `cap` is not zero, so there is a sheaf.
        let sheaf = unsafe { self.sheaf.as_ref().unwrap_unchecked() };
        // SAFETY: `len < cap`, so the place is inside the block.
        let place = unsafe { sheaf.objects().add(self.len as usize) };
        // SAFETY: as above; the sheaf is owned by this place, which is borrowed exclusively.
        unsafe { place.write(object) };
        self.len += 1;
        true
    }

    /// Adds an object if there is room in the sheaf, and leaves the place looking full: fast paths go round it (H2).
    pub(crate) fn push_closed(&mut self, object: NonNull<u8>) -> bool {
        let Some(sheaf) = &self.sheaf else {
            return false;
        };
        // INVARIANT: `cap` is the sheaf's here, and no more than that below.
        self.cap = sheaf.cap() as u32;
        let pushed = self.push(object);
        self.cap = self.len;
        pushed
    }

    /// Takes as many objects as there are and `out` wants, and says how many.
    pub(crate) fn pop_many(&mut self, out: &mut [MaybeUninit<NonNull<u8>>]) -> usize {
        let n = self.len().min(out.len());
        let Some(sheaf) = &self.sheaf else {
            return 0;
        };
        self.len -= n as u32;
        // SAFETY: `n` was at most the old `len`, so the place is inside the block.
        let from = unsafe { sheaf.objects().add(self.len as usize) };
        // SAFETY: the `n` pointers from there on are initialised; `out`, which is borrowed exclusively, has room for them.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(out).cast(), n) };
        n
    }

    /// Adds as many of `objects` as fit, and says how many.
    pub(crate) fn push_many(&mut self, objects: &[NonNull<u8>]) -> usize {
        let n = self.room().min(objects.len());
        let Some(sheaf) = &self.sheaf else {
            return 0;
        };
        // SAFETY: `len <= cap`, so the place is inside the block or at its end.
        let to = unsafe { sheaf.objects().add(self.len as usize) };
        // SAFETY: there is room for `n` pointers, in a sheaf that this place, which is borrowed exclusively, owns.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(objects).cast(), n) };
        self.len += n as u32;
        n
    }

    /// Puts `sheaf` here and returns the one that was.
    pub(crate) fn install(&mut self, sheaf: Sheaf) -> Option<Sheaf> {
        let old = self.uninstall();
        // INVARIANT: `len` and `cap` are the new sheaf's.
        self.len = sheaf.len() as u32;
        self.cap = sheaf.cap() as u32;
        self.sheaf = Some(sheaf);
        old
    }

    /// Takes the sheaf out, its length brought up to date.
    pub(crate) fn uninstall(&mut self) -> Option<Sheaf> {
        let mut sheaf = self.sheaf.take()?;
        sheaf.header_mut().len = self.len;
        // INVARIANT: zero, as there is no sheaf.
        self.len = 0;
        self.cap = 0;
        Some(sheaf)
    }
}

/// A list of sheaves and the number of objects in them. All-zero is empty.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct SheafList {
    head: Option<Sheaf>,
    /// The last sheaf; meaningless when `head` is `None`.
    tail: Option<NonNull<Header>>,
    sheaves: u32,
    objects: u32,
}

// SAFETY: `tail` points to a sheaf of the list, which owns it.
unsafe impl Send for SheafList {}
// SAFETY: zero is `None` twice and no sheaves; owns nothing.
unsafe impl ZeroInit for SheafList {}

impl SheafList {
    pub(crate) const fn new() -> Self {
        Self {
            head: None,
            tail: None,
            sheaves: 0,
            objects: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    pub(crate) fn sheaves(&self) -> usize {
        self.sheaves as usize
    }

    /// Objects in all sheaves together.
    pub(crate) fn objects(&self) -> usize {
        self.objects as usize
    }

    pub(crate) fn first(&self) -> Option<&Sheaf> {
        self.head.as_ref()
    }

    /// The cookie of the last sheaf.
    pub(crate) fn last_cookie(&self) -> Option<Cookie> {
        self.head.as_ref()?;
        let tail = self.tail?;
        // SAFETY: the list is not empty, so `tail` is its last sheaf, which it owns.
        let tail = unsafe { tail.as_ref() };
        Some(tail.cookie)
    }

    pub(crate) fn push_front(&mut self, mut sheaf: Sheaf) {
        let place = sheaf.0;
        self.count_in(&sheaf);
        match self.head.take() {
            Some(next) => sheaf.header_mut().link.next = Some(next.into_link()),
            None => {
                sheaf.header_mut().link.next = None;
                self.tail = Some(place);
            }
        }
        self.head = Some(sheaf);
    }

    pub(crate) fn push_back(&mut self, mut sheaf: Sheaf) {
        let place = sheaf.0;
        self.count_in(&sheaf);
        sheaf.header_mut().link.next = None;
        let last = self.tail.replace(place);
        if self.head.is_none() {
            self.head = Some(sheaf);
        } else if let Some(mut last) = last {
            // SAFETY: the list was not empty, so `tail` was its last sheaf, which it owns.
            let last = unsafe { last.as_mut() };
            last.link.next = Some(sheaf.into_link());
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<Sheaf> {
        let mut sheaf = self.head.take()?;
        // SAFETY: a link in the list is a sheaf that was pushed, and leaves the list only here.
        let next = (sheaf.header_mut().link.next.take()).map(|l| unsafe { Sheaf::from_link(l) });
        self.head = next;
        self.sheaves -= 1;
        self.objects -= sheaf.len() as u32;
        Some(sheaf)
    }

    fn count_in(&mut self, sheaf: &Sheaf) {
        self.sheaves += 1;
        self.objects += sheaf.len() as u32;
    }
}
