//! Timing single calls of `retire`.

use crate::engines::Engine;
use std::time::Instant;

/// Calls between two signs of life.
const STRIDE: usize = 65_536;

/// Times `calls` calls, each with its object; sorted, in nanoseconds.
pub(crate) fn times<E: Engine>(
    engine: &E,
    calls: usize,
    size: usize,
    tell: impl Fn(usize),
) -> Vec<u32> {
    let mut times = Vec::with_capacity(calls);
    for i in 0..calls {
        let object = engine.alloc(size);
        engine.touch(object, size, i);
        let began = Instant::now();
        // SAFETY: allocated just now with this size, published to nobody.
        unsafe { engine.retire(object, size) };
        let took = began.elapsed();
        times.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        if i.is_multiple_of(STRIDE) {
            tell(i);
        }
    }
    times.sort_unstable();
    times
}

/// The time that `share` of the sorted times do not exceed.
pub(crate) fn percentile(sorted: &[u32], share: f64) -> u32 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted[at.min(sorted.len() - 1)]
}
