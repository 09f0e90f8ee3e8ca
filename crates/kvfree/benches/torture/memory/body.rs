//! What lies in an object: whose it is, which life of the memory this is, and that it is alive.

use crate::books::{Books, Fault};
use rcu_core::{HasHead, Head, has_head};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

const ALIVE: usize = 0x1234_5678_9abc_def0_u64 as usize;
const DEAD: usize = 0xdead_dead_dead_dead_u64 as usize;

/// The least an object can have.
pub(crate) const LEAST: usize = size_of::<Body>() + size_of::<usize>();

/// Lies at an object's front. Its last word repeats the mark.
#[repr(C)]
pub(crate) struct Body {
    head: Head,
    size: AtomicUsize,
    /// The allocator that it came from, or the thread whose it is.
    owner: AtomicUsize,
    /// Of all objects ever.
    life: AtomicUsize,
    mark: AtomicUsize,
}
has_head!(Body, head);

impl Body {
    pub(crate) const HEAD: rcu_core::HeadOffset = Self::OFFSET;

    /// Makes memory of `size` bytes an object.
    ///
    /// # Safety
    /// 1. The memory is the caller's, this long, aligned to 8, and `size` is at least [`LEAST`] and a multiple of 8.
    pub(crate) unsafe fn write(memory: NonNull<u8>, size: usize, owner: usize, life: usize) {
        let at = memory.cast::<Self>();
        let value = Self {
            head: Head::new(),
            size: AtomicUsize::new(size),
            owner: AtomicUsize::new(owner),
            life: AtomicUsize::new(life),
            mark: AtomicUsize::new(DEAD),
        };
        // SAFETY: 1.
        unsafe { at.write(value) };
        // SAFETY: written just now.
        let body = unsafe { at.as_ref() };
        let mark = body.right_mark(owner, life);
        // SAFETY: the last word of the memory (1).
        unsafe { body.tail(size) }.store(!mark, Ordering::Relaxed);
        body.mark.store(mark, Ordering::Relaxed);
    }

    fn right_mark(&self, owner: usize, life: usize) -> usize {
        ALIVE ^ std::ptr::from_ref(self).addr() ^ life ^ owner << 48
    }

    /// The object's last word.
    ///
    /// # Safety
    /// 1. The object has `size` bytes.
    unsafe fn tail(&self, size: usize) -> &AtomicUsize {
        let start = NonNull::from(self).cast::<u8>();
        // SAFETY: 1.
        let last = unsafe { start.add(size - size_of::<usize>()) };
        // SAFETY: 1; aligned, for sizes are multiples of 8.
        unsafe { last.cast().as_ref() }
    }

    /// The body of an object that is out.
    ///
    /// # Safety
    /// 1. There is one, for as long as `'a`: the caller's, or held by a section.
    pub(crate) unsafe fn of<'a>(object: NonNull<u8>) -> &'a Self {
        // SAFETY: 1.
        unsafe { object.cast().as_ref() }
    }

    pub(crate) fn head(object: NonNull<u8>) -> NonNull<Head> {
        // SAFETY: computes an address inside the object.
        unsafe { Self::head_of(object.cast()) }
    }

    pub(crate) fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    pub(crate) fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }

    /// Whether it is alive and untouched; which life it is.
    pub(crate) fn check(&self, books: &Books, when: &str) -> usize {
        let (owner, life) = (self.owner(), self.life.load(Ordering::Relaxed));
        let mark = self.mark.load(Ordering::Relaxed);
        let is_alive = mark == self.right_mark(owner, life);
        books.check(is_alive, Fault::Content, || {
            let what = if mark == DEAD { "dead" } else { "overwritten" };
            format!("{:p}, owner {owner}, life {life}, is {what} {when}", self)
        });
        if is_alive {
            // SAFETY: it says itself how long it is, and is untouched.
            let tail = unsafe { self.tail(self.size()) }.load(Ordering::Relaxed);
            books.check(tail == !mark, Fault::Content, || {
                format!("{:p}, owner {owner}, has another end {when}", self)
            });
        }
        life
    }

    /// It is about to be freed.
    pub(crate) fn bury(&self, books: &Books) {
        self.check(books, "when freed");
        self.mark.store(DEAD, Ordering::Relaxed);
    }
}
