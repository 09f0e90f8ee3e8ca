//! The scenarios by name, what each is about, and what is to come of it.

/// What is to come of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Nothing goes wrong.
    Clean,
    /// What is wrong in it on purpose is found: a fault's name, or the last words of a program that ended itself, has one of
    /// these in it.
    Flagged(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) expect: Expect,
}

impl Scenario {
    pub(super) const fn is_broken(&self) -> bool {
        matches!(self.expect, Expect::Flagged(_))
    }
}

const fn clean(name: &'static str, about: &'static str) -> Scenario {
    Scenario {
        name,
        about,
        expect: Expect::Clean,
    }
}

const fn flagged(name: &'static str, about: &'static str, by: &'static [&'static str]) -> Scenario {
    Scenario {
        name,
        about,
        expect: Expect::Flagged(by),
    }
}

/// Readers that see an element of stage 2 or later, or one that is not what it was.
const TOO_SHORT: &[&str] = &["too short", "recycled", "cookie check"];

/// Memory that is somebody else's while it is still used.
const USED: &[&str] = &[
    "freed early",
    "handed out twice",
    "changed by somebody else",
    "another cache or owner",
];
/// What the allocator says itself (of large blocks, that they are nobody's), or finds its way to two owners first.
const TWICE: &[&str] = &[
    "freed twice",
    "retired twice",
    "not from this cache",
    "handed out twice",
    "changed by somebody else",
];
const FOREIGN: &[&str] = &["not from this cache"];
const MISSED: &[&str] = &["never freed"];
const BROKEN_PAGE: &[&str] = &["pagealloc: broken contract"];

pub(super) const SCENARIOS: &[Scenario] = &[
    clean("tree", "rcu-tree as programs use it, by membarrier"),
    clean("tree-fenced", "membarrier denied from the start"),
    clean("tree-fence-lost", "membarrier denied in the middle"),
    clean("tree-fanout2", "16 slots, fanout 2 over leaves of 2"),
    clean("tree-fanout3", "81 slots, fanout 3 over leaves of 3"),
    clean(
        "tree-delays",
        "the same, waiting between the engine's steps",
    ),
    clean("tree-slotless", "3 slots: most threads read without one"),
    clean("tiny", "rcu-tiny, on which threads take turns"),
    clean("plain", "the control: a dull RCU, right by inspection"),
    clean("pages", "a zone, its lists, draining and trimming"),
    clean("slab", "caches and kmalloc, retiring into sheaves"),
    clean("kvfree", "the front end over sheaves"),
    clean(
        "kvfree-no-sheaves",
        "everything waits in blocks, or by head",
    ),
    clean("kvfree-tight-budget", "1 MiB may wait"),
    clean(
        "kvfree-failing-source",
        "24 MiB of pages, more of which are refused three times in four",
    ),
    flagged(
        "returns-early",
        "a grace period in sixteen waits for nobody",
        TOO_SHORT,
    ),
    flagged(
        "misses-new-reader",
        "who came after the last grace period is not waited for",
        TOO_SHORT,
    ),
    flagged("skips-slot", "one slot is never waited for", TOO_SHORT),
    flagged("forgets-nested", "the first exit ends the nest", TOO_SHORT),
    flagged(
        "lost-report",
        "a reader's report is lost now and then",
        &["forward progress"],
    ),
    flagged(
        "ignores-send",
        "sections of no thread are not waited for",
        TOO_SHORT,
    ),
    flagged(
        "quiescent-ignores-nesting",
        "a quiescent state beside another guard counts",
        TOO_SHORT,
    ),
    flagged(
        "counts-on-the-current",
        "cookies count on a grace period that has begun",
        TOO_SHORT,
    ),
    flagged(
        "forgets-done",
        "a cookie that was done is not, later",
        &["cookie check"],
    ),
    flagged("barrier-returns", "barrier returns at once", &["barrier"]),
    flagged(
        "loses-callback",
        "a callback in a hundred is forgotten",
        &["barrier returned", "stuck", "lost"],
    ),
    flagged(
        "runs-at-once",
        "a callback in eight runs at once",
        TOO_SHORT,
    ),
    flagged(
        "expedited-early",
        "every second expedited grace period waits for nobody",
        TOO_SHORT,
    ),
    flagged("pages-early-free", "blocks freed and used on", USED),
    flagged("pages-double-free", "blocks freed twice", BROKEN_PAGE),
    flagged("pages-missing-free", "blocks never freed", MISSED),
    flagged("pages-wrong-order", "blocks freed as larger", BROKEN_PAGE),
    flagged("slab-early-free", "objects freed, not retired", USED),
    flagged("slab-double-free", "objects freed or retired twice", TWICE),
    flagged("slab-missing-free", "objects never freed", MISSED),
    flagged(
        "slab-wrong-cache",
        "objects freed to another cache",
        FOREIGN,
    ),
    flagged("kvfree-early-free", "objects freed, not retired", USED),
    flagged(
        "kvfree-double-free",
        "objects freed or retired twice",
        TWICE,
    ),
    flagged("kvfree-missing-free", "objects never freed", MISSED),
    flagged("kvfree-wrong-cache", "objects retired elsewhere", FOREIGN),
];

pub(super) fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
