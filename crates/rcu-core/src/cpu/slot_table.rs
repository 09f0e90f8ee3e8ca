//! Who holds which slot.
//!
//! # State
//! | word, by slot | meaning | who writes |
//! |---|---|---|
//! | `seen` | slots from this number on were never taken | only raised, under the lock |
//! | `taken` | somebody owns the slot, or a layer keeps it | all under the table's lock |
//! | `keepers` | how many layers still use the slot of an owner that has gone | |
//! | `names` | what the owner was called when it came, for reports | |
//!
//! # Invariants
//! - I1. A slot has at most one owner; it passes on under the lock, which orders the old owner's accesses before the
//!   new one's.
//!
//! Why the lowest free number: scans and per-slot arrays stay dense.

use super::{Slot, SpinMutex};
use crate::sync::atomic::{AtomicUsize, Ordering};
use core::fmt;

/// What is kept of a name.
const NAME: usize = 32;

#[derive(Clone, Copy)]
struct Name {
    bytes: [u8; NAME],
    len: u8,
}

impl Name {
    const NONE: Self = Self {
        bytes: [0; NAME],
        len: 0,
    };

    /// As much of `bytes` as fits.
    fn new(bytes: &[u8]) -> Self {
        let mut name = Self::NONE;
        for (to, from) in name.bytes.iter_mut().zip(bytes) {
            *to = *from;
            name.len += 1;
        }
        name
    }

    /// The name, if it is one that can be shown.
    fn as_str(&self) -> Option<&str> {
        let bytes = &self.bytes[..usize::from(self.len)];
        let text = match core::str::from_utf8(bytes) {
            Ok(text) => text,
            // Cut in the middle of a character.
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?,
        };
        (!text.is_empty()).then_some(text)
    }
}

struct Table<const N: usize> {
    taken: [bool; N],
    keepers: [u32; N],
    names: [Name; N],
}

/// Which of `N` slots are taken: for implementers of [`Cpus`](super::Cpus) whose slots come and go.
///
/// All of it is under one spin lock, which no formatter and no hook is called under. Taking a slot costs a look at every
/// slot below it.
///
/// ```
/// use rcu_core::cpu::{Slot, SlotTable};
///
/// let table = SlotTable::<2>::new();
/// let first = table.take(b"first").unwrap();
/// assert_eq!(table.take(b"second"), Some(Slot::new(1)));
/// assert_eq!(table.take(b"third"), None);
/// table.give_back(first, 0);
/// assert_eq!(table.take(b"third"), Some(first));
/// ```
pub struct SlotTable<const N: usize> {
    table: SpinMutex<Table<N>>,
    /// One past the highest slot that was ever taken.
    seen: AtomicUsize,
}

impl<const N: usize> SlotTable<N> {
    crate::const_fn! {
        /// A table of free slots.
        #[must_use]
        pub const fn new() -> Self {
            Self {
                table: SpinMutex::new(Table {
                    taken: [false; N],
                    keepers: [0; N],
                    names: [Name::NONE; N],
                }),
                seen: AtomicUsize::new(0),
            }
        }
    }

    /// Takes the lowest free slot for somebody called `name` (of which 32 bytes are kept); `None` if all are taken.
    pub fn take(&self, name: &[u8]) -> Option<Slot> {
        let name = Name::new(name);
        let mut table = self.table.lock();
        let index = table.taken.iter().position(|taken| !taken)?;
        table.taken[index] = true;
        table.names[index] = name;
        // ORDERING: Relaxed: read in the child of a fork, which finds each thread between two of its instructions.
        self.seen.fetch_max(index + 1, Ordering::Relaxed);
        Some(Slot::new(index as u32))
    }

    /// Slots from this number on were never taken.
    #[must_use]
    pub fn nr_seen(&self) -> usize {
        // ORDERING: Relaxed: as in `take`.
        self.seen.load(Ordering::Relaxed)
    }

    /// Gives `slot` back, after its offline hooks have run and `keepers` of them wanted to keep it: it is free when so
    /// many have called [`Self::release`], or now if none has to.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn give_back(&self, slot: Slot, keepers: u32) {
        let mut table = self.table.lock();
        debug_assert!(
            table.taken[slot.index()],
            "I1: gave back a slot that was free"
        );
        table.keepers[slot.index()] = keepers;
        table.taken[slot.index()] = keepers > 0;
    }

    /// Ends one keeper's use of `slot`.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn release(&self, slot: Slot) {
        let mut table = self.table.lock();
        let keepers = &mut table.keepers[slot.index()];
        debug_assert!(*keepers > 0, "I1: released a slot that was not kept");
        *keepers -= 1;
        let kept = *keepers > 0;
        table.taken[slot.index()] = kept;
    }

    /// How many slots are taken now, those of owners that have gone but are kept included.
    #[must_use]
    pub fn nr_taken(&self) -> usize {
        let table = self.table.lock();
        table.taken.iter().filter(|taken| **taken).count()
    }

    /// How many slots are kept by a layer after their owners have gone.
    #[must_use]
    pub fn nr_kept(&self) -> usize {
        let table = self.table.lock();
        table.keepers.iter().filter(|keepers| **keepers > 0).count()
    }

    /// Holds the table still until [`Self::let_go`]: nobody gets a slot.
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) fn hold(&self) {
        core::mem::forget(self.table.lock());
    }

    /// Ends what [`Self::hold`] began.
    ///
    /// # Safety
    /// 1. The caller holds the table.
    #[cfg(all(feature = "std", unix, not(loom)))]
    pub(crate) unsafe fn let_go(&self) {
        // SAFETY: the guard was forgotten by `hold` (1).
        unsafe { self.table.unlock_forgotten() };
    }

    /// Writes who is on `slot`, as [`Cpus::describe`](super::Cpus::describe): `thread "name" (slot 3)`, or the number
    /// alone if nobody is there, the name is empty, or the table is locked just now.
    ///
    /// # Errors
    /// Those of the formatter.
    pub fn describe(&self, slot: Slot, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.table.try_lock().and_then(|table| {
            let taken = *table.taken.get(slot.index())?;
            taken.then(|| table.names[slot.index()])
        });
        match name.as_ref().and_then(Name::as_str) {
            Some(name) => write!(f, "thread {name:?} (slot {})", slot.index()),
            None => write!(f, "slot {}", slot.index()),
        }
    }

    /// Frees every slot but the survivor's, in the child of a fork.
    ///
    /// # Safety
    /// 1. This is the child of a fork and the caller its only thread, inside no function of this table; it owns the slot
    ///    `survivor`, if any.
    pub unsafe fn reset_after_fork(&self, survivor: Option<Slot>) {
        // SAFETY: there is no other thread, and the caller does not hold the lock (1).
        let (mut table, _) = unsafe { self.table.seize() };
        // Half changed or not, all of it is written anew; of a half-written name nothing worse comes than a wrong one.
        for index in 0..N {
            table.taken[index] = survivor == Some(Slot::new(index as u32));
        }
        table.keepers = [0; N];
    }
}

impl<const N: usize> Default for SlotTable<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for SlotTable<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotTable")
            .field("nr_slots", &N)
            .field("nr_taken", &self.nr_taken())
            .field("nr_kept", &self.nr_kept())
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    struct Who<'t, const N: usize>(&'t SlotTable<N>, u32);

    impl<const N: usize> fmt::Display for Who<'_, N> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.describe(Slot::new(self.1), f)
        }
    }

    #[test]
    fn the_lowest_free_slot_is_taken_and_a_kept_one_is_not() {
        let table = SlotTable::<3>::new();
        let slots: [Slot; 3] = core::array::from_fn(|_| table.take(b"").unwrap());
        assert_eq!(slots.map(Slot::index), [0, 1, 2]);
        assert_eq!(table.take(b""), None);
        table.give_back(slots[2], 0);
        table.give_back(slots[0], 2);
        assert_eq!((table.nr_taken(), table.nr_kept()), (2, 1));
        assert_eq!(table.take(b""), Some(slots[2]));
        table.release(slots[0]);
        assert_eq!(table.take(b""), None, "one keeper is left");
        table.release(slots[0]);
        assert_eq!(table.nr_kept(), 0);
        assert_eq!(table.take(b""), Some(slots[0]));
    }

    #[test]
    fn names_are_shown_while_somebody_is_there() {
        let table = SlotTable::<4>::new();
        let short = table.take(b"a \"b\"").unwrap();
        table.take("ä".repeat(20).as_bytes()).unwrap();
        table.take(b"").unwrap();
        assert_eq!(
            Who(&table, 0).to_string(),
            "thread \"a \\\"b\\\"\" (slot 0)"
        );
        let cut = format!("thread \"{}\" (slot 1)", "ä".repeat(16));
        assert_eq!(Who(&table, 1).to_string(), cut);
        assert_eq!(Who(&table, 2).to_string(), "slot 2", "no name");
        assert_eq!(Who(&table, 3).to_string(), "slot 3", "nobody");
        assert_eq!(Who(&table, 9).to_string(), "slot 9", "no such slot");
        table.give_back(short, 0);
        assert_eq!(Who(&table, 0).to_string(), "slot 0");
        table.take(b"odd \xc3").unwrap();
        assert_eq!(Who(&table, 0).to_string(), "thread \"odd \" (slot 0)");
        let _held = table.table.lock();
        assert_eq!(Who(&table, 0).to_string(), "slot 0", "locked just now");
    }

    #[test]
    fn after_a_fork_the_survivors_slot_alone_is_taken() {
        let table = SlotTable::<3>::new();
        let slots: [Slot; 3] = core::array::from_fn(|_| table.take(b"x").unwrap());
        table.give_back(slots[0], 1);
        core::mem::forget(table.table.lock());
        // SAFETY: nobody holds the lock any more, and there is no other thread.
        unsafe { table.reset_after_fork(Some(slots[1])) };
        assert_eq!((table.nr_taken(), table.nr_kept()), (1, 0));
        assert_eq!(Who(&table, 1).to_string(), "thread \"x\" (slot 1)");
        assert_eq!(table.take(b""), Some(slots[0]));
        // SAFETY: as above.
        unsafe { table.reset_after_fork(None) };
        assert_eq!(table.nr_taken(), 0);
    }
}
