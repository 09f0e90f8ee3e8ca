//! What the runs are to show: the targets, and whether they are met.
//!
//! A target is judged where both its rows were run, whatever the objects' size; with more than two threads, as with two.

use super::options::Engine;
use super::table::{Row, peer};
use crate::verdict::Verdict;

/// A cost in proportion to a peer's.
struct Target {
    workload: &'static str,
    /// With one thread, or with more.
    alone: bool,
    engine: Engine,
    /// Of these the one that costs least.
    peers: &'static [Engine],
    at_most: f64,
    why: &'static str,
}

const COSTS: [Target; 13] = [
    cost(
        "flood",
        true,
        Engine::Kvfree,
        &[Engine::CrossbeamEpoch],
        0.10,
        "a closure stored, sealed and called for each object",
    ),
    cost(
        "flood",
        true,
        Engine::Kvfree,
        &[Engine::Kovan],
        0.25,
        "the best peer links every object and counts by batch",
    ),
    cost(
        "flood",
        true,
        Engine::Kvfree,
        &[Engine::MallocFree],
        0.70,
        "recycled arrays cost less than an allocator that frees at once",
    ),
    cost(
        "flood",
        true,
        Engine::KvfreeHeadless,
        &[Engine::CrossbeamEpoch],
        0.15,
        "one look at the page more than a typed cache",
    ),
    cost(
        "flood",
        true,
        Engine::KvfreeSized,
        &[Engine::CrossbeamEpoch],
        0.15,
        "without that look, as Rust code knows the layout",
    ),
    cost(
        "flood",
        true,
        Engine::KvfreeBox,
        &[Engine::CrossbeamEpoch],
        0.60,
        "the same allocator, called in bulk",
    ),
    cost(
        "flood",
        false,
        Engine::Kvfree,
        &[Engine::CrossbeamEpoch],
        0.12,
        "nothing is shared but a count, once a sheaf",
    ),
    cost(
        "flood",
        false,
        Engine::Kvfree,
        &[Engine::Kovan],
        0.30,
        "as with one thread",
    ),
    cost(
        "flood+reader",
        true,
        Engine::Kvfree,
        &[Engine::CrossbeamEpoch],
        0.12,
        "one fence for all objects of a grace period",
    ),
    cost(
        "flood+reader",
        true,
        Engine::Kvfree,
        &[Engine::Kovan],
        0.35,
        "as without a reader, and a fence that interrupts it",
    ),
    cost(
        "flood+reader",
        false,
        Engine::Kvfree,
        &[Engine::Kovan],
        0.35,
        "as with one thread",
    ),
    cost(
        "trace",
        true,
        Engine::KvfreeHeadless,
        &[Engine::MallocFree, Engine::Mimalloc, Engine::RustyAlloc],
        1.0,
        "deferring is to cost no more than freeing at once",
    ),
    cost(
        "trace",
        true,
        Engine::KvfreeSized,
        &[Engine::MallocFree, Engine::Mimalloc, Engine::RustyAlloc],
        1.0,
        "as they do, it is told the size",
    ),
];

/// A flood beside a reader must leave it this share of its rate.
const SHARE_OF_READS: f64 = 0.9;
/// A single `retire` at the 99.9th percentile, in proportion to crossbeam-epoch's.
const SHARE_OF_TAIL: f64 = 0.5;
/// What may be resident beyond what was before a flood.
const EXTRA_KIB: u64 = 2048;
/// Batching must need at least this many times fewer grace periods.
const FEWER_GRACE_PERIODS: f64 = 100.0;

const fn cost(
    workload: &'static str,
    alone: bool,
    engine: Engine,
    peers: &'static [Engine],
    at_most: f64,
    why: &'static str,
) -> Target {
    Target {
        workload,
        alone,
        engine,
        peers,
        at_most,
        why,
    }
}

/// Judges the rows. A target whose rows were not run has no line.
pub(crate) fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for row in rows {
        verdicts.extend(COSTS.iter().filter_map(|target| target.judge(rows, row)));
        verdicts.extend(reads(rows, row));
        verdicts.extend(tail(rows, row));
        verdicts.extend(memory(row));
        verdicts.extend(fewer_grace_periods(rows, row));
    }
    let counted = rows.iter().filter_map(|row| row.run.outstanding).count();
    let lost: u64 = rows.iter().filter_map(|row| row.run.outstanding).sum();
    if counted > 0 {
        verdicts.push(Verdict {
            holds: lost == 0,
            text: format!("{lost} objects outstanding over {counted} rows (none)"),
        });
    }
    verdicts
}

/// What a workload is called without its trace's name.
fn kind(workload: &str) -> &str {
    workload.split(':').next().unwrap_or(workload)
}

impl Target {
    fn judge(&self, rows: &[Row], row: &Row) -> Option<Verdict> {
        let alone = row.run.threads == 1 || self.workload == "trace";
        if row.engine != self.engine || kind(&row.workload) != self.workload || alone != self.alone
        {
            return None;
        }
        let peers = self
            .peers
            .iter()
            .filter_map(|engine| peer(rows, row, *engine));
        let best = peers.min_by(|a, b| a.run.ns_per_object.total_cmp(&b.run.ns_per_object))?;
        let ratio = row.run.ns_per_object / best.run.ns_per_object;
        Some(Verdict {
            holds: ratio <= self.at_most,
            text: format!(
                "{}: {} costs {ratio:.2} x {} (at most {}: {})",
                row.group_label(),
                row.engine.name(),
                best.engine.name(),
                self.at_most,
                self.why
            ),
        })
    }
}

/// A reader's rate beside a flood: in proportion to its rate alone, and to the best peer's.
fn reads(rows: &[Row], row: &Row) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let Some(beside) = row.run.reads_per_second else {
        return verdicts;
    };
    if row.engine != Engine::Kvfree || row.workload != "flood+reader" {
        return verdicts;
    }
    let alone = rows
        .iter()
        .find(|r| r.workload == "reader" && r.engine == row.engine);
    if let Some(alone) = alone.and_then(|r| r.run.reads_per_second) {
        let share = beside / alone;
        verdicts.push(Verdict {
            holds: share >= SHARE_OF_READS,
            text: format!(
                "{}: its reader keeps {share:.2} of its rate without a flood (at least {SHARE_OF_READS})",
                row.group_label()
            ),
        });
    }
    let kovan = peer(rows, row, Engine::Kovan).and_then(|r| r.run.reads_per_second);
    if let Some(kovan) = kovan {
        let times = beside / kovan;
        verdicts.push(Verdict {
            holds: times >= 1.0,
            text: format!(
                "{}: its reader reads {times:.2} x as often as kovan's (at least 1)",
                row.group_label()
            ),
        });
    }
    verdicts
}

/// Whether it is kvfree as it is meant to be used.
fn is_ours(engine: Engine) -> bool {
    matches!(
        engine,
        Engine::Kvfree | Engine::KvfreeHeadless | Engine::KvfreeSized | Engine::KvfreeBox
    )
}

/// How long a single `retire` takes where it takes long.
fn tail(rows: &[Row], row: &Row) -> Option<Verdict> {
    let ours = is_ours(row.engine);
    let theirs = peer(rows, row, Engine::CrossbeamEpoch)?.run.retire_ns?.p999;
    let mine = row.run.retire_ns.filter(|_| ours)?.p999;
    let ratio = mine as f64 / theirs.max(1) as f64;
    Some(Verdict {
        holds: ratio <= SHARE_OF_TAIL,
        text: format!(
            "{}: p99.9 of a {} retire is {mine} ns, {ratio:.2} x crossbeam-epoch's {theirs} (at most {SHARE_OF_TAIL})",
            row.group_label(),
            row.engine.name()
        ),
    })
}

fn memory(row: &Row) -> Option<Verdict> {
    let ours = is_ours(row.engine);
    let kib = row
        .run
        .peak_extra_kib
        .filter(|_| ours && row.workload.starts_with("flood"))?;
    Some(Verdict {
        holds: kib <= EXTRA_KIB,
        text: format!(
            "{}: {} needs {kib} KiB more at its peak (at most {EXTRA_KIB})",
            row.group_label(),
            row.engine.name()
        ),
    })
}

fn fewer_grace_periods(rows: &[Row], row: &Row) -> Option<Verdict> {
    let batched = row
        .run
        .grace_periods
        .filter(|_| row.engine == Engine::Kvfree)?;
    let unbatched = peer(rows, row, Engine::KvfreeUnbatched)?
        .run
        .grace_periods?;
    let holds = unbatched as f64 >= FEWER_GRACE_PERIODS * batched as f64 && unbatched > 0;
    let times = if batched > 0 {
        format!("{:.1} times fewer", unbatched as f64 / batched as f64)
    } else {
        "none at all".to_owned()
    };
    Some(Verdict {
        holds,
        text: format!(
            "{}: {} needs {batched} grace periods, unbatched {unbatched}: {times} (at least {FEWER_GRACE_PERIODS})",
            row.group_label(),
            row.engine.name()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::runner::Latency;
    use super::super::table::tests::{row, sample};
    use super::*;

    fn judged(rows: &[Row]) -> Vec<(bool, String)> {
        let verdicts = verdicts(rows).into_iter();
        verdicts.map(|v| (v.holds, v.text)).collect()
    }

    #[test]
    fn verdicts_name_what_holds_and_what_does_not() {
        let verdicts = verdicts(&sample());
        let holds: Vec<bool> = verdicts.iter().map(|v| v.holds).collect();
        // Crossbeam, kovan, memory, grace periods, nothing outstanding.
        assert_eq!(holds, [true, false, true, false, true], "{verdicts:?}");
        assert!(verdicts[1].to_string().starts_with("FALLS SHORT"));
        assert!(verdicts[3].text.contains("50.0 times fewer"));
        let mut rows = sample();
        rows[1].run.grace_periods = Some(1000);
        rows[0].run.peak_extra_kib = Some(2049);
        rows[3].run.outstanding = Some(1);
        let holds: Vec<bool> = judged(&rows).into_iter().map(|v| v.0).collect();
        assert_eq!(holds, [true, false, false, true, false]);
        assert!(super::verdicts(&[]).is_empty());
    }

    #[test]
    fn traces_are_compared_with_the_best_that_frees_at_once() {
        let rows = [
            row("trace:x", 3, Engine::KvfreeHeadless, 10.0, 1),
            row("trace:x", 3, Engine::MallocFree, 11.0, 0),
            row("trace:x", 3, Engine::RustyAlloc, 9.0, 0),
            row("trace:y", 3, Engine::Mimalloc, 1.0, 0),
        ];
        let verdicts = judged(&rows);
        assert!(
            !verdicts[0].0 && verdicts[0].1.contains("1.11 x rusty_alloc"),
            "{verdicts:?}"
        );
        assert_eq!(verdicts.len(), 2);
    }

    #[test]
    fn readers_and_tails_are_judged() {
        let mut rows = vec![
            row("flood+reader", 1, Engine::Kvfree, 4.0, 1),
            row("flood+reader", 1, Engine::Kovan, 20.0, 1),
            row("reader", 1, Engine::Kvfree, 1.0, 1),
            row("latency", 1, Engine::KvfreeBox, 9.0, 1),
            row("latency", 1, Engine::CrossbeamEpoch, 9.0, 1),
        ];
        rows[0].run.reads_per_second = Some(95e6);
        rows[1].run.reads_per_second = Some(96e6);
        rows[2].run.reads_per_second = Some(100e6);
        for (row, p999) in rows[3..].iter_mut().zip([500, 900]) {
            row.run.retire_ns = Some(Latency {
                p50: 1,
                p99: 2,
                p999,
                max: 1000,
            });
        }
        let verdicts = judged(&rows);
        let of = |what: &str| verdicts.iter().find(|v| v.1.contains(what)).map(|v| v.0);
        assert_eq!(of("keeps 0.95 of its rate"), Some(true));
        assert_eq!(of("0.99 x as often"), Some(false));
        assert_eq!(of("0.56 x crossbeam-epoch"), Some(false), "{verdicts:?}");
    }
}
