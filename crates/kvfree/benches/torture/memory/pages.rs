//! Torture of the page allocator.

use super::Injury;
use super::body::{Body, LEAST};
use super::ground::Ground;
use crate::Running;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::{Play, Role, Stage};
use pagealloc::{Attempt, Order, PageAlloc, PageReq};
use serde_json::json;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};
use std::thread;

const WORKERS: usize = 4;
const ADDRESSES: usize = 96 << 20;
/// Blocks that one worker has at the most.
const HELD: usize = 300;

/// A block that is out.
#[derive(Clone, Copy)]
struct Block {
    at: NonNull<u8>,
    order: Order,
    life: usize,
}

// SAFETY: whoever has it owns the block.
unsafe impl Send for Block {}

struct Field {
    ground: Ground,
    mail: Mutex<Vec<Block>>,
}

impl Field {
    fn alloc(&self, owner: usize, random: &mut Random, role: &mut Role) -> Option<Block> {
        let order = random.pick(&[0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 9]);
        let order = Order::new(order)?;
        let attempt = random.pick(&[
            Attempt::PcpOnly,
            Attempt::TryLock,
            Attempt::NoWait,
            Attempt::MayGrow,
        ]);
        let zeroed = random.one_in(4);
        let req = PageReq::new(order).attempt(attempt);
        let req = if zeroed { req.zeroed() } else { req };
        match self.ground.zone.alloc(req) {
            Ok(at) => {
                role.tally.one(Count::Allocs);
                if zeroed {
                    // SAFETY: the block is ours, and reads as zeroes.
                    let words = unsafe { at.cast::<[usize; LEAST / 8]>().read() };
                    let books = role.books();
                    books.check(words == [0; LEAST / 8], Fault::Content, || {
                        format!("{at:p} is not zero: {words:x?}")
                    });
                }
                Some(self.take_in(at, order, owner, role))
            }
            Err(_) => {
                role.tally.one(Count::Refused);
                None
            }
        }
    }

    /// Marks a block that was just handed out, every page of it.
    fn take_in(&self, at: NonNull<u8>, order: Order, owner: usize, role: &mut Role) -> Block {
        let life = self.ground.next_life();
        for page in Self::pages(at, order) {
            self.ground.shadow.hand_out(page, role.books(), |_| false);
            // SAFETY: a page of ours.
            unsafe { Body::write(page, pagealloc::PAGE_SIZE, owner, life) };
        }
        Block { at, order, life }
    }

    fn pages(at: NonNull<u8>, order: Order) -> impl Iterator<Item = NonNull<u8>> {
        let page = move |n| {
            // SAFETY: inside the block.
            unsafe { at.add(n * pagealloc::PAGE_SIZE) }
        };
        (0..order.pages()).map(page)
    }

    /// Looks at a block, and puts it down.
    fn put_down(&self, block: Block, role: &Role) {
        for page in Self::pages(block.at, block.order) {
            // SAFETY: a page of the caller's.
            let body = unsafe { Body::of(page) };
            let life = body.check(role.books(), "when freed");
            let (is, was) = (life, block.life);
            role.books().check(is == was, Fault::Owner, || {
                format!("{page:p} is in life {is}, and was in {was}")
            });
            body.bury(role.books());
            self.ground.shadow.free(page);
        }
    }

    fn free(&self, block: Block, random: &mut Random, role: &mut Role) {
        let zone = self.ground.zone;
        let Block { at, order, .. } = block;
        role.tally.one(Count::Frees);
        if self.ground.injures(Injury::Early, role, random) {
            // SAFETY: none: the block is still used, on purpose.
            unsafe { zone.free(at, order) };
            for _ in 0..64 {
                thread::yield_now();
                self.put_down_early(block, role);
            }
            return;
        }
        if self.ground.injures(Injury::Missing, role, random) {
            return;
        }
        self.put_down(block, role);
        let attempt = random.pick(&[Attempt::TryLock, Attempt::NoWait, Attempt::MayGrow]);
        if self.ground.injures(Injury::Wrong, role, random) {
            // SAFETY: none: it is another order, on purpose.
            unsafe { zone.free(at, Order::new(order.get() as u8 + 1).unwrap_or(Order::ZERO)) };
            return;
        }
        // SAFETY: the block came from this zone with this order, and was put down.
        unsafe { zone.free_at(at, order, attempt) };
        if self.ground.injures(Injury::Double, role, random) {
            // SAFETY: none: once too often, on purpose.
            unsafe { zone.free(at, order) };
        }
    }

    /// Somebody uses a block that it has freed.
    fn put_down_early(&self, block: Block, role: &Role) {
        // SAFETY: none: the memory may be anybody's, on purpose; it stays mapped.
        let body = unsafe { Body::of(block.at) };
        let life = body.check(role.books(), "after it was freed");
        role.books().check(life == block.life, Fault::Owner, || {
            format!("{:p} is in life {life}", block.at)
        });
    }

    fn bulk(&self, owner: usize, random: &mut Random, role: &mut Role) {
        let Some(order) = Order::new(random.below(4) as u8) else {
            return;
        };
        let mut places = [MaybeUninit::uninit(); 100];
        let wanted = random.below(places.len());
        let zone = self.ground.zone;
        let got = zone.alloc_bulk(PageReq::new(order), &mut places[..wanted]);
        role.tally.one(Count::Bulks);
        role.tally.add(Count::Allocs, got as u64);
        let mut blocks = Vec::with_capacity(got);
        for place in &places[..got] {
            // SAFETY: filled from the front.
            let at = unsafe { place.assume_init() };
            blocks.push(self.take_in(at, order, owner, role));
        }
        for block in &blocks {
            self.put_down(*block, role);
        }
        role.tally.add(Count::Frees, got as u64);
        let blocks: Vec<NonNull<u8>> = blocks.iter().map(|block| block.at).collect();
        // SAFETY: the blocks came from this zone with this order, and were put down.
        unsafe { zone.free_bulk(&blocks, order) };
    }

    fn mail(&self) -> std::sync::MutexGuard<'_, Vec<Block>> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    field: &'static Field,
    held: Vec<Block>,
}

impl Worker {
    fn free_all(&mut self, role: &mut Role) {
        let mut random = Random::of(0, "rest", 0, 0);
        while let Some(block) = self.held.pop() {
            self.field.free(block, &mut random, role);
        }
        let mail: Vec<Block> = self.field.mail().drain(..).collect();
        for block in mail {
            self.field.free(block, &mut random, role);
        }
    }
}

impl Play for Worker {
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        let field = self.field;
        let owner = role.index + 1;
        for _ in 0..16 {
            match random.below(16) {
                0..7 => {
                    if let Some(block) = field.alloc(owner, random, role) {
                        self.held.push(block);
                    }
                }
                7..13 => {
                    if !self.held.is_empty() {
                        let block = self.held.swap_remove(random.below(self.held.len()));
                        field.free(block, random, role);
                    }
                }
                13 => field.mail().extend(self.held.pop()),
                14 => {
                    let block = field.mail().pop();
                    if let Some(block) = block {
                        field.free(block, random, role);
                    }
                }
                _ => field.bulk(owner, random, role),
            }
            if self.held.len() > HELD {
                self.free_all(role);
            }
        }
    }

    fn rest(&mut self, role: &mut Role) {
        self.free_all(role);
    }
}

/// Drains lists, gives memory back, and has threads come and go.
struct Keeper(&'static Field);

impl Play for Keeper {
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        let zone = self.0.ground.zone;
        match random.below(8) {
            0 => {
                zone.drain_all();
            }
            1 => {
                zone.trim();
            }
            2 => {
                let _ = zone.tick();
            }
            3 => {
                let _ = zone.stats();
            }
            _ => {
                let (field, seed) = (self.0, random.next());
                let (stage, index) = (role.stage, role.index);
                let guest = thread::spawn(move || {
                    let mut role = Role::guest(stage, index);
                    let mut random = Random::of(seed, "guest", 0, 0);
                    let blocks: Vec<Block> = (0..random.below(40))
                        .filter_map(|_| field.alloc(99, &mut random, &mut role))
                        .collect();
                    for block in blocks {
                        field.free(block, &mut random, &mut role);
                    }
                    role.leave();
                });
                // A panic in there is booked where it happens.
                let _ = guest.join();
                role.tally.one(Count::Threads);
            }
        }
        role.tally.one(Count::Shrinks);
        thread::sleep(std::time::Duration::from_micros(random.below(500) as u64));
    }

    fn rest(&mut self, _role: &mut Role) {}
}

/// Starts the torture of a zone.
pub(crate) fn start(stage: &'static Stage, injury: Injury) -> Result<Running, String> {
    let field = Box::new(Field {
        ground: Ground::new(stage, ADDRESSES, 2, injury)?,
        mail: Mutex::default(),
    });
    let field: &'static Field = Box::leak(field);
    let mut threads: Vec<_> = (0..WORKERS)
        .map(|n| {
            let held = Vec::new();
            stage.role("pages", n, Worker { field, held })
        })
        .collect();
    threads.push(stage.role("keeper", 0, Keeper(field)));
    let books = &stage.books;
    Ok(Running {
        threads,
        finish: Box::new(move || {
            // SAFETY: leaked above, and every thread that knew it has ended.
            let field = unsafe { Box::from_raw(std::ptr::from_ref(field).cast_mut()) };
            field.ground.leave();
        }),
        own: Box::new(move || {
            let stats = field.ground.zone.stats();
            json!({ "pages": stats.total_pages, "pages free": stats.free_pages })
        }),
        progress: Box::new(move || books.count(Count::Allocs)),
    })
}
