//! Torture of the batching front end, over sheaves or without, within a budget or not.

use super::Injury;
use super::body::Body;
use super::field::{Field, Kernel, Retire, Ward, drop_object, retried, wake_ward};
use super::ground::{Ground, Pages};
use super::worker;
use crate::Running;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::{Role, Stage};
use kvfree::{Config, DeferFree, DropFn, Kvfree, NoSheaves, Objects};
use rcu_core::cpu::Threads;
use rcu_core::{Callback, Head, Rcu};
use std::ptr::NonNull;

/// What the front end is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Front {
    pub(crate) sheaves: bool,
    /// Bytes that may wait; without such a limit, objects are also retired by those who can neither wait nor fail.
    pub(crate) limit: Option<usize>,
    /// Addresses that there are pages for, and how often in four times the source refuses to grow.
    pub(crate) addresses: usize,
    pub(crate) refuses: usize,
    /// Objects that a worker has at the most.
    pub(crate) most: usize,
}

/// What a place may hold beyond what it has charged, and about how many places there are.
const CHUNK: usize = 64 << 10;
const PLACES: usize = 24;

struct Batches<O: Objects> {
    front: Kvfree<Threads, Pages, Ward, O>,
    limited: bool,
}

/// # Safety
/// 1. `head` is of an object of the general allocator's, whose time has come.
unsafe fn drop_by_head(head: NonNull<Head>) {
    // SAFETY: 1.
    let object = unsafe { Body::HEAD.object(head) };
    // SAFETY: 1.
    unsafe { drop_object(object) };
}

impl<O: Objects + Send + Sync + 'static> Retire for Batches<O> {
    fn retire(&self, field: &Field, object: NonNull<u8>, random: &mut Random, role: &mut Role) {
        let front = &self.front;
        let head = Body::head(object);
        // SAFETY: the caller's; readers that have it look at it only.
        let size = unsafe { Body::of(object) }.size();
        let how = random.below(8);
        match how {
            // SAFETY: it came from the general allocator, was unlinked, and has a head.
            0..3 if !self.limited => unsafe { front.retire(head, Body::HEAD) },
            // SAFETY: as above; the function frees it.
            3 if !self.limited => unsafe {
                front.retire_head(head, Callback::Run(drop_by_head), size);
            },
            // SAFETY: as above.
            4 if !self.limited => unsafe { Ward.call(head, Callback::Free(Body::HEAD)) },
            5 => {
                // SAFETY: as above; the function frees it.
                unsafe { front.retire_with_mightsleep(object, drop_object as DropFn, size) };
            }
            6 => {
                // SAFETY: as above; still the caller's if it comes back.
                if unsafe { front.try_retire(object) }.is_err() {
                    role.tally.one(Count::Rejected);
                    field.free_after_grace_period(object, role);
                }
            }
            // SAFETY: as above.
            _ => unsafe { front.retire_mightsleep(object) },
        }
    }

    fn retire_again(&self, _field: &Field, object: NonNull<u8>) {
        // SAFETY: it came from there; that it may be given up is what is broken.
        unsafe { self.front.retire_mightsleep(object) };
    }

    fn tick(&self, _field: &Field, role: &Role) {
        self.front.tick();
        if self.limited {
            let stats = self.front.stats();
            let may = stats.bytes_limit + PLACES * CHUNK;
            let fits = stats.overdrawn > 0 || stats.bytes_charged <= may;
            role.books()
                .check(fits, Fault::Budget, || format!("{stats}"));
        }
    }

    fn barrier(&self, _field: &Field) {
        self.front.barrier();
    }
}

fn batches<O: Objects + Send + Sync + 'static>(
    ground: &Ground,
    objects: impl Fn() -> O,
    front: Front,
) -> Result<Box<dyn Retire>, String> {
    let config = || match front.limit {
        Some(limit) => Config::new()
            .hard_limit(limit)
            .soft_limit(limit / 4)
            .slot_limit(limit / 8)
            .ask_after_bytes(limit / 16),
        None => Config::new().ask_after_blocks(2),
    };
    let front_end = retried(|| {
        // SAFETY: the objects wait for `Ward`; everything borrowed is leaked, and taken back after the front end.
        let made = unsafe { Kvfree::new(Threads, ground.zone, Ward, objects(), config()) };
        made.map_err(|error| error.to_string())
    })?;
    Ok(Box::new(Batches {
        front: front_end,
        limited: front.limit.is_some(),
    }))
}

/// Starts the torture of a front end.
pub(crate) fn start(
    stage: &'static Stage,
    front: Front,
    injury: Injury,
) -> Result<Running, String> {
    wake_ward();
    let ground = Ground::new(stage, front.addresses, front.refuses, injury)?;
    let retire = |ground: &Ground, kernel: &'static Kernel| {
        if front.sheaves {
            batches(ground, || kernel, front)
        } else {
            batches(ground, || NoSheaves(kernel), front)
        }
    };
    let field = Field::new(ground, retire)?;
    Ok(worker::start(field, stage, front.most))
}
