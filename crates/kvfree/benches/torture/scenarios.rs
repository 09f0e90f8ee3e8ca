//! The scenarios by name.

use crate::Running;
use crate::memory::{self, Front, Injury};
use crate::rcu;
use crate::stage::Stage;
use crate::subjects::plain::{Plain, Wrong};
use crate::subjects::tiny;
use crate::subjects::trees::{self, Shape};
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Something is wrong in it on purpose: the run ends when that is found.
    pub(crate) is_broken: bool,
    pub(crate) start: fn(&'static Stage) -> Result<Running, String>,
}

const fn sound(
    name: &'static str,
    start: fn(&'static Stage) -> Result<Running, String>,
) -> Scenario {
    Scenario {
        name,
        is_broken: false,
        start,
    }
}

const fn broken(
    name: &'static str,
    start: fn(&'static Stage) -> Result<Running, String>,
) -> Scenario {
    Scenario {
        name,
        is_broken: true,
        start,
    }
}

/// A tree of a shape.
fn small(
    slots: usize,
    fanout_leaf: usize,
    fanout: usize,
    delays: usize,
    stage: &'static Stage,
) -> Result<Running, String> {
    let tree = trees::small(Shape {
        slots,
        fanout_leaf,
        fanout,
        delays,
    });
    Ok(rcu::start(tree, stage))
}

/// The dull RCU with one thing wrong.
fn wrong(wrong: Wrong, stage: &'static Stage) -> Result<Running, String> {
    Ok(rcu::start(Plain::start(wrong), stage))
}

/// A front end with all it has.
const FRONT: Front = Front {
    sheaves: true,
    limit: None,
    addresses: 128 << 20,
    refuses: 1,
    most: 500,
};

pub(crate) const SCENARIOS: &[Scenario] = &[
    sound("tree", |stage| Ok(rcu::start(trees::routes(), stage))),
    sound("tree-fenced", |stage| {
        Ok(rcu::start(trees::fenced()?, stage))
    }),
    sound("tree-fence-lost", |stage| {
        let after = (stage.seconds / 3).max(Duration::from_millis(100));
        Ok(rcu::start(trees::fence_lost(after), stage))
    }),
    sound("tree-fanout2", |stage| small(16, 2, 2, 0, stage)),
    sound("tree-fanout3", |stage| small(81, 3, 3, 0, stage)),
    sound("tree-delays", |stage| small(81, 3, 3, 1, stage)),
    sound("tree-slotless", |stage| small(3, 2, 2, 4, stage)),
    sound("tiny", |stage| Ok(rcu::start(tiny::start(), stage))),
    sound("plain", |stage| wrong(Wrong::Nothing, stage)),
    sound("pages", |stage| memory::start_pages(stage, Injury::Nothing)),
    sound("slab", |stage| memory::start_slab(stage, Injury::Nothing)),
    sound("kvfree", |stage| {
        memory::start_front(stage, FRONT, Injury::Nothing)
    }),
    sound("kvfree-no-sheaves", |stage| {
        let front = Front {
            sheaves: false,
            ..FRONT
        };
        memory::start_front(stage, front, Injury::Nothing)
    }),
    sound("kvfree-tight-budget", |stage| {
        let front = Front {
            limit: Some(1 << 20),
            ..FRONT
        };
        memory::start_front(stage, front, Injury::Nothing)
    }),
    sound("kvfree-failing-source", |stage| {
        let front = Front {
            addresses: 24 << 20,
            refuses: 3,
            most: 3_000,
            ..FRONT
        };
        memory::start_front(stage, front, Injury::Nothing)
    }),
    broken("returns-early", |stage| wrong(Wrong::ReturnsEarly, stage)),
    broken("misses-new-reader", |stage| {
        wrong(Wrong::MissesNewReader, stage)
    }),
    broken("skips-slot", |stage| wrong(Wrong::SkipsSlot, stage)),
    broken("forgets-nested", |stage| wrong(Wrong::ForgetsNested, stage)),
    broken("lost-report", |stage| wrong(Wrong::LostReport, stage)),
    broken("ignores-send", |stage| wrong(Wrong::IgnoresSend, stage)),
    broken("quiescent-ignores-nesting", |stage| {
        wrong(Wrong::QuiescentIgnoresNesting, stage)
    }),
    broken("counts-on-the-current", |stage| {
        wrong(Wrong::CountsOnTheCurrent, stage)
    }),
    broken("forgets-done", |stage| wrong(Wrong::ForgetsDone, stage)),
    broken("barrier-returns", |stage| {
        wrong(Wrong::BarrierReturns, stage)
    }),
    broken("loses-callback", |stage| wrong(Wrong::LosesCallback, stage)),
    broken("runs-at-once", |stage| wrong(Wrong::RunsAtOnce, stage)),
    broken("expedited-early", |stage| {
        wrong(Wrong::ExpeditedEarly, stage)
    }),
    broken("pages-early-free", |stage| {
        memory::start_pages(stage, Injury::Early)
    }),
    broken("pages-double-free", |stage| {
        memory::start_pages(stage, Injury::Double)
    }),
    broken("pages-missing-free", |stage| {
        memory::start_pages(stage, Injury::Missing)
    }),
    broken("pages-wrong-order", |stage| {
        memory::start_pages(stage, Injury::Wrong)
    }),
    broken("slab-early-free", |stage| {
        memory::start_slab(stage, Injury::Early)
    }),
    broken("slab-double-free", |stage| {
        memory::start_slab(stage, Injury::Double)
    }),
    broken("slab-missing-free", |stage| {
        memory::start_slab(stage, Injury::Missing)
    }),
    broken("slab-wrong-cache", |stage| {
        memory::start_slab(stage, Injury::Wrong)
    }),
    broken("kvfree-early-free", |stage| {
        memory::start_front(stage, FRONT, Injury::Early)
    }),
    broken("kvfree-double-free", |stage| {
        memory::start_front(stage, FRONT, Injury::Double)
    }),
    broken("kvfree-missing-free", |stage| {
        memory::start_front(stage, FRONT, Injury::Missing)
    }),
    broken("kvfree-wrong-cache", |stage| {
        memory::start_front(stage, FRONT, Injury::Wrong)
    }),
];

pub(crate) fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

pub(crate) fn list() -> Value {
    let list = SCENARIOS.iter();
    list.map(|scenario| json!({ "name": scenario.name, "broken": scenario.is_broken }))
        .collect()
}
