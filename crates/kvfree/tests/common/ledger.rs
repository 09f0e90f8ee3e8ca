//! An allocator that keeps books: who is out, who was retired when, and what went wrong.

use kvfree::Objects;
use rcu_core::{Callback, Cookie, GracePeriod, HasHead, Head, has_head};
use std::alloc::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What large objects are said to give back.
pub(crate) const LARGE_BYTES: usize = 80_000;

/// Whether the allocator has batches of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defer {
    Never,
    Always,
    /// Takes every second object.
    Sometimes,
}

/// What lies in an object's memory.
#[repr(C)]
struct Body {
    ledger: *const (),
    id: usize,
    mark: usize,
    head: Head,
    tail: usize,
}
has_head!(Body, head);

const OUT: usize = 0x1234_5678_9abc_def0_u64 as usize;
const FREED: usize = 0x0fed_cba9_8765_4321_u64 as usize;

/// An object that the test has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) at: NonNull<u8>,
    pub(crate) id: usize,
}

// SAFETY: a number and an address.
unsafe impl Send for Item {}

impl Item {
    /// The object's head.
    pub(crate) fn head(self) -> NonNull<Head> {
        // SAFETY: objects of a ledger hold bodies until it is dropped.
        unsafe { Body::head_of(self.at.cast()) }
    }

    pub(crate) const OFFSET: rcu_core::HeadOffset = Body::OFFSET;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Out,
    /// With a cookie from before: a bound from below on when it may be freed.
    Retired(Cookie),
    Freed,
}

struct Entry {
    id: usize,
    large: bool,
    status: Status,
}

struct Books {
    objects: BTreeMap<usize, Entry>,
    memory: Vec<NonNull<u8>>,
    deferred: VecDeque<(NonNull<u8>, Cookie)>,
    defer: Defer,
    offered: usize,
    freed: usize,
    /// Whether objects may be freed at this moment, and whether foreign functions may run.
    may_free: bool,
    may_call: bool,
    faults: Vec<String>,
}

// SAFETY: the memory belongs to the books.
unsafe impl Send for Books {}

/// Memory stays until the ledger is dropped, so that every touch too many is found.
pub(crate) struct Ledger<G: GracePeriod> {
    gp: G,
    books: Mutex<Books>,
}

const LAYOUT: Layout = Layout::new::<Body>();

impl<G: GracePeriod> Ledger<G> {
    pub(crate) const fn new(gp: G, defer: Defer) -> Self {
        let books = Books {
            objects: BTreeMap::new(),
            memory: Vec::new(),
            deferred: VecDeque::new(),
            defer,
            offered: 0,
            freed: 0,
            may_free: true,
            may_call: true,
            faults: Vec::new(),
        };
        Self {
            gp,
            books: Mutex::new(books),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // A failing test is to say what it found, not that its books are poisoned.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn alloc(&self, large: bool) -> Item {
        // SAFETY: the layout is not empty.
        let at = NonNull::new(unsafe { std::alloc::alloc(LAYOUT) }).unwrap();
        let mut books = self.books();
        let id = books.memory.len();
        let mark = OUT ^ at.addr().get();
        let ledger = std::ptr::from_ref(self).cast();
        let body = Body {
            ledger,
            id,
            mark,
            head: Head::new(),
            tail: !mark,
        };
        // SAFETY: fresh memory of this layout.
        unsafe { at.cast::<Body>().write(body) };
        books.memory.push(at);
        books.objects.insert(
            at.addr().get(),
            Entry {
                id,
                large,
                status: Status::Out,
            },
        );
        Item { at, id }
    }

    /// Notes that the test is about to retire the object.
    pub(crate) fn retiring(&self, item: Item) {
        let cookie = self.gp.snapshot();
        let mut books = self.books();
        let entry = books.objects.get_mut(&item.at.addr().get()).unwrap();
        assert_eq!(entry.status, Status::Out, "a mistake of the test");
        entry.status = Status::Retired(cookie);
    }

    /// Notes that the test got the object back.
    pub(crate) fn refused(&self, item: Item) {
        let mut books = self.books();
        let entry = books.objects.get_mut(&item.at.addr().get()).unwrap();
        assert!(
            matches!(entry.status, Status::Retired(_)),
            "refused, and yet freed"
        );
        entry.status = Status::Out;
    }

    /// Runs `f`, in which nothing may be freed and no foreign function run: what retires in any context.
    pub(crate) fn without_freeing<T>(&self, f: impl FnOnce() -> T) -> T {
        self.allowing(false, false, f)
    }

    /// Runs `f`, in which objects may be freed, but no foreign function run: what retires and may sleep.
    pub(crate) fn without_calling<T>(&self, f: impl FnOnce() -> T) -> T {
        self.allowing(true, false, f)
    }

    fn allowing<T>(&self, free: bool, call: bool, f: impl FnOnce() -> T) -> T {
        let mut books = self.books();
        (books.may_free, books.may_call) = (free, call);
        drop(books);
        let value = f();
        let mut books = self.books();
        (books.may_free, books.may_call) = (true, true);
        drop(books);
        value
    }

    /// Checks that an object was left alone.
    pub(crate) fn check(&self, item: Item) {
        // SAFETY: memory stays until the ledger is dropped.
        let body = unsafe { item.at.cast::<Body>().as_ref() };
        assert_eq!(
            body.mark,
            OUT ^ item.at.addr().get(),
            "object {} was written to",
            item.id
        );
        assert_eq!((body.tail, body.id), (!body.mark, item.id));
    }

    fn free(&self, object: NonNull<u8>) {
        let addr = object.addr().get();
        let mut books = self.books();
        let may_free = books.may_free;
        let Some(entry) = books.objects.get_mut(&addr) else {
            books
                .faults
                .push(format!("freed {object:p}, which is not ours"));
            return;
        };
        let id = entry.id;
        let fault = match entry.status {
            Status::Out => Some("not retired"),
            Status::Freed => Some("freed twice"),
            Status::Retired(cookie) if !self.gp.poll(cookie) => Some("freed early"),
            Status::Retired(_) if !may_free => {
                Some("freed in a context where nothing may be freed")
            }
            Status::Retired(_) => None,
        };
        entry.status = Status::Freed;
        books.freed += 1;
        books
            .faults
            .extend(fault.map(|fault| format!("object {id}: {fault}")));
        // SAFETY: memory stays until the ledger is dropped.
        let body = unsafe { object.cast::<Body>().as_mut() };
        if body.mark != OUT ^ addr || body.tail != !body.mark {
            books
                .faults
                .push(format!("object {id}: written to before it was freed"));
        }
        body.mark = FREED ^ addr;
    }

    /// Objects retired and not freed.
    pub(crate) fn waiting(&self) -> usize {
        let retired = |e: &&Entry| matches!(e.status, Status::Retired(_));
        self.books().objects.values().filter(retired).count()
    }

    /// Objects not freed.
    pub(crate) fn outstanding(&self) -> usize {
        self.books()
            .objects
            .values()
            .filter(|e| e.status != Status::Freed)
            .count()
    }

    pub(crate) fn freed(&self) -> usize {
        self.books().freed
    }

    pub(crate) fn is_freed(&self, item: Item) -> bool {
        self.books().objects[&item.at.addr().get()].status == Status::Freed
    }

    pub(crate) fn assert_no_faults(&self) {
        let books = self.books();
        assert!(books.faults.is_empty(), "{:?}", books.faults);
    }

    /// How the test's objects are freed by a function of their own.
    pub(crate) const DROP: kvfree::DropFn = drop_item::<G>;
    /// The same by their heads.
    pub(crate) const CALLBACK: Callback = Callback::Run(free_head::<G>);

    fn called(&self, object: NonNull<u8>) {
        let mut books = self.books();
        if !books.may_call {
            books
                .faults
                .push("a foreign function on a thread that retires".into());
        }
        drop(books);
        self.free(object);
    }

    /// How an [`Rcu`](rcu_core::Rcu) frees objects by their offset.
    pub(crate) const FREE: unsafe fn(NonNull<u8>) = free_item::<G>;

    fn reap_ripe(&self) -> usize {
        loop {
            let mut books = self.books();
            let ripe = books
                .deferred
                .pop_front_if(|(_, cookie)| self.gp.poll(*cookie));
            let left = books.deferred.len();
            drop(books);
            match ripe {
                Some((object, _)) => self.free(object),
                None => return left,
            }
        }
    }
}

/// # Safety
/// 1. `object` is an object of a `Ledger<G>`, which lives.
unsafe fn drop_item<G: GracePeriod>(object: NonNull<u8>) {
    // SAFETY: 1.
    let ledger = unsafe { object.cast::<Body>().as_ref() }.ledger;
    // SAFETY: 1.
    let ledger = unsafe { &*ledger.cast::<Ledger<G>>() };
    ledger.called(object);
}

/// # Safety
/// 1. `object` is an object of a `Ledger<G>`, which lives.
unsafe fn free_item<G: GracePeriod>(object: NonNull<u8>) {
    // SAFETY: 1.
    let ledger = unsafe { object.cast::<Body>().as_ref() }.ledger;
    // SAFETY: 1.
    unsafe { &*ledger.cast::<Ledger<G>>() }.free(object);
}

/// # Safety
/// 1. `head` lies in an object of a `Ledger<G>`, which lives.
unsafe fn free_head<G: GracePeriod>(head: NonNull<Head>) {
    // SAFETY: 1.
    let object = unsafe { Body::OFFSET.object(head) };
    // SAFETY: 1.
    unsafe { drop_item::<G>(object) };
}

impl<G: GracePeriod> Drop for Ledger<G> {
    fn drop(&mut self) {
        for &at in &self.books().memory {
            // SAFETY: allocated in `alloc` with this layout.
            unsafe { std::alloc::dealloc(at.as_ptr(), LAYOUT) };
        }
    }
}

// SAFETY: 1: a cookie for each object; 2: `free`; 3: `barrier` frees all that was taken.
unsafe impl<G: GracePeriod> Objects for Ledger<G> {
    unsafe fn try_defer(&self, object: NonNull<u8>) -> bool {
        let cookie = self.gp.snapshot();
        let mut books = self.books();
        books.offered += 1;
        let takes = match books.defer {
            Defer::Never => false,
            Defer::Always => true,
            Defer::Sometimes => books.offered.is_multiple_of(2),
        };
        if takes {
            books.deferred.push_back((object, cookie));
        }
        takes
    }

    fn is_large(&self, object: NonNull<u8>) -> bool {
        self.books().objects[&object.addr().get()].large
    }

    fn size_bytes(&self, object: NonNull<u8>) -> usize {
        if self.is_large(object) {
            LARGE_BYTES
        } else {
            LAYOUT.size()
        }
    }

    unsafe fn free_bulk(&self, objects: &mut [NonNull<u8>]) {
        for &mut object in objects.iter_mut() {
            self.free(object);
        }
    }

    fn barrier(&self) {
        let last = self.books().deferred.back().map(|d| d.1);
        if let Some(cookie) = last {
            self.gp.wait(cookie);
            self.reap_ripe();
        }
    }

    fn reap(&self) -> usize {
        let left = self.reap_ripe();
        if left > 0 {
            self.gp.start();
            self.gp.drive();
        }
        left
    }

    fn waiting_bytes(&self) -> usize {
        let deferred: Vec<_> = self.books().deferred.iter().map(|d| d.0).collect();
        deferred.into_iter().map(|o| self.size_bytes(o)).sum()
    }
}
