//! Torture of the object allocator: what is retired goes to its caches' own sheaves.

use super::Injury;
use super::field::{Field, Retire, wake_ward};
use super::ground::Ground;
use super::worker;
use crate::Running;
use crate::books::Count;
use crate::random::Random;
use crate::stage::{Role, Stage};
use std::ptr::NonNull;

const ADDRESSES: usize = 128 << 20;

struct Sheaves;

impl Retire for Sheaves {
    fn retire(&self, field: &Field, object: NonNull<u8>, _random: &mut Random, role: &mut Role) {
        // SAFETY: it came from there, and was unlinked.
        if unsafe { field.kmalloc.retire(object) }.is_err() {
            role.tally.one(Count::Rejected);
            field.free_after_grace_period(object, role);
        }
    }

    fn retire_again(&self, field: &Field, object: NonNull<u8>) {
        // SAFETY: it came from there; that it may be given up is what is broken.
        let _ = unsafe { field.kmalloc.retire(object) };
    }

    fn tick(&self, field: &Field, _role: &Role) {
        field.kmalloc.reap();
    }

    fn barrier(&self, field: &Field) {
        field.kmalloc.barrier();
    }
}

/// Starts the torture of caches.
pub(crate) fn start(stage: &'static Stage, injury: Injury) -> Result<Running, String> {
    wake_ward();
    let ground = Ground::new(stage, ADDRESSES, 1, injury)?;
    let field = Field::new(ground, |_, _| Ok(Box::new(Sheaves)))?;
    Ok(worker::start(field, stage, 500))
}
