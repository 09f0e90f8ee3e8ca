//! Choices that follow from a seed, whatever the threads' timing.
//!
//! What a thread does in its n-th round depends on the seed, the thread and n, and on nothing that happened before: so the
//! same seed makes the same choices on a machine that is faster, slower or busier. Only how threads interleave differs.

/// A small generator: splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Random {
    /// The choices of round `round` of thread `thread` in the role `role`.
    pub(crate) fn of(seed: u64, role: &str, thread: usize, round: u64) -> Self {
        let role = role
            .bytes()
            .fold(0, |hash: u64, byte| mix(hash ^ u64::from(byte)));
        Self(mix(mix(mix(seed ^ role) ^ thread as u64) ^ round))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Yes once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
