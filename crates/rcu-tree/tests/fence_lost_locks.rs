//! `membarrier` is taken away while owners are in locks that it has biased: owner and visitors never meet all the same.
#![cfg(all(feature = "std", target_os = "linux", not(loom), not(miri)))]

#[path = "common/seccomp.rs"]
mod seccomp;

use rcu_core::cpu::{BiasedLock, LocalCell, LocalLock};
use rcu_core::fence;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

const OWNERS: usize = 2;
const VISITS: usize = 500;

type Canary = LocalCell<BiasedLock, [usize; 2]>;

fn bump(both: &mut [usize; 2]) {
    assert_eq!(both[0], both[1], "somebody else is inside");
    both[0] += 1;
    black_box(&mut *both);
    both[1] += 1;
}

fn own(canary: &Canary) -> usize {
    // SAFETY: each cell has one thread that calls this.
    let Some(mut inside) = (unsafe { canary.try_enter() }) else {
        return 0;
    };
    bump(&mut inside);
    1
}

#[test]
fn p8_a_filter_that_comes_later_misses_no_owner() {
    let before = fence::probe();
    let cells: [Canary; OWNERS] =
        std::array::from_fn(|_| LocalCell::new(BiasedLock::new(), [0; 2]));
    // This one nobody visits until the filter is there.
    let late = BiasedLock::new();
    let enter_late = || {
        // SAFETY: used by this thread only.
        assert!(unsafe { late.try_enter() });
        // SAFETY: entered above.
        unsafe { late.leave() };
        format!("{late:?}")
    };
    let biased = "BiasedLock { busy: 1, bias: 1 }";
    let unbiased = "BiasedLock { busy: 1, bias: 0 }";
    assert_eq!(enter_late() == biased, before == fence::Mode::Membarrier);
    let stop = AtomicBool::new(false);
    let visit_all = || {
        for _ in 0..VISITS {
            for cell in &cells {
                bump(&mut cell.visit());
            }
        }
        OWNERS * VISITS
    };
    let (denied, total) = std::thread::scope(|s| {
        let owners = cells.each_ref().map(|cell| {
            let stop = &stop;
            s.spawn(move || {
                let mut entered = 0;
                while !stop.load(Ordering::Relaxed) {
                    entered += own(cell);
                }
                entered
            })
        });
        let visits = visit_all();
        let denied = seccomp::deny_membarrier();
        let visits = visits + visit_all();
        stop.store(true, Ordering::Relaxed);
        let entered: usize = owners.into_iter().map(|o| o.join().unwrap()).sum();
        (denied, visits + entered)
    });
    assert_eq!(
        cells
            .map(|mut cell| cell.get_mut()[1])
            .iter()
            .sum::<usize>(),
        total
    );
    seccomp::assert_fenced(denied);
    if denied {
        late.visit();
        // SAFETY: entered above, as a visitor.
        unsafe { late.unvisit() };
        assert_eq!(enter_late(), unbiased, "no bias without the kernel");
    }
}
