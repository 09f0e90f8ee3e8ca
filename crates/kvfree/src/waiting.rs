//! What waits for its grace period in one slot (or among the orphans), and the stock of empty blocks.
//!
//! # State
//! | field | holds | cookie |
//! |---|---|---|
//! | `open[kind]` | the block being filled, or null | refreshed at each push, or late: see [`block`](crate::block) |
//! | `line` | full blocks of the allocator's objects, oldest first | each block's own |
//! | `plain` | full blocks of foreign objects without drop glue, oldest first | each block's own |
//! | `glue` | full blocks of objects with drop glue, oldest first | each block's own |
//! | `heads` | objects linked by their embedded heads, for want of a block | `heads_cookie`, refreshed at each push |
//! | `sealed` | such objects, sealed together | `sealed_cookie` |
//! | `stock` | empty blocks, at most [`STOCK`] | – |
//! | `…born` (and a block's) | the monitor's round in which the oldest came, for reports | – |
//! | `account` | the bytes of all of it but the stock, and what was charged for them | – |
//!
//! # Invariants
//! - I1. A batch is filled only before its cookie is taken for the last time: nothing is added to the line or to
//!   `sealed` while its cookie runs (T1). Where lists are joined, the later cookie is that of both.
//! - I2. Destructors and functions (`glue`, `heads`) are taken out by those only who may run foreign code: the monitor,
//!   a barrier, an embedder's tick, and of `glue` some by who [helps](crate::batched); never by a `retire` that may be called anywhere.
//! - I3. Everything here was given up by its owner and is freed by whoever takes it out, once.

mod ripe;

use crate::block::{Block, Kind, Line, NR_KINDS};
use crate::budget::Account;
use crate::glue::Glue;
use core::ptr::{self, NonNull};
use pagealloc::{Attempt, Order, PageAlloc, PageReq};
use rcu_core::cpu::ZeroInit;
use rcu_core::{CbList, Cookie, GracePeriod, Head};

/// Empty blocks that a slot keeps (K6).
#[doc(alias = "rcu_min_cached_objs")]
pub(crate) const STOCK: usize = 5;

/// What waits in one place.
#[derive(Debug)]
pub(crate) struct Waiting {
    open: [*mut Block; NR_KINDS],
    line: Line,
    plain: Line,
    glue: Line,
    stock: Line,
    heads: CbList,
    sealed: CbList,
    sealed_cookie: Cookie,
    /// Not before this are `heads` ripe.
    heads_cookie: Cookie,
    /// In which of the monitor's rounds the oldest of `heads` and of `sealed` came.
    heads_born: u32,
    sealed_born: u32,
    /// Bytes of everything that waits here.
    account: Account,
    /// Of these, the bytes of `heads` and of `sealed`.
    heads_bytes: usize,
    sealed_bytes: usize,
    /// How many objects were ever linked by their heads here.
    by_head: usize,
    /// Bytes that have left, and blocks that went in line, ever (they wrap).
    left_bytes: usize,
    lined_up: usize,
    /// Bytes that had come, and blocks that had gone in line, when a grace period was last asked for.
    asked_bytes: usize,
    asked_blocks: usize,
    /// No block was to be had since the monitor last came by.
    starved: bool,
}

// SAFETY: null blocks, empty lines and lists, a cookie that means nothing while `sealed` is empty, zero and false.
unsafe impl ZeroInit for Waiting {}
// SAFETY: what is in here is owned, and may be freed by any thread.
unsafe impl Send for Waiting {}

/// One object on its way in.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) object: NonNull<u8>,
    pub(crate) glue: Option<Glue>,
    pub(crate) kind: Kind,
    pub(crate) bytes: usize,
}

/// What a push has led to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pushed {
    /// There was nothing in this channel before: somebody has to watch it.
    pub(crate) first: bool,
    /// A block went in line.
    pub(crate) sealed: bool,
    /// Bytes to be charged.
    pub(crate) charge: usize,
}

/// What has been taken out, to be freed outside of every lock.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) blocks: Line,
    pub(crate) heads: CbList,
    /// Bytes of the objects linked by their heads, and when the oldest came.
    heads_bytes: usize,
    heads_born: u32,
    /// What was charged for all of it.
    pub(crate) charged: usize,
    /// When all of it may be freed; for batches taken whether ripe or not.
    pub(crate) cookie: Cookie,
}

impl Batch {
    pub(crate) const fn new() -> Self {
        Self {
            blocks: Line::new(),
            heads: CbList::new(),
            heads_bytes: 0,
            heads_born: 0,
            charged: 0,
            cookie: Cookie::COMPLETED,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.heads.is_empty()
    }

    /// Adds another batch.
    pub(crate) fn append(&mut self, other: Self) {
        if self.heads.is_empty() {
            self.heads_born = other.heads_born;
        } else if !other.heads.is_empty() {
            self.heads_born = older(self.heads_born, other.heads_born);
        }
        self.blocks.append(other.blocks);
        self.heads.append(other.heads);
        self.heads_bytes += other.heads_bytes;
        self.charged += other.charged;
        self.cookie = later(self.cookie, other.cookie);
    }
}

impl Waiting {
    pub(crate) const fn new() -> Self {
        Self {
            open: [ptr::null_mut(); NR_KINDS],
            line: Line::new(),
            plain: Line::new(),
            glue: Line::new(),
            stock: Line::new(),
            heads: CbList::new(),
            sealed: CbList::new(),
            sealed_cookie: Cookie::COMPLETED,
            heads_cookie: Cookie::COMPLETED,
            heads_born: 0,
            sealed_born: 0,
            account: Account::new(),
            heads_bytes: 0,
            sealed_bytes: 0,
            by_head: 0,
            left_bytes: 0,
            lined_up: 0,
            asked_bytes: 0,
            asked_blocks: 0,
            starved: false,
        }
    }

    /// Adds an object to its channel's block, with a fresh cookie. If that is full, the next one comes from the stock,
    /// or is `spare`, or a page of the slot's own list; `None` if there is none of these.
    ///
    /// A block that holds `seal_bytes` is full, however few objects those are. `now` is the monitor's round, which a fresh block notes.
    pub(crate) fn push(
        &mut self,
        entry: Entry,
        seal_bytes: usize,
        gp: &impl GracePeriod,
        pages: &impl PageAlloc,
        spare: &mut Option<NonNull<u8>>,
        now: impl FnOnce() -> u32,
    ) -> Option<Pushed> {
        let mut pushed = Pushed::default();
        let open = self.open[entry.kind as usize];
        // SAFETY: an open block is owned by this slot.
        let block = match unsafe { open.as_mut() } {
            Some(block) if block.has_room(entry.glue) => block,
            full => {
                pushed.first = full.is_none();
                let mut fresh = self.fresh_block(entry.kind, pages, spare, now)?;
                if let Some(full) = NonNull::new(open) {
                    self.line_up(full, gp);
                    pushed.sealed = true;
                }
                self.open[entry.kind as usize] = fresh.as_ptr();
                // SAFETY: fresh, and owned by this slot now.
                unsafe { fresh.as_mut() }
            }
        };
        block.push(entry.object, entry.glue, entry.bytes, gp.snapshot());
        pushed.charge = self.account.add(entry.bytes);
        if block.bytes() >= seal_bytes {
            let heavy = NonNull::from(block);
            self.open[entry.kind as usize] = ptr::null_mut();
            self.line_up(heavy, gp);
            pushed.sealed = true;
        }
        Some(pushed)
    }

    /// Adds one of many objects to its channel's block, if that needs no cookie, no other block and no charge.
    #[inline(always)]
    pub(crate) fn push_hit(&mut self, entry: Entry, seal_bytes: usize) -> bool {
        if !self.account.has_room(entry.bytes) {
            return false;
        }
        let word = entry.glue.map_or(ptr::null_mut(), Glue::word);
        // SAFETY: an open block is owned by this slot.
        let Some(block) = (unsafe { self.open[entry.kind as usize].as_mut() }) else {
            return false;
        };
        let is_in = block.push_hit(entry.object, word, entry.bytes, seal_bytes);
        if is_in {
            self.account.held += entry.bytes;
        }
        is_in
    }

    /// Puts a block that was open in line, with a cookie for all that is in it (I1).
    fn line_up(&mut self, mut block: NonNull<Block>, gp: &impl GracePeriod) {
        // SAFETY: the block was open, and is owned by this slot.
        let b = unsafe { block.as_mut() };
        b.stamp(gp);
        self.lined_up = self.lined_up.wrapping_add(1);
        self.line_of(b.kind()).push(block);
    }

    const fn line_of(&mut self, kind: Kind) -> &mut Line {
        match kind {
            Kind::Glue | Kind::Typed => &mut self.glue,
            Kind::Plain => &mut self.plain,
            Kind::Small | Kind::Large => &mut self.line,
        }
    }

    fn fresh_block(
        &mut self,
        kind: Kind,
        pages: &impl PageAlloc,
        spare: &mut Option<NonNull<u8>>,
        now: impl FnOnce() -> u32,
    ) -> Option<NonNull<Block>> {
        let page = match self.stock.pop() {
            Some(block) => block.cast(),
            None => match spare.take() {
                Some(page) => page,
                None => {
                    let req = PageReq::new(Order::ZERO).attempt(Attempt::PcpOnly);
                    let page = pages.alloc(req);
                    self.starved |= page.is_err();
                    page.ok()?
                }
            },
        };
        // SAFETY: a page of our own, from the stock or just allocated.
        let mut block = unsafe { Block::init(page, kind) };
        // SAFETY: made just now.
        unsafe { block.as_mut() }.born = now();
        Some(block)
    }

    /// Links an object of so many bytes by its own head; the head says how it is to be freed.
    ///
    /// # Safety
    /// 1. `head` is on no list and valid until popped.
    pub(crate) unsafe fn push_head(
        &mut self,
        head: NonNull<Head>,
        bytes: usize,
        gp: &impl GracePeriod,
        now: impl FnOnce() -> u32,
    ) -> Pushed {
        let first = self.heads.is_empty() && self.sealed.is_empty();
        if self.heads.is_empty() {
            self.heads_born = now();
        }
        self.heads_cookie = gp.snapshot();
        self.by_head = self.by_head.wrapping_add(1);
        // SAFETY: the caller's debt 1.
        unsafe { self.heads.push_back(head) };
        self.heads_bytes += bytes;
        Pushed {
            first,
            sealed: false,
            charge: self.account.add(bytes),
        }
    }

    /// Links objects by their heads, oldest first, all of whose `bytes` are charged, and which are ripe at `cookie`.
    pub(crate) fn push_heads(&mut self, heads: CbList, bytes: usize, cookie: Cookie, born: u32) {
        self.append_heads(heads, cookie, born);
        self.heads_bytes += bytes;
        self.account.put(bytes, bytes);
    }

    fn append_heads(&mut self, heads: CbList, cookie: Cookie, born: u32) {
        if heads.is_empty() {
            return;
        }
        if self.heads.is_empty() {
            self.heads_born = born;
            self.heads_cookie = cookie;
        } else {
            self.heads_born = older(self.heads_born, born);
            self.heads_cookie = later(self.heads_cookie, cookie);
        }
        self.heads.append(heads);
    }

    /// How many objects were ever linked by their heads here.
    pub(crate) const fn by_head(&self) -> usize {
        self.by_head
    }

    /// How many objects linked by their heads are not sealed yet.
    pub(crate) const fn nr_heads(&self) -> usize {
        self.heads.len()
    }

    /// Takes a batch back that [`Self::take_all`] gave.
    pub(crate) fn put_back(&mut self, batch: Batch) {
        let (mut blocks, heads) = (batch.blocks, batch.heads);
        let (cookie, born) = (batch.cookie, batch.heads_born);
        let mut bytes = batch.heads_bytes;
        while let Some(block) = blocks.pop() {
            // SAFETY: a block of a batch is valid and owned by it.
            bytes += unsafe { block.as_ref() }.bytes();
            // SAFETY: as above.
            let kind = unsafe { block.as_ref() }.kind();
            self.line_of(kind).push(block);
        }
        self.append_heads(heads, cookie, born);
        self.heads_bytes += batch.heads_bytes;
        self.account.put(bytes, batch.charged);
    }

    /// Whether so many blocks went in line, or so many bytes came, since this last said so: time to ask for a grace period.
    pub(crate) const fn should_ask(&mut self, blocks: usize, bytes: usize) -> bool {
        let came = self.account.held.wrapping_add(self.left_bytes);
        let is_time = self.lined_up.wrapping_sub(self.asked_blocks) >= blocks
            || came.wrapping_sub(self.asked_bytes) >= bytes;
        if is_time {
            self.asked_blocks = self.lined_up;
            self.asked_bytes = came;
        }
        is_time
    }

    /// Counts bytes out; returns what was charged for them.
    fn leave(&mut self, bytes: usize) -> usize {
        self.left_bytes = self.left_bytes.wrapping_add(bytes);
        self.account.take(bytes)
    }

    const fn lines(&self) -> [&Line; 3] {
        [&self.line, &self.plain, &self.glue]
    }

    /// Whether nothing waits here.
    pub(crate) fn is_empty(&self) -> bool {
        self.lines().into_iter().all(Line::is_empty)
            && self.heads.is_empty()
            && self.sealed.is_empty()
            && self.open.iter().all(|b| b.is_null())
    }

    /// For how many of the monitor's rounds the oldest of what waits here has been here, at most.
    pub(crate) fn age(&self, now: u32) -> u32 {
        let line = self.lines().into_iter().filter_map(Line::first);
        // SAFETY: an open block is owned by this slot.
        let open = (self.open.iter()).filter_map(|b| unsafe { b.as_ref() });
        let blocks = line.chain(open).map(|block| block.born);
        let sealed = (!self.sealed.is_empty()).then_some(self.sealed_born);
        let heads = (!self.heads.is_empty()).then_some(self.heads_born);
        let births = blocks.chain(sealed).chain(heads);
        births.map(|born| now.wrapping_sub(born)).max().unwrap_or(0)
    }

    /// Empty blocks.
    pub(crate) const fn nr_stock(&self) -> usize {
        self.stock.len()
    }

    /// Bytes of everything that waits here.
    pub(crate) const fn bytes(&self) -> usize {
        self.account.held
    }

    /// Of these, what was charged for them.
    pub(crate) const fn charged(&self) -> usize {
        self.account.charged()
    }

    /// How many objects wait here. Walks the line.
    pub(crate) fn nr_objects(&self) -> usize {
        let mut n = self.heads.len() + self.sealed.len();
        for line in self.lines() {
            n += line.iter().map(Block::nr_objects).sum::<usize>();
        }
        for open in self.open {
            // SAFETY: an open block is owned by this slot.
            n += unsafe { open.as_ref() }.map_or(0, Block::nr_objects);
        }
        n
    }

    pub(crate) const fn blocks_in_line(&self) -> usize {
        self.line.len() + self.plain.len() + self.glue.len()
    }

    /// Puts the open blocks in line as they are, and seals the heads if none are sealed (I1).
    pub(crate) fn seal(&mut self, gp: &impl GracePeriod) {
        for kind in [
            Kind::Small,
            Kind::Large,
            Kind::Glue,
            Kind::Typed,
            Kind::Plain,
        ] {
            let open = core::mem::replace(&mut self.open[kind as usize], ptr::null_mut());
            if let Some(block) = NonNull::new(open) {
                self.line_up(block, gp);
            }
        }
        self.seal_heads();
    }

    fn seal_heads(&mut self) {
        if self.sealed.is_empty() && !self.heads.is_empty() {
            self.sealed = self.heads.take();
            self.sealed_bytes = core::mem::take(&mut self.heads_bytes);
            self.sealed_cookie = self.heads_cookie;
            self.sealed_born = self.heads_born;
        }
    }

    /// Takes over what waits in `other`, whose slot is no more.
    pub(crate) fn merge(&mut self, other: &mut Self, gp: &impl GracePeriod) {
        other.seal(gp);
        self.line.append(other.line.take());
        self.plain.append(other.plain.take());
        self.glue.append(other.glue.take());
        let (cookie, born) = (other.sealed_cookie, other.sealed_born);
        self.append_heads(other.sealed.take(), cookie, born);
        let (cookie, born) = (other.heads_cookie, other.heads_born);
        self.append_heads(other.heads.take(), cookie, born);
        self.heads_bytes +=
            core::mem::take(&mut other.sealed_bytes) + core::mem::take(&mut other.heads_bytes);
        let held = other.account.held;
        self.account.put(held, other.leave(held));
        self.by_head = self
            .by_head
            .wrapping_add(core::mem::take(&mut other.by_head));
    }

    /// Whether something in line waits for a grace period that nobody has asked for.
    pub(crate) fn wants_grace_period(&self, gp: &impl GracePeriod) -> bool {
        let unripe = |line: &Line| line.first().is_some_and(|b| !gp.poll(b.cookie));
        self.lines().into_iter().any(unripe)
            || (!self.sealed.is_empty() && !gp.poll(self.sealed_cookie))
    }

    /// Keeps empty blocks until the stock has `most`.
    pub(crate) fn restock(&mut self, empty: &mut Line, most: usize) {
        while self.stock.len() < most
            && let Some(block) = empty.pop()
        {
            self.stock.push(block);
        }
    }

    /// Whether no block was to be had since the last time that was forgotten.
    pub(crate) const fn is_starved(&self) -> bool {
        self.starved
    }

    /// The same, and forgets it.
    pub(crate) const fn take_starved(&mut self) -> bool {
        core::mem::replace(&mut self.starved, false)
    }

    /// Gives the stock up.
    pub(crate) const fn take_stock(&mut self) -> Line {
        self.stock.take()
    }
}

/// Of two cookies, the one that is reached last.
const fn later(one: Cookie, other: Cookie) -> Cookie {
    if one.is_no_later_than(other) {
        other
    } else {
        one
    }
}

/// Of two rounds, the earlier one.
const fn older(one: u32, other: u32) -> u32 {
    if one.wrapping_sub(other).cast_signed() < 0 {
        one
    } else {
        other
    }
}
