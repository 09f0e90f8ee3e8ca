//! What is too large for a class, and what changes its size.

use super::{CLASS_BYTES, Kind, Kmalloc, class_of, foreign};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, compiler_fence};
use pagealloc::{AllocError, Attempt, Order, PAGE_SIZE, PageAlloc, PageReq};
use rcu_core::GracePeriod;
use rcu_core::cpu::Cpus;

impl<C: Cpus, P: PageAlloc, G: GracePeriod> Kmalloc<C, P, G> {
    /// Pages in a row; else, if that may make system calls, memory apart from the pages.
    #[cold]
    #[inline(never)]
    pub(super) fn large(
        &self,
        layout: Layout,
        attempt: Attempt,
        zero: bool,
    ) -> Result<NonNull<u8>, AllocError> {
        let nr_pages = layout.size().max(1).div_ceil(PAGE_SIZE);
        let is_huge = nr_pages > Order::MAX.pages() || layout.align() > Order::MAX.bytes();
        let mut req = PageReq::new(Order::ZERO)
            .align(layout.align())
            .attempt(attempt);
        if zero {
            req = req.zeroed();
        }
        let run = if is_huge {
            Err(AllocError::Invalid)
        } else {
            self.pages.alloc_run(nr_pages, req)
        };
        match run {
            Ok(run) => {
                self.count_large(run);
                Ok(run)
            }
            // Reads as zeroes in any case.
            Err(error) if attempt == Attempt::MayGrow => {
                let huge = self
                    .huge
                    .alloc(&self.pages, layout.size().max(1), layout.align());
                huge.map_err(|e| if is_huge { e } else { error })
            }
            // Whether there is memory apart is not known before it is asked for.
            Err(_) if is_huge => Err(AllocError::Exhausted),
            Err(error) => Err(error),
        }
    }

    fn count_large(&self, run: NonNull<u8>) {
        let pages = self.pages.run_pages(run.as_ptr()).unwrap_or(0);
        // ORDERING: Relaxed: a number for statistics.
        self.large_bytes
            .fetch_add(pages * PAGE_SIZE, Ordering::Relaxed);
    }

    /// Bytes of the large blocks that are out.
    pub(super) fn large_bytes(&self) -> usize {
        // ORDERING: Relaxed: a number for statistics.
        self.large_bytes.load(Ordering::Relaxed)
    }

    /// Frees what is in no slab.
    ///
    /// # Safety
    /// As for [`Self::kfree`], of memory that [`Self::is_large`].
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn free_large(&self, block: NonNull<u8>, attempt: Attempt) {
        if let Some(pages) = self.pages.run_pages(block.as_ptr()) {
            // ORDERING: Relaxed: a number for statistics.
            self.large_bytes
                .fetch_sub(pages * PAGE_SIZE, Ordering::Relaxed);
            // SAFETY: the pages are out as a run of this length, as the page allocator itself says; the caller's debts.
            unsafe { self.pages.free_run_at(block, pages, attempt) };
            return;
        }
        // SAFETY: the caller's debts.
        if !unsafe { self.huge.free(&self.pages, block) } {
            foreign(block);
        }
    }

    /// The bytes of what is in no slab.
    pub(super) fn large_size(&self, block: NonNull<u8>) -> usize {
        if let Some(pages) = self.pages.run_pages(block.as_ptr()) {
            return pages * PAGE_SIZE;
        }
        match self.huge.bytes_of(block.as_ptr()) {
            Some(bytes) => bytes,
            None => foreign(block),
        }
    }

    /// Makes an allocation of `layout` one of `new_size` bytes with the same alignment: where it is, if that fits and uses half of it or more, else
    /// elsewhere; the contents come along as far as both sizes go. Huge blocks are moved by the system, without copying.
    ///
    /// What it gives is freed by address, not by layout ([`Self::kfree_sized`]). Making something smaller never fails: without memory for a smaller block, it stays where it is.
    ///
    /// # Errors
    /// As for [`Self::kmalloc`]; nothing has changed then.
    ///
    /// # Safety
    /// 1. `memory` came from this allocator for `layout` (or one of another size that fits what it got), and was neither freed nor retired since.
    /// 2. If another address is returned, the old one is not used any more; no reader can still find it. What is past `new_size` in no case.
    ///
    /// ```
    /// # #[cfg(all(feature = "std", target_os = "linux"))] {
    /// # use pagealloc::{Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Kmalloc;
    /// # use core::alloc::Layout;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// let km = Kmalloc::new(Threads, zone, NoReaders).unwrap();
    /// let layout = Layout::new::<[u8; 100]>();
    /// let memory = km.kmalloc(layout).unwrap();
    /// // SAFETY: allocated just now, so large.
    /// unsafe { memory.write_bytes(7, 100) };
    /// // SAFETY: allocated for the layout; the old address is not used any more.
    /// let memory = unsafe { km.krealloc(memory, layout, 10 << 20) }.unwrap();
    /// // SAFETY: the contents came along.
    /// assert_eq!(unsafe { memory.add(99).read() }, 7);
    /// // SAFETY: not used any more.
    /// unsafe { km.kfree(memory) };
    /// # }
    /// ```
    #[track_caller]
    pub unsafe fn krealloc(
        &self,
        memory: NonNull<u8>,
        layout: Layout,
        new_size: usize,
    ) -> Result<NonNull<u8>, AllocError> {
        let new = Layout::from_size_align(new_size, layout.align());
        let new = new.map_err(|_| AllocError::Invalid)?;
        let usable = match self.kind_of(memory.as_ptr()) {
            Kind::Class(class) if class_of(new) == Some(class) => return Ok(memory),
            Kind::Class(class) => CLASS_BYTES[class],
            // SAFETY: the caller's debts.
            Kind::Large => match unsafe { self.resize_large(memory, new) } {
                Ok(resized) => return Ok(resized),
                Err(usable) => usable,
            },
            Kind::Foreign => foreign(memory),
        };
        if new_size <= usable && new_size >= usable / 2 {
            return Ok(memory);
        }
        let moved = match self.kmalloc(new) {
            Ok(moved) => moved,
            Err(_) if new_size <= usable => return Ok(memory),
            Err(error) => return Err(error),
        };
        let kept = new_size.min(layout.size());
        // SAFETY: both are so large, and the new one is nobody else's.
        unsafe { moved.copy_from_nonoverlapping(memory, kept) };
        // SAFETY: the caller's debts 1 and 2.
        unsafe { self.kfree(memory) };
        Ok(moved)
    }

    /// Resizes without copying, or says how large the block is.
    ///
    /// # Safety
    /// As for [`Self::krealloc`], of memory that [`Self::is_large`].
    #[cold]
    pub(super) unsafe fn resize_large(
        &self,
        memory: NonNull<u8>,
        new: Layout,
    ) -> Result<NonNull<u8>, usize> {
        let usable = self.large_size(memory);
        let is_huge = self.pages.run_pages(memory.as_ptr()).is_none();
        // What is not huge any more had better be pages again, and what uses most of its last page stays.
        let stays_huge = new.size() > Order::MAX.bytes();
        if !is_huge || !stays_huge || new.size().div_ceil(PAGE_SIZE) == usable / PAGE_SIZE {
            return Err(usable);
        }
        let may_move = new.align() <= PAGE_SIZE;
        // SAFETY: the caller's debts.
        let resized = unsafe { self.huge.resize(&self.pages, memory, new.size(), may_move) };
        resized.ok_or(usable)
    }

    /// Frees memory whose contents nobody must find: all of it is overwritten with zeroes first.
    ///
    /// # Safety
    /// As for [`Self::kfree`].
    ///
    /// ```
    /// # use core::alloc::Layout;
    /// # use pagealloc::{Attempt, Mmap, Zone};
    /// # use rcu_core::{NoReaders, cpu::Threads};
    /// # use slab::Kmalloc;
    /// # let zone: &'static _ = Box::leak(Box::new(Zone::new(Threads, Mmap::new().unwrap()).unwrap()));
    /// # let kmalloc = Kmalloc::new(Threads, zone, NoReaders).unwrap();
    /// let layout = Layout::new::<[u64; 5]>();
    /// let memory = kmalloc.kmalloc(layout).unwrap();
    /// // … a key is written to it, and used …
    /// // SAFETY: from this allocator, and nobody else has it.
    /// unsafe { kmalloc.kfree_sensitive(memory) };
    /// ```
    #[doc(alias = "kzfree")]
    #[track_caller]
    pub unsafe fn kfree_sensitive(&self, memory: NonNull<u8>) {
        // SAFETY: the caller's debt 1.
        let bytes = unsafe { self.ksize(memory) };
        // Whole words: all sizes are multiples of one, and so are the addresses.
        for word in 0..bytes / size_of::<usize>() {
            // SAFETY: inside of the block.
            let word = unsafe { memory.cast::<usize>().add(word) };
            // SAFETY: the block is the caller's, who gives it up; volatile, for nobody reads it again.
            unsafe { word.write_volatile(0) };
        }
        // ORDERING: the compiler's, of the stores before what the free does.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the caller's debts.
        unsafe { self.kfree(memory) };
    }
}
