//! The bodies of `page_alloc_conformance!`. They panic where the allocator breaks a guarantee.

use crate::{AllocError, Attempt, Order, PAGE_SIZE, PageAlloc, PageReq, PageTag};
use core::mem::MaybeUninit;
use core::ptr::NonNull;

const LEVELS: [Attempt; 4] = [
    Attempt::PcpOnly,
    Attempt::TryLock,
    Attempt::NoWait,
    Attempt::MayGrow,
];

fn orders() -> impl Iterator<Item = Order> {
    (0..=10).map(Order::at)
}

/// A block that is out. It is filled with a pattern, which is checked when it goes back.
#[derive(Debug)]
pub struct Out {
    block: NonNull<u8>,
    order: Order,
}

// SAFETY: a block may be used and freed from any thread.
unsafe impl Send for Out {}

impl Out {
    /// Allocates a block; it must succeed.
    pub fn take(pages: &impl PageAlloc, order: Order) -> Self {
        Self::take_at(pages, PageReq::new(order))
    }

    /// Allocates what `req` says; it must succeed.
    pub fn take_at(pages: &impl PageAlloc, req: PageReq) -> Self {
        match Self::try_take(pages, req) {
            Ok(out) => out,
            Err(error) => panic!("no block for {req:?}: {error}"),
        }
    }

    /// Allocates what `req` says, if it succeeds.
    ///
    /// # Errors
    /// The allocator's.
    pub fn try_take(pages: &impl PageAlloc, req: PageReq) -> Result<Self, AllocError> {
        let block = pages.alloc(req)?;
        let order = req.order;
        assert!(
            block.as_ptr().addr().is_multiple_of(order.bytes()),
            "aligned"
        );
        assert_eq!(pages.order_of(block.as_ptr()), Some(order));
        assert_eq!(
            pages.tag(block.as_ptr()),
            Some(PageTag::NONE),
            "untagged when fresh"
        );
        let out = Self { block, order };
        if req.zero {
            assert!(out.words().all(|word| out.read(word) == 0), "zeroed");
        }
        out.mark();
        Ok(out)
    }

    /// Offsets of the words that carry the pattern: the first and the last of each page.
    fn words(&self) -> impl Iterator<Item = usize> + use<> {
        let pages = self.order.pages();
        (0..pages).flat_map(|page| [page * PAGE_SIZE, page * PAGE_SIZE + PAGE_SIZE - 8])
    }

    fn pattern(&self, offset: usize) -> u64 {
        !((self.block.as_ptr().addr() + offset) as u64) ^ self.order.get() as u64
    }

    fn read(&self, offset: usize) -> u64 {
        // SAFETY: inside the block.
        let word = unsafe { self.block.add(offset) }.cast::<u64>();
        // SAFETY: inside the block, which is ours, aligned, and written by `mark` or zeroed.
        unsafe { word.read() }
    }

    fn mark(&self) {
        for offset in self.words() {
            // SAFETY: inside the block.
            let word = unsafe { self.block.add(offset) }.cast::<u64>();
            // SAFETY: inside the block, which is ours, and aligned.
            unsafe { word.write(self.pattern(offset)) };
        }
    }

    fn check(&self) {
        for offset in self.words() {
            assert_eq!(self.read(offset), self.pattern(offset), "nobody else wrote");
        }
    }

    /// Checks the pattern and frees the block.
    pub fn give_back(self, pages: &impl PageAlloc) {
        self.give_back_at(pages, Attempt::NoWait);
    }

    /// The same, going as far as `attempt`.
    pub fn give_back_at(self, pages: &impl PageAlloc, attempt: Attempt) {
        self.check();
        // SAFETY: the block came from this allocator with this order, and `self` is gone.
        unsafe { pages.free_at(self.block, self.order, attempt) };
    }
}

/// Guarantee 1.
pub fn blocks_are_aligned_disjoint_and_whole(pages: &impl PageAlloc) {
    for order in orders() {
        let out: [Out; 3] = core::array::from_fn(|_| Out::take(pages, order));
        for (i, a) in out.iter().enumerate() {
            a.check();
            for b in &out[i + 1..] {
                let apart = a.block.as_ptr().addr().abs_diff(b.block.as_ptr().addr());
                assert!(apart >= order.bytes(), "disjoint");
            }
        }
        out.into_iter().for_each(|out| out.give_back(pages));
    }
}

/// What `PageReq::zero` asks for, from memory that was used before too.
pub fn zeroed_blocks_read_as_zeroes(pages: &impl PageAlloc) {
    for order in orders() {
        for _ in 0..3 {
            Out::take_at(pages, PageReq::new(order).zeroed()).give_back(pages);
        }
    }
}

/// Guarantee 2.
pub fn p16_free_never_fails_at_any_level(pages: &impl PageAlloc) {
    for order in orders() {
        for attempt in LEVELS {
            let out: [Out; 2] = core::array::from_fn(|_| Out::take(pages, order));
            out.into_iter()
                .for_each(|out| out.give_back_at(pages, attempt));
        }
    }
    // More than any list holds.
    let out: [Out; 600] = core::array::from_fn(|_| Out::take(pages, Order::ZERO));
    out.into_iter()
        .for_each(|out| out.give_back_at(pages, Attempt::PcpOnly));
    // Nothing is lost: the largest block can be had.
    Out::take(pages, Order::MAX).give_back(pages);
}

/// `alloc_bulk` and `free_bulk`.
pub fn p13_bulk_calls_are_many_single_calls(pages: &impl PageAlloc) {
    for order in [0, 1, 3, 5].map(Order::at) {
        let mut places = [MaybeUninit::uninit(); 100];
        let got = pages.alloc_bulk(PageReq::new(order).zeroed(), &mut places);
        assert_eq!(got, places.len());
        // SAFETY: all places were filled.
        let blocks = places.map(|place| unsafe { place.assume_init() });
        for &block in &blocks {
            assert_eq!(pages.order_of(block.as_ptr()), Some(order));
            let out = Out { block, order };
            assert!(out.words().all(|word| out.read(word) == 0), "zeroed");
            out.mark();
        }
        for &block in &blocks {
            Out { block, order }.check();
        }
        // SAFETY: the blocks came from this allocator with this order, and are not used any more.
        unsafe { pages.free_bulk(&blocks, order) };
    }
    assert_eq!(pages.alloc_bulk(PageReq::new(Order::ZERO), &mut []), 0);
}

/// `fill_bulk`: what is vacant gets a block, what is not stays as it is.
pub fn p13_only_vacant_places_are_filled(pages: &impl PageAlloc) {
    let order = Order::ZERO;
    let mut places = [None; 200];
    for place in places.iter_mut().step_by(3) {
        *place = Some(pages.alloc(PageReq::new(order)).expect("memory"));
    }
    let before = places;
    // As many as there are at hand, from the front.
    let req = PageReq::new(order).attempt(Attempt::PcpOnly);
    let filled = pages.fill_bulk(req, &mut places);
    assert_eq!(filled, places.iter().flatten().count());
    let vacant = places.iter().position(Option::is_none);
    let vacant = vacant.unwrap_or(places.len());
    assert_eq!(places[vacant..], before[vacant..], "from the front");
    // And the rest.
    assert_eq!(pages.fill_bulk(PageReq::new(order), &mut places), 200);
    assert_eq!(pages.fill_bulk(req, &mut places), 200, "nothing to do");
    assert_eq!(pages.fill_bulk(req, &mut []), 0);
    let out = places.map(|place| Out {
        block: place.expect("filled"),
        order,
    });
    for (i, out) in out.iter().enumerate() {
        assert!(before[i].is_none_or(|block| block == out.block));
        out.mark();
    }
    out.iter().for_each(Out::check);
    out.into_iter().for_each(|out| out.give_back(pages));
}

/// Guarantee 4.
pub fn tags_are_found_from_every_page(pages: &impl PageAlloc) {
    let mut owner = 0_u64;
    let owner = (&raw mut owner).cast();
    for order in orders() {
        for round in 1..3 {
            let out = Out::take(pages, order);
            let tag = PageTag { owner, tag: round };
            // SAFETY: the block is out and ours.
            unsafe { pages.set_tag(out.block, order, tag) };
            for offset in (0..order.bytes()).step_by(PAGE_SIZE / 2) {
                let address = out.block.as_ptr().wrapping_add(offset);
                assert_eq!(pages.tag(address), Some(tag));
            }
            assert_eq!(
                pages.order_of(out.block.as_ptr()),
                Some(order),
                "tagged or not"
            );
            out.give_back(pages);
            // `take` checks that no tag is left on the block that was just freed; the pages
            // inside are looked at by taking them one by one.
            let singles: [Out; 16] = core::array::from_fn(|_| Out::take(pages, Order::ZERO));
            singles.into_iter().for_each(|out| out.give_back(pages));
        }
    }
    let elsewhere = 0_u8;
    assert_eq!(pages.tag(&raw const elsewhere), None);
}

/// `order_of`.
pub fn orders_are_found_from_the_first_page(pages: &impl PageAlloc) {
    for order in orders() {
        let out = Out::take(pages, order);
        let block = out.block.as_ptr();
        assert_eq!(pages.order_of(block), Some(order));
        assert_eq!(pages.order_of(block.wrapping_add(8)), None);
        if order > Order::ZERO {
            assert_eq!(pages.order_of(block.wrapping_add(PAGE_SIZE)), None);
        }
        out.give_back(pages);
        assert_eq!(pages.order_of(block), None, "freed");
    }
}

/// `steps` allocations and frees of all orders at all levels, pseudo-random from `seed`.
pub fn churn(pages: &impl PageAlloc, seed: u64, steps: usize) {
    let mut out: [Option<Out>; 48] = [const { None }; 48];
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..steps {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let attempt = LEVELS[(random >> 8) as usize % 4];
        let place = &mut out[(random >> 16) as usize % 48];
        // Small blocks mostly.
        let order = Order::at(((random >> 32) as u32 | 1 << 6).trailing_zeros() as usize);
        let req = PageReq::new(order).attempt(attempt);
        let req = if random >> 63 == 1 { req.zeroed() } else { req };
        match place.take() {
            Some(out) => out.give_back_at(pages, attempt),
            None => *place = Out::try_take(pages, req).ok(),
        }
    }
    out.into_iter()
        .flatten()
        .for_each(|out| out.give_back(pages));
}
