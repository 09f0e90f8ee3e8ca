//! What lies around a checked object, and what is looked at there.
//!
//! ```text
//!   words | left zone | object | right zone | rest        one frame; frames follow each other in the slab
//! ```
//! The words come first: what runs over the end of the object before meets that one's right zone sooner.
//!
//! # State
//! | word | meaning | who writes |
//! |---|---|---|
//! | `link` | the next of the deferred, while the object is one of them | whoever freed it (`Inner::defer`) |
//! | `state` | free, live or retired | whoever moves the object on, by compare-exchange |
//! | `allocated`, `freed` | who did so last | whoever moved `state` away from live or to it |
//! | `seal` | the two above, mixed: they were not overwritten | as above, after them |
//!
//! # Invariants
//! - I1. The frame of every object of a checked slab is initialised before the slab comes into the lists.
//! - I2. Zones and object belong to whoever moved `state` last; a live or retired object is its users'.
//! - I3. Free: zones are [`RED_FREE`], the object is filled with poison. Live and retired: zones are [`RED_LIVE`].
//!
//! # Orderings
//! - P6. Whoever moves `state` on (Release) / whoever moves it on after (Acquire): the second sees the frame as the first left it.

use super::Checks;
use crate::config::{MAX_OBJECT_BYTES, Shape};
use crate::error::CreateError;
use crate::fault::{Fault, broken_with};
use crate::inbox::Link;
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;
use core::panic::Location;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// A zone has at least these bytes, and no more are looked at than the second number: objects with large alignment have
/// large gaps between them.
const MIN_ZONE: usize = 8;
const MAX_ZONE: usize = 128;

#[doc(alias = "SLUB_RED_INACTIVE")]
const RED_FREE: u8 = 0xbb;
#[doc(alias = "SLUB_RED_ACTIVE")]
const RED_LIVE: u8 = 0xcc;
const POISON_FREE: u8 = 0x6b;
const POISON_END: u8 = 0xa5;
const POISON_INUSE: u8 = 0x5a;

/// Values that stray writes do not leave by chance.
const FREE: usize = 0x51ab_f4ee;
const LIVE: usize = 0x51ab_115e;
const RETIRED: usize = 0x51ab_4e71;
const SEAL: usize = 0x51ab_5ea1;

/// Bytes shown of what was overwritten.
const LINE: usize = 16;

/// How an object lies in its frame: arithmetic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Bytes before the object.
    pub(crate) lead: usize,
    /// Bytes from one object to the next.
    pub(crate) bytes: usize,
    /// Bytes from an object to the word for its link (L12).
    pub(crate) link_at: isize,
}

impl Frame {
    /// The frame of an object that is kept as it is while it is free, or is not.
    pub(crate) fn new(layout: Layout, checks: Checks, is_kept: bool) -> Result<Self, CreateError> {
        // Whole words, at least one, and whatever alignment is asked for beyond.
        let align = layout.align().max(size_of::<usize>());
        let size = layout.size().max(1);
        // Before any arithmetic: a size and an alignment may each be half of all there is.
        if size.max(align) > MAX_OBJECT_BYTES {
            let bytes = size.max(align);
            return Err(CreateError::TooLarge { bytes });
        }
        // In the object or, where that stays as it is, behind it.
        let (link_at, end) = if is_kept {
            let link_at = layout.size().next_multiple_of(size_of::<Link>());
            (link_at, link_at + size_of::<Link>())
        } else {
            (0, size)
        };
        let mut frame = Self {
            lead: 0,
            bytes: end.next_multiple_of(align),
            link_at: link_at.cast_signed(),
        };
        if checks.intersects(Checks::EACH) {
            let zone = if checks.contains(Checks::RED_ZONE) {
                MIN_ZONE
            } else {
                0
            };
            frame.lead = (size_of::<Words>() + zone).next_multiple_of(align);
            frame.bytes = (frame.lead + size + zone).next_multiple_of(align);
            // Neither the object, nor the zones, nor the poison show that the object waits on a list.
            frame.link_at = -frame.lead.cast_signed();
        }
        if frame.bytes > MAX_OBJECT_BYTES {
            return Err(CreateError::TooLarge { bytes: frame.bytes });
        }
        Ok(frame)
    }
}

/// The words at the start of a frame.
#[repr(C)]
#[derive(Debug)]
struct Words {
    link: UnsafeCell<Link>,
    state: AtomicUsize,
    allocated: AtomicPtr<Location<'static>>,
    freed: AtomicPtr<Location<'static>>,
    seal: AtomicUsize,
}

/// What a user does to a live object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Free,
    Retire,
    /// A free that makes the object wait as a retired one does ([`Stability::Delayed`](crate::Stability::Delayed)).
    Delay,
}

impl Move {
    fn target(self) -> usize {
        match self {
            Self::Free => FREE,
            Self::Retire | Self::Delay => RETIRED,
        }
    }

    /// What it is to do this to an object in `state`, which is not live.
    fn fault(self, state: usize) -> Fault {
        match (self, state) {
            // What waits in a cache of delayed frees was most likely freed.
            (Self::Free | Self::Delay, FREE) | (Self::Delay, RETIRED) => Fault::DoubleFree,
            (Self::Free, RETIRED) => Fault::FreedRetired,
            (Self::Retire, FREE) => Fault::RetiredFreed,
            (Self::Retire, RETIRED) => Fault::RetiredTwice,
            _ => Fault::Words,
        }
    }
}

/// An object of a checked cache, with its frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked<'a> {
    shape: &'a Shape,
    object: NonNull<u8>,
}

impl<'a> Checked<'a> {
    /// # Safety
    /// 1. `object` is one of a slab of a cache of this shape, by a pointer good for the whole slab, which stays for `'a`.
    pub(crate) unsafe fn new(shape: &'a Shape, object: NonNull<u8>) -> Self {
        debug_assert!(shape.is_checked());
        Self { shape, object }
    }

    fn words(&self) -> &'a Words {
        // SAFETY: a frame has `lead` bytes before the object, in the same slab (`new`).
        let words = unsafe { self.object.sub(self.shape.lead) }.cast();
        // SAFETY: the words are there for `'a`, initialised (I1), atomic and aligned.
        unsafe { words.as_ref() }
    }

    /// The slab's address. Page blocks are aligned to their size.
    fn slab(&self) -> *const u8 {
        let mask = !(self.shape.order.bytes() - 1);
        self.object.as_ptr().map_addr(|a| a & mask)
    }

    /// Initialises the frame of a free object.
    ///
    /// # Safety
    /// 1. The frame is the caller's alone.
    pub(crate) unsafe fn birth(&self) {
        // SAFETY: as in `words`.
        let words: NonNull<Words> = unsafe { self.object.sub(self.shape.lead) }.cast();
        let fresh = Words {
            link: UnsafeCell::new(Link { next: None }),
            state: AtomicUsize::new(FREE),
            allocated: AtomicPtr::new(ptr::null_mut()),
            freed: AtomicPtr::new(ptr::null_mut()),
            seal: AtomicUsize::new(SEAL),
        };
        // SAFETY: the frame is the caller's (debt 1), and large enough (`Frame::new`).
        unsafe { words.write(fresh) };
        self.paint(RED_FREE);
        self.poison();
    }

    /// A free object becomes a live one, allocated `by` whom.
    pub(crate) fn hand_out(&self, by: &'static Location<'static>) {
        let words = self.words();
        // ORDERING: P6, both sides.
        let was = (words.state).compare_exchange(FREE, LIVE, Ordering::AcqRel, Ordering::Acquire);
        if was.is_err() {
            self.broken(Fault::Words, format_args!(""));
        }
        self.look_at_zones(RED_FREE);
        if self.shape.checks.contains(Checks::POISON) {
            self.look_at_poison();
            self.fill(0, self.shape.layout.size(), POISON_INUSE);
        }
        self.paint(RED_LIVE);
        if self.shape.checks.contains(Checks::OWNER) {
            self.note(&words.allocated, by);
        }
    }

    /// A live object changes hands: it counts as allocated `by` whom.
    pub(crate) fn hand_on(&self, by: &'static Location<'static>) {
        self.look_at_zones(RED_LIVE);
        if self.shape.checks.contains(Checks::OWNER) {
            self.note(&self.words().allocated, by);
        }
    }

    /// Ends the program unless the object is live, as one must be that is about to be freed `by` whom.
    #[cfg(feature = "checks")]
    pub(crate) fn expect_live(&self, by: &'static Location<'static>) {
        // ORDERING: Relaxed: nothing of the object is looked at.
        let state = self.words().state.load(Ordering::Relaxed);
        if state != LIVE {
            self.broken(
                Move::Free.fault(state),
                format_args!("\n  now freed at {by}"),
            );
        }
    }

    /// A live object is freed or retired `by` whom. Nobody else can do so any more.
    pub(crate) fn claim(&self, to: Move, by: &'static Location<'static>) {
        let words = self.words();
        // ORDERING: P6, both sides.
        let was =
            words
                .state
                .compare_exchange(LIVE, to.target(), Ordering::AcqRel, Ordering::Acquire);
        if let Err(state) = was {
            let deed = match to {
                Move::Free | Move::Delay => "freed",
                Move::Retire => "retired",
            };
            self.broken(to.fault(state), format_args!("\n  now {deed} at {by}"));
        }
        self.look_at_zones(RED_LIVE);
        if self.shape.checks.contains(Checks::OWNER) {
            self.note(&words.freed, by);
        }
        if to == Move::Free {
            self.clear();
        }
    }

    /// Takes a claim to retire back: the object is live again.
    pub(crate) fn unclaim(&self) {
        // ORDERING: P6 (first's side).
        self.words().state.store(LIVE, Ordering::Release);
    }

    /// The grace period of a retired object is over.
    pub(crate) fn come_home(&self) {
        // ORDERING: P6, both sides.
        let was =
            self.words()
                .state
                .compare_exchange(RETIRED, FREE, Ordering::AcqRel, Ordering::Acquire);
        if was.is_err() {
            self.broken(Fault::Words, format_args!(""));
        }
        self.look_at_zones(RED_LIVE);
        self.clear();
    }

    /// Whether a user has the object.
    pub(crate) fn is_live(&self) -> bool {
        // ORDERING: Relaxed: for a report; nothing of the object is looked at.
        self.words().state.load(Ordering::Relaxed) == LIVE
    }

    /// Who allocated the object last, if that was noted and the note was not overwritten.
    pub(crate) fn allocated_by(&self) -> Option<&'static Location<'static>> {
        self.owners()[0]
    }

    /// I3 of a free object.
    fn clear(&self) {
        self.paint(RED_FREE);
        self.poison();
    }

    fn note(&self, word: &AtomicPtr<Location<'static>>, by: &'static Location<'static>) {
        // ORDERING: Relaxed: the object is the caller's (I2); a reader elsewhere goes by the seal.
        word.store(ptr::from_ref(by).cast_mut(), Ordering::Relaxed);
        let (allocated, freed) = self.owner_words();
        let seal = allocated.addr() ^ freed.addr() ^ SEAL;
        // ORDERING: Relaxed: as above.
        self.words().seal.store(seal, Ordering::Relaxed);
    }

    fn owner_words(&self) -> (*mut Location<'static>, *mut Location<'static>) {
        let words = self.words();
        // ORDERING: Relaxed: notes for messages; checked by the seal.
        let allocated = words.allocated.load(Ordering::Relaxed);
        // ORDERING: Relaxed: as above.
        let freed = words.freed.load(Ordering::Relaxed);
        (allocated, freed)
    }

    /// Who allocated and who freed, as far as is known.
    fn owners(&self) -> [Option<&'static Location<'static>>; 2] {
        let (allocated, freed) = self.owner_words();
        // ORDERING: Relaxed: as above.
        let seal = self.words().seal.load(Ordering::Relaxed);
        if seal != allocated.addr() ^ freed.addr() ^ SEAL {
            return [None; 2];
        }
        [allocated, freed].map(|owner| {
            // SAFETY: null, or from a `&'static Location`: the seal says that nobody else wrote it.
            unsafe { owner.as_ref() }
        })
    }

    /// The bytes from `from` (before the object if negative), as many as `len`.
    fn bytes(&self, from: isize, len: usize) -> &[u8] {
        // SAFETY: callers stay inside the frame.
        let start = unsafe { self.object.offset(from) };
        // SAFETY: inside the frame and initialised (I1, I3); whoever writes there meanwhile broke the contract already.
        unsafe { core::slice::from_raw_parts(start.as_ptr(), len) }
    }

    fn fill(&self, from: isize, len: usize, byte: u8) {
        // SAFETY: callers stay inside the frame.
        let start = unsafe { self.object.offset(from) };
        // SAFETY: inside the frame, which is the caller's (I2).
        unsafe { start.write_bytes(byte, len) };
    }

    /// Where the zones begin, and how long they are.
    fn zones(&self) -> [(isize, usize); 2] {
        let (lead, size) = (self.shape.lead, self.shape.layout.size());
        let left = (lead - size_of::<Words>()).min(MAX_ZONE);
        let right = (self.shape.size - lead - size).min(MAX_ZONE);
        [(-left.cast_signed(), left), (size.cast_signed(), right)]
    }

    fn paint(&self, byte: u8) {
        if self.shape.checks.contains(Checks::RED_ZONE) {
            for (from, len) in self.zones() {
                self.fill(from, len, byte);
            }
        }
    }

    fn look_at_zones(&self, byte: u8) {
        if self.shape.checks.contains(Checks::RED_ZONE) {
            for (side, (from, len)) in ["left", "right"].into_iter().zip(self.zones()) {
                if let Some(at) = self.bytes(from, len).iter().position(|&b| b != byte) {
                    let at = from + at.cast_signed();
                    self.overwritten(Fault::RedZone, side, at, byte);
                }
            }
        }
    }

    fn poison(&self) {
        let size = self.shape.layout.size();
        if self.shape.checks.contains(Checks::POISON) && size > 0 {
            self.fill(0, size - 1, POISON_FREE);
            self.fill(size.cast_signed() - 1, 1, POISON_END);
        }
    }

    fn look_at_poison(&self) {
        let bytes = self.bytes(0, self.shape.layout.size());
        let Some((end, rest)) = bytes.split_last() else {
            return;
        };
        if let Some(at) = rest.iter().position(|&b| b != POISON_FREE) {
            self.overwritten(Fault::Poison, "inside", at.cast_signed(), POISON_FREE);
        }
        if *end != POISON_END {
            let at = rest.len().cast_signed();
            self.overwritten(Fault::Poison, "inside", at, POISON_END);
        }
    }

    /// Ends the program: the byte `at`, counted from the object, should be `expected`.
    #[cold]
    fn overwritten(&self, fault: Fault, side: &str, at: isize, expected: u8) -> ! {
        let found = self.bytes(at, 1)[0];
        // A line of the frame around it.
        let last = (self.shape.size - self.shape.lead).cast_signed();
        let from = (at - at.rem_euclid(LINE.cast_signed())).max(-self.shape.lead.cast_signed());
        let len = LINE.min((last - from).unsigned_abs());
        let dump = Dump(self.bytes(from, len));
        self.broken(
            fault,
            format_args!(
                "\n  {side}, byte {at:+}: is {found:#04x}, should be {expected:#04x}\n  {from:+}: {dump}"
            ),
        )
    }

    #[cold]
    fn broken(&self, fault: Fault, detail: fmt::Arguments<'_>) -> ! {
        let history = History(self.owners());
        broken_with(
            fault,
            self.shape.name,
            self.object.as_ptr(),
            self.slab(),
            format_args!("{detail}{history}"),
        )
    }
}

/// Bytes in hexadecimal.
struct Dump<'a>(&'a [u8]);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{byte:02x}")?;
        }
        Ok(())
    }
}

/// What is known of who had an object.
struct History([Option<&'static Location<'static>>; 2]);

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (deed, who) in ["last allocated", "last freed or retired"]
            .iter()
            .zip(self.0)
        {
            if let Some(who) = who {
                write!(f, "\n  {deed} at {who}")?;
            }
        }
        Ok(())
    }
}
