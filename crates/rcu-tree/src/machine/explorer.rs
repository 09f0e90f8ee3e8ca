//! Every interleaving of a small world: states of the machine and of all it works on, each visited once.
//!
//! The grace-period machine is passive and deterministic: whoever pushes it decides what happens next. So a few slots, a
//! cookie of each kind and a few callbacks have finitely many states, if numbers that only grow are taken relative to
//! the sequence they belong to, and [`explore`] visits all of them. It runs the production code: every step is a call
//! of it from a state that was restored word by word. `world` says what the steps are and what must hold in each state.
//!
//! Seven worlds are visited whole each time. The one with both lanes and both cookies has five million steps, and no
//! call in the middle of another: it is visited from two beginnings each time, and whole under `STRESS_LONG`.
//!
//! What this shows and what not: memory is sequentially consistent here, and a step is one call. Where a call can be
//! overtaken in the middle, which is wherever it tells its listener something, one other call is tried there too. What
//! weak memory adds, and what happens between two words of one sequence, is for the loom models.
//!
//! A walk that breaks a rule is printed, shortest first.

mod world;

use crate::trace::Lane;
use world::{Action, Scope, Small};

use std::collections::{HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;

/// A world that can be put into a state, and does steps from there.
trait Explore {
    /// All that is needed to go on from a state.
    type State: Clone;
    /// What two states have in common that differ in numbers only.
    type Key: Eq + Hash;
    type Step: Copy + Debug;

    fn first(&self) -> Self::State;
    fn key(&self, state: &Self::State) -> Self::Key;
    /// Calls `visit` with every step that is possible, and where it leads or which rule it breaks.
    fn steps(
        &self,
        from: &Self::State,
        visit: &mut dyn FnMut(Self::Step, Result<Self::State, String>),
    );
    /// What must hold for what comes after the state, whatever it is.
    fn check_future(&self, state: &Self::State) -> Result<(), String>;
}

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    states: usize,
    steps: usize,
    /// Whether every state that can be reached was visited.
    whole: bool,
}

/// Visits the states that can be reached, in the order of how many steps lead there, until `limit` steps were taken.
///
/// # Panics
/// If a rule is broken, with the walk that leads there.
fn explore<E: Explore>(name: &str, world: &E, limit: usize) -> Seen {
    /// Where a state came from.
    struct Origin<S> {
        parent: usize,
        step: Option<S>,
    }
    let mut origins: Vec<Origin<E::Step>> = Vec::new();
    let mut known = HashSet::new();
    let mut queue = VecDeque::new();
    let walk = |origins: &[Origin<E::Step>], mut at: usize, last: Option<E::Step>| -> String {
        let mut steps: Vec<E::Step> = last.into_iter().collect();
        while let Some(step) = origins[at].step {
            steps.push(step);
            at = origins[at].parent;
        }
        let lines = steps.iter().rev().map(|step| format!("\n  {step:?}"));
        lines.collect()
    };
    let first = world.first();
    known.insert(world.key(&first));
    origins.push(Origin {
        parent: 0,
        step: None,
    });
    queue.push_back((0, first));
    let mut seen = Seen {
        states: 0,
        steps: 0,
        whole: true,
    };
    while let Some((at, state)) = queue.pop_front() {
        if seen.steps >= limit {
            seen.whole = false;
            break;
        }
        seen.states += 1;
        if let Err(broken) = world.check_future(&state) {
            panic!("{name}: {broken}, after{}", walk(&origins, at, None));
        }
        world.steps(&state, &mut |step, led_to| {
            seen.steps += 1;
            let next = match led_to {
                Ok(next) => next,
                Err(broken) => {
                    panic!("{name}: {broken}, after{}", walk(&origins, at, Some(step)))
                }
            };
            if known.insert(world.key(&next)) {
                origins.push(Origin {
                    parent: at,
                    step: Some(step),
                });
                queue.push_back((origins.len() - 1, next));
            }
        });
    }
    println!(
        "{name}: {} states, {} steps, {}",
        seen.states,
        seen.steps,
        if seen.whole {
            "all there are"
        } else {
            "and more"
        }
    );
    seen
}

/// More steps than any world has that is visited whole each time.
const WHOLE: usize = 100_000;

/// How many steps are taken of a world that has millions, about a second's.
const LIMIT: usize = 25_000;

/// Visits a world whole.
fn all_of(name: &str, scope: Scope) {
    visit_whole(name, scope, WHOLE);
}

/// Visits a larger world as far as [`LIMIT`], and whole under `STRESS_LONG`.
fn first_of(name: &str, scope: Scope) {
    if std::env::var_os("STRESS_LONG").is_some() {
        visit_whole(name, scope, usize::MAX);
    } else {
        explore(name, &Small::new(scope), LIMIT);
    }
}

fn visit_whole(name: &str, scope: Scope, limit: usize) {
    let seen = explore(name, &Small::new(scope), limit);
    assert!(seen.whole, "{name}: there are more states");
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn r1_r5_two_slots_that_nest() {
    all_of(
        "two slots that nest",
        Scope {
            nest: 2,
            quiescent: true,
            ..Scope::of(2)
        },
    );
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn r7_r8_i2_two_lanes_and_both_cookies() {
    first_of(
        "two lanes and both cookies",
        Scope {
            lanes: &Lane::ALL,
            full: true,
            overtake: false,
            ..Scope::of(2)
        },
    );
}

/// A cookie is asked for while a grace period that another one asked for is in progress, and wherever that ends.
#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn t36_requests_of_two_cookies() {
    all_of(
        "two cookies in flight",
        Scope {
            full: true,
            ..Scope::of(1)
        },
    );
}

/// The expedited lane has ended a grace period that the normal one joined; what comes next on both merged.
#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn p4_i1_a_lane_that_is_behind() {
    use Lane::{Expedited, Normal};
    first_of(
        "a lane that is behind",
        Scope {
            lanes: &Lane::ALL,
            full: true,
            overtake: false,
            after: &[
                Action::TakeSmall,
                Action::Ask(Expedited),
                Action::TakeFull,
                Action::AskFull(Normal),
                Action::Advance(Expedited),
                Action::Advance(Normal),
                Action::Advance(Expedited),
                Action::Advance(Expedited),
            ],
            ..Scope::of(2)
        },
    );
}

/// A callback is queued by a reader that the grace period in progress does not wait for.
#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn r5_callbacks_beside_two_slots() {
    all_of(
        "callbacks beside two slots",
        Scope {
            small: false,
            calls: 2,
            overtake: false,
            ..Scope::of(2)
        },
    );
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn r1_four_slots_under_a_root() {
    all_of(
        "four slots under a root",
        Scope {
            fanout: 2,
            overtake: false,
            ..Scope::of(4)
        },
    );
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn t37_g19_slots_that_come_and_go_under_a_root() {
    all_of(
        "three slots that come and go",
        Scope {
            fanout: 2,
            come_and_go: true,
            ..Scope::of(3)
        },
    );
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn g11_t41_t47_sections_of_no_slot() {
    all_of(
        "sections of no slot",
        Scope {
            shared: 2,
            moves: true,
            lanes: &Lane::ALL,
            ..Scope::of(1)
        },
    );
}

#[test]
#[cfg_attr(miri, ignore = "tens of thousands of steps")]
fn s1_t38_callbacks_on_one_list() {
    all_of(
        "callbacks",
        Scope {
            small: false,
            calls: 3,
            lanes: &Lane::ALL,
            ..Scope::of(1)
        },
    );
}
