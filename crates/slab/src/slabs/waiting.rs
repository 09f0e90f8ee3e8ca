//! Slabs that were given up and wait for their readers (I4, I5 of the slabs).

use super::{Dying, EMPTY, HELD, Holds, Shape, Slab, Slabs, WAITING};
use core::ptr::NonNull;
use rcu_core::{Cookie, GracePeriod};

impl Slabs {
    /// Puts an empty slab that is on no list among the dying, or where it waits for its readers.
    pub(super) fn give_up(&mut self, slab: NonNull<Slab>, shape: &Shape, dying: &mut Dying) {
        self.nr_slabs -= 1;
        if shape.is_stable() {
            self.link(slab, WAITING, shape);
            self.nr_unsealed += 1;
        } else {
            dying.push(slab);
        }
    }

    /// Makes a slab that was given up, and has its pages still, one of the empty ones: the youngest, so that the eldest ripen.
    pub(super) fn revive(&mut self, shape: &Shape) -> Option<NonNull<Slab>> {
        let slab = self.lists[usize::from(HELD)].or(self.lists[usize::from(WAITING)])?;
        if self.slab(slab).list == WAITING {
            // The unsealed ones come first (I4).
            self.nr_unsealed = self.nr_unsealed.saturating_sub(1);
        }
        self.unlink(slab);
        self.nr_slabs += 1;
        self.link(slab, EMPTY, shape);
        Some(slab)
    }

    /// Gives a cookie to the slabs that came to wait since the last time, if any did, and says so.
    ///
    /// Whatever brought their objects home was under this lock, so before the cookie.
    pub(crate) fn seal<G: GracePeriod>(&mut self, gp: &G) -> bool {
        if self.nr_unsealed == 0 {
            return false;
        }
        let cookie = gp.snapshot();
        let mut next = self.lists[usize::from(WAITING)];
        for _ in 0..self.nr_unsealed {
            let Some(slab) = next else {
                break;
            };
            let this = self.slab(slab);
            this.cookie = cookie;
            next = this.next;
        }
        // INVARIANT: I4.
        self.nr_unasked += self.nr_unsealed;
        self.nr_unsealed = 0;
        true
    }

    /// Whether it is time to ask for a grace period, at `threshold` slabs; then counts as asked.
    pub(crate) fn should_ask(&mut self, threshold: usize) -> bool {
        let ask = self.nr_waiting > 0 && self.nr_unasked >= threshold;
        if ask {
            self.nr_unasked = 0;
        }
        ask
    }

    /// The cookie of the youngest sealed slab, which is done last.
    pub(crate) fn last_cookie(&mut self) -> Option<Cookie> {
        debug_assert_eq!(self.nr_unsealed, 0, "I4: seal first");
        let youngest = self.lists[usize::from(WAITING)]?;
        Some(self.slab(youngest).cookie)
    }

    /// Puts the slabs whose readers are gone among the dying, or where they are held; and says how many wait still.
    pub(crate) fn take_ripe<G: GracePeriod>(
        &mut self,
        shape: &Shape,
        gp: &G,
        dying: &mut Dying,
    ) -> usize {
        while self.nr_waiting > self.nr_unsealed
            && let Some(eldest) = self.eldest
        {
            let cookie = self.slab(eldest).cookie;
            if !gp.poll(cookie) {
                break;
            }
            self.unlink(eldest);
            // SAFETY: a slab of the lists is the first field of its descriptor.
            if unsafe { Holds::of(eldest) }.any() {
                self.link(eldest, HELD, shape);
            } else {
                dying.push(eldest);
            }
        }
        self.nr_waiting
    }

    /// Puts the slabs that nobody holds any more among the dying.
    pub(crate) fn take_released(&mut self, dying: &mut Dying) {
        let mut next = self.lists[usize::from(HELD)];
        while let Some(slab) = next {
            next = self.slab(slab).next;
            // SAFETY: a slab of the lists is the first field of its descriptor.
            if !unsafe { Holds::of(slab) }.any() {
                self.unlink(slab);
                dying.push(slab);
            }
        }
    }

    /// Puts every slab that waits or is held among the dying: the cache has no readers any more, and ends.
    pub(crate) fn take_kept(&mut self, dying: &mut Dying) {
        for list in [WAITING, HELD] {
            while let Some(slab) = self.lists[usize::from(list)] {
                self.unlink(slab);
                dying.push(slab);
            }
        }
        self.nr_unsealed = 0;
    }
}
