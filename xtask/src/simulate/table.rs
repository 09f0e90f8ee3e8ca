//! What the runs say: one row a machine, the table, the verdicts, the JSON.

use serde_json::{Value, json};

use super::ledger::{LEVELS, Period, bound};
use super::options::Case;
use super::world::Run;
use crate::verdict::Verdict;

/// Cost per slot may differ by so much between machines from [`FLAT_FROM`] slots on.
const FLAT_WITHIN: f64 = 0.20;
/// Below, one node more or less is a large part of all.
const FLAT_FROM: u32 = 256;

/// What the words of the table mean.
pub(crate) const LEGEND: &str = "\
Averages over grace periods; most: the worst of all. A node's lock is a pair of atomic words on a line of its own, so
taking a lock is writing (storing, or read-modify-writing) one of its words; each such write is counted.
  reads/slot   cache lines that the scan reads: words of slots, and nodes it looks at, over all slots
  writes       writes of nodes for grace periods, by level from the root: arming, and reports
  most         the most writes of one leaf, and of one node above, for one grace period, of how many are allowed;
               with moves: of one leaf, when those for the registry are added
  moves        slots that came or went meanwhile: each writes its leaf once more, and nodes above only if it is the
               first ever below them
  reports      slots credited with a quiescent state
  wake-ups     sleeping threads woken: a simulated machine has ticks only
  bytes/slot   memory of slots, nodes and the tree
  cost/slot    cache lines touched: reads and writes above, those for moves too, over all slots; no time
Queueing and running callbacks is not in it: that is every caller's own.";

/// A machine and what its run found.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) run: Run,
}

impl Row {
    fn mean(&self, count: impl Fn(&Period) -> u64) -> f64 {
        let sum: u64 = self.run.periods.iter().map(count).sum();
        sum as f64 / self.run.periods.len().max(1) as f64
    }

    fn most(&self, count: impl Fn(&Period) -> u32) -> u32 {
        self.run.periods.iter().map(count).max().unwrap_or(0)
    }

    fn per_slot(&self, count: impl Fn(&Period) -> u64) -> f64 {
        self.mean(count) / f64::from(self.case.slots)
    }

    pub(crate) fn slots_read(&self) -> f64 {
        self.per_slot(|period| period.slot_reads)
    }

    pub(crate) fn nodes_read(&self) -> f64 {
        self.per_slot(|period| period.node_reads)
    }

    pub(crate) fn nodes_written(&self) -> f64 {
        self.per_slot(|period| period.writes.iter().chain(&period.registry).sum())
    }

    pub(crate) fn cost(&self) -> f64 {
        self.slots_read() + self.nodes_read() + self.nodes_written()
    }

    /// Averages by level, the root's first.
    fn by_level(&self, counts: impl Fn(&Period) -> &[u64; LEVELS]) -> Vec<f64> {
        (0..self.run.levels)
            .map(|level| self.mean(|period| counts(period)[level]))
            .collect()
    }
}

const COLUMNS: [&str; 14] = [
    "slots",
    "levels",
    "nodes",
    "GPs",
    "reads/slot",
    "writes/slot",
    "writes by level",
    "most: leaf",
    "above",
    "with moves",
    "moves",
    "reports",
    "wake-ups",
    "bytes/slot",
];
const LAST_COLUMN: &str = "cost/slot";

fn cells(row: &Row) -> Vec<String> {
    let levels = row.by_level(|period| &period.writes);
    let levels: Vec<String> = levels.into_iter().map(|n| format!("{n:.1}")).collect();
    let above = if row.run.levels > 1 {
        let most = row.most(|period| period.most_inner);
        format!("{most} of {}", bound(row.case.fanout))
    } else {
        "-".to_owned()
    };
    let leaf = row.most(|period| period.most_leaf);
    vec![
        row.case.slots.to_string(),
        row.run.levels.to_string(),
        row.run.nodes.to_string(),
        row.run.periods.len().to_string(),
        format!("{:.3}", row.slots_read() + row.nodes_read()),
        format!("{:.3}", row.per_slot(|period| period.writes.iter().sum())),
        levels.join(" + "),
        format!("{leaf} of {}", bound(row.case.fanout_leaf)),
        above,
        row.most(|period| period.most_with_moves).to_string(),
        format!(
            "{:.1}",
            row.mean(|period| u64::from(period.came + period.went))
        ),
        format!("{:.1}", row.mean(|period| period.reports)),
        format!("{:.1}", row.mean(|period| period.wakeups)),
        format!("{:.0}", row.run.bytes_per_slot),
        format!("{:.3}", row.cost()),
    ]
}

/// The table for a terminal: aligned to the right.
pub(crate) fn render(rows: &[Row]) -> String {
    let header = COLUMNS.iter().copied().chain([LAST_COLUMN]);
    let mut lines = vec![header.map(str::to_owned).collect()];
    lines.extend(rows.iter().map(cells));
    aligned(&lines)
}

/// A line for each grace period of each machine.
pub(crate) fn each(rows: &[Row]) -> String {
    let header = [
        "slots",
        "GP",
        "online",
        "reads: slots",
        "nodes",
        "writes by level",
        "for moves",
        "most: leaf",
        "above",
        "came",
        "went",
        "reports",
        "wake-ups",
    ];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    for row in rows {
        for (number, period) in (1..).zip(&row.run.periods) {
            let levels = |counts: &[u64; LEVELS]| {
                let counts: Vec<String> = counts[..row.run.levels]
                    .iter()
                    .map(u64::to_string)
                    .collect();
                counts.join(" + ")
            };
            lines.push(vec![
                row.case.slots.to_string(),
                i32::to_string(&number),
                period.online.to_string(),
                period.slot_reads.to_string(),
                period.node_reads.to_string(),
                levels(&period.writes),
                levels(&period.registry),
                period.most_leaf.to_string(),
                period.most_inner.to_string(),
                period.came.to_string(),
                period.went.to_string(),
                period.reports.to_string(),
                period.wakeups.to_string(),
            ]);
        }
    }
    aligned(&lines)
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in lines {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            text.push_str(if column > 0 { "  " } else { "" });
            text.push_str(&format!("{cell:>width$}"));
        }
        text.push('\n');
    }
    text
}

/// Judges the rows.
pub(crate) fn verdicts(rows: &[Row]) -> Vec<Verdict> {
    let mut verdicts = vec![model(rows), fanouts(rows)];
    verdicts.extend(flatness(rows));
    verdicts
}

/// What every run has already stood for, or it would have ended in an error.
fn model(rows: &[Row]) -> Verdict {
    let periods: usize = rows.iter().map(|row| row.run.periods.len()).sum();
    let callbacks: u64 = rows.iter().map(|row| row.run.callbacks).sum();
    Verdict {
        holds: true,
        text: format!(
            "{periods} grace periods ended after every section that began before them and waited for no other; \
             {callbacks} callbacks ran once each, none too early"
        ),
    }
}

fn fanouts(rows: &[Row]) -> Verdict {
    let broken = rows.iter().find_map(|row| {
        let what = row.run.broken.as_ref()?;
        Some(format!("{} slots: {what}", row.case.slots))
    });
    let holds = broken.is_none();
    let text = broken.unwrap_or_else(|| {
        let most = |count: fn(&Period) -> u32| rows.iter().map(|r| r.most(count)).max().unwrap_or(0);
        let (leaf, inner) = rows
            .first()
            .map_or((0, 0), |row| (bound(row.case.fanout_leaf), bound(row.case.fanout)));
        format!(
            "no node is written more than fanout + 2 times in a grace period: a leaf {} of {leaf}, a node above {} of \
             {inner}; coming and going write a leaf once each besides",
            most(|period| period.most_leaf),
            most(|period| period.most_inner)
        )
    });
    Verdict { holds, text }
}

/// `None` if fewer than two machines are large enough to compare.
fn flatness(rows: &[Row]) -> Option<Verdict> {
    let large = || rows.iter().filter(|row| row.case.slots >= FLAT_FROM);
    let (first, last) = (large().next()?, large().next_back()?);
    if first.case.slots == last.case.slots {
        return None;
    }
    let least = large().map(Row::cost).fold(f64::INFINITY, f64::min);
    let most = large().map(Row::cost).fold(0.0, f64::max);
    let apart = most / least - 1.0;
    // Two costs of zero are equal; what is no number is not.
    let holds = most == 0.0 || apart <= FLAT_WITHIN;
    Some(Verdict {
        holds,
        text: format!(
            "cost per slot from {} to {} slots: {least:.3} to {most:.3} cache lines, {:.1} % apart (at most {:.0} %)",
            first.case.slots,
            last.case.slots,
            100.0 * apart,
            100.0 * FLAT_WITHIN
        ),
    })
}

/// Everything that was counted, one run a line.
pub(crate) fn json(seed: u64, rows: &[Row], verdicts: &[Verdict]) -> String {
    let runs: Vec<String> = rows.iter().map(|row| row_json(row).to_string()).collect();
    let verdicts: Vec<Value> = verdicts
        .iter()
        .map(|verdict| json!({ "holds": verdict.holds, "text": verdict.text }))
        .collect();
    format!(
        "{{\n  \"seed\": {seed},\n  \"runs\": [\n    {}\n  ],\n  \"verdicts\": {}\n}}\n",
        runs.join(",\n    "),
        Value::from(verdicts)
    )
}

fn row_json(row: &Row) -> Value {
    let (case, run) = (&row.case, &row.run);
    let periods: Vec<Value> = run
        .periods
        .iter()
        .map(|period| {
            json!({
                "online": period.online,
                "slot_reads": period.slot_reads,
                "node_reads": period.node_reads,
                "writes_by_level": period.writes[..run.levels],
                "move_writes_by_level": period.registry[..run.levels],
                "most_leaf": period.most_leaf,
                "most_inner": period.most_inner,
                "most_with_moves": period.most_with_moves,
                "reports": period.reports,
                "wakeups": period.wakeups,
                "came": period.came,
                "went": period.went,
            })
        })
        .collect();
    json!({
        "slots": case.slots,
        "fanout_leaf": case.fanout_leaf,
        "fanout": case.fanout,
        "readers_percent": case.readers,
        "churn_percent": case.churn,
        "drivers": case.drivers,
        "levels": run.levels,
        "nodes": run.nodes,
        "bytes_per_slot": run.bytes_per_slot,
        "coming_up_writes_by_level": run.coming_up[..run.levels],
        "bound_leaf": bound(case.fanout_leaf),
        "bound_inner": bound(case.fanout),
        "callbacks": run.callbacks,
        "slot_reads_per_slot": row.slots_read(),
        "node_reads_per_slot": row.nodes_read(),
        "node_writes_per_slot": row.nodes_written(),
        "cost_per_slot": row.cost(),
        "grace_periods": periods,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose one grace period read `lines` cache lines of every slot.
    fn row(slots: u32, lines: u64) -> Row {
        let period = Period {
            online: slots,
            slot_reads: lines * u64::from(slots),
            writes: [3, 7, 0, 0],
            most_leaf: 5,
            ..Period::default()
        };
        Row {
            case: Case {
                slots,
                fanout_leaf: 16,
                fanout: 64,
                seed: 1,
                grace_periods: 1,
                readers: 25,
                churn: 2,
                drivers: 1,
            },
            run: Run {
                levels: 2,
                nodes: 17,
                bytes_per_slot: 520.0,
                coming_up: [0; LEVELS],
                periods: vec![period],
                callbacks: 3,
                broken: None,
            },
        }
    }

    fn holds(rows: &[Row]) -> Vec<bool> {
        verdicts(rows).iter().map(|verdict| verdict.holds).collect()
    }

    #[test]
    fn flatness_is_judged_between_large_machines_only() {
        assert_eq!(holds(&[row(16, 90), row(256, 10)]), [true; 2]);
        assert_eq!(
            holds(&[row(16, 90), row(256, 10), row(4096, 11)]),
            [true; 3]
        );
        assert_eq!(holds(&[row(256, 10), row(4096, 13)]), [true, true, false]);
        assert_eq!(holds(&[row(256, 13), row(4096, 10)]), [true, true, false]);
    }

    #[test]
    fn a_broken_bound_is_a_verdict_that_names_the_machine() {
        let mut rows = [row(256, 10), row(4096, 10)];
        rows[1].run.broken = Some("in grace period 3 ...".to_owned());
        let verdicts = verdicts(&rows);
        assert!(!verdicts[1].holds);
        assert_eq!(
            verdicts[1].to_string(),
            "FALLS SHORT  4096 slots: in grace period 3 ..."
        );
    }

    #[test]
    fn tables_line_up_and_json_has_every_figure() {
        let rows = [row(16, 1), row(65536, 1)];
        for text in [render(&rows), each(&rows)] {
            let lines: Vec<usize> = text.lines().map(str::len).collect();
            assert!(
                lines.len() == 3 && lines.iter().all(|n| *n == lines[0]),
                "{text}"
            );
        }
        let text = json(9, &rows, &verdicts(&rows));
        let value: Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(value["seed"], 9);
        assert_eq!(value["runs"][1]["bound_leaf"], 18);
        let period = &value["runs"][1]["grace_periods"][0];
        assert_eq!(period["writes_by_level"], json!([3, 7]));
        assert_eq!(period["most_leaf"], 5);
        assert_eq!(value["verdicts"].as_array().map(Vec::len), Some(2));
    }
}
