//! Blocks between the zone and the lists, as runs of neighbours.
//!
//! Why not block by block: what the arena's lock must cover is a few list operations a run; marking the blocks'
//! heads, most of the work, is done before the lock is taken or after it is released. And a run of neighbours goes back
//! as a few large blocks that need not be merged one by one. Runs are filled in place: they are large to return.

#![deny(unsafe_code)]

use crate::api::{Mobility, Order};
use crate::broken::broken;
use crate::frames::Metas;
use crate::meta::State;
use crate::pcp::CHUNK;
use arrayvec::ArrayVec;
use core::ops::{Deref, DerefMut};

/// Neighbouring free pages in nobody's list, cut in blocks of one order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first page's number, counted from the start of the zone's span.
    pub first: u32,
    /// One past the last page.
    pub end: u32,
    /// They read as zeroes.
    pub zero: bool,
}

/// Runs of neighbours: at most one a block of a batch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Runs(ArrayVec<Run, CHUNK>);

impl Runs {
    /// The most blocks that move at once, and so the most runs.
    pub const CAPACITY: usize = CHUNK;

    /// No runs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no more fit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Adds a run.
    ///
    /// # Panics
    /// If there are [`Self::CAPACITY`] already.
    pub fn push(&mut self, run: Run) {
        self.0.push(run);
    }

    /// Adds a run, to the last one if that ends where it starts and is as zero.
    ///
    /// # Panics
    /// As [`Self::push`].
    pub fn join(&mut self, run: Run) {
        match self.last_mut() {
            Some(last) if last.end == run.first && last.zero == run.zero => last.end = run.end,
            _ => self.push(run),
        }
    }
}

impl Deref for Runs {
    type Target = [Run];

    fn deref(&self) -> &[Run] {
        &self.0
    }
}

impl DerefMut for Runs {
    fn deref_mut(&mut self) -> &mut [Run] {
        &mut self.0
    }
}

impl<'a> IntoIterator for &'a Runs {
    type Item = &'a Run;
    type IntoIter = core::slice::Iter<'a, Run>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// The blocks of the runs, in ascending or descending order within each.
pub(crate) fn blocks(runs: &Runs, order: Order) -> impl DoubleEndedIterator<Item = u32> + use<'_> {
    let step = order.pages() as u32;
    runs.iter().flat_map(move |run| {
        let first = run.first;
        (0..(run.end - first) >> order.get()).map(move |i| first + i * step)
    })
}

/// Marks each block of the runs as being on a slot's list of `mobility`. They have no other user.
pub(crate) fn cut(runs: &Runs, metas: Metas, order: Order, mobility: Mobility) {
    for run in runs {
        let listed = State::listed(order, run.zero).with(mobility);
        for page in (run.first..run.end).step_by(order.pages()) {
            metas.at(page).set_state(listed);
        }
    }
}

/// Adds the runs that the blocks form, in the order in which they come, each head unmarked. They
/// have no other user; a block that is not marked as being on a list proves otherwise, and ends the program.
pub(crate) fn join(blocks: &[u32], metas: Metas, order: Order, runs: &mut Runs) {
    for &first in blocks {
        let meta = metas.at(first);
        let state = meta.state();
        if !state.is_listed_at(order) {
            listed_twice(first, state);
        }
        let zero = state.is_zero();
        meta.set_state(State::INSIDE);
        let end = first + order.pages() as u32;
        match runs.last_mut() {
            Some(run) if run.end == first => {
                run.end = end;
                run.zero &= zero;
            }
            Some(run) if run.first == end => {
                run.first = first;
                run.zero &= zero;
            }
            _ => runs.push(Run { first, end, zero }),
        }
    }
}

/// Out of line: what two frees of one block at the same moment come to.
#[cold]
#[inline(never)]
pub(crate) fn listed_twice(page: u32, state: State) -> ! {
    broken(format_args!(
        "page {page} on its way back to the zone is {} (order {}): it was freed twice at the same moment",
        state.name(),
        state.order().get()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::{GROUP, PageMetas};
    use core::ptr::NonNull;

    fn for_64_pages() -> Vec<PageMetas> {
        (0..64_usize.div_ceil(GROUP))
            .map(|_| PageMetas::default())
            .collect()
    }

    #[test]
    #[expect(unsafe_code, reason = "metadata has to come from somewhere")]
    fn runs_join_in_both_directions_and_are_zero_only_as_a_whole() {
        let mut memory = for_64_pages();
        let first = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: zeroed metadata of 64 pages, which outlives the value.
        let metas = unsafe { Metas::new(first, 64) };
        let order = Order::at(1);
        for (blocks, used, expected) in [
            (&[8, 10, 12][..], 99, &[(8, 14, true)][..]),
            (&[12, 10, 8], 99, &[(8, 14, true)]),
            (&[8, 10, 12], 12, &[(8, 14, false)]),
            (&[12, 10, 8], 8, &[(8, 14, false)]),
            (&[8, 12, 10], 8, &[(8, 10, false), (10, 14, true)]),
            (&[], 99, &[]),
        ] {
            for &block in blocks {
                metas
                    .at(block)
                    .set_state(State::listed(order, block != used));
            }
            let mut runs = Runs::new();
            join(blocks, metas, order, &mut runs);
            let got: Vec<_> = runs.iter().map(|r| (r.first, r.end, r.zero)).collect();
            assert_eq!(got, expected, "{blocks:?}");
            assert!(blocks.iter().all(|&b| metas.at(b).state() == State::INSIDE));

            cut(&runs, metas, order, Mobility::Movable);
            let mut cut: Vec<u32> = super::blocks(&runs, order).collect();
            let states = || cut.iter().map(|&b| metas.at(b).state());
            assert!(states().all(|state| state.order() == order));
            assert!(states().all(|state| state.mobility() == Mobility::Movable));
            cut.sort_unstable();
            let mut blocks = blocks.to_vec();
            blocks.sort_unstable();
            assert_eq!(cut, blocks);
        }
    }

    /// What is left of two frees at the same moment that both passed: one block in two places. The first goes to the zone.
    #[cfg(feature = "std")]
    #[test]
    #[expect(unsafe_code, reason = "metadata has to come from somewhere")]
    fn p19_a_block_that_is_listed_twice_is_noticed_on_its_way_back() {
        const CHILD: &str = "PAGEALLOC_TEST_CHILD";
        if std::env::var_os(CHILD).is_some() {
            let mut memory = for_64_pages();
            let first = NonNull::new(memory.as_mut_ptr()).unwrap();
            // SAFETY: zeroed metadata of 64 pages, which outlives the value.
            let metas = unsafe { Metas::new(first, 64) };
            metas.at(5).set_state(State::listed(Order::ZERO, false));
            join(&[5, 5], metas, Order::ZERO, &mut Runs::new());
            return;
        }
        let test = "runs::tests::p19_a_block_that_is_listed_twice_is_noticed_on_its_way_back";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success(), "lived on");
        assert!(said.contains("page 5 on its way back"), "{said}");
        assert!(said.contains("freed twice at the same moment"), "{said}");
    }
}
