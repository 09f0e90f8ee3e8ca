//! What the runs say: one row a case, the table, the JSON.

use serde_json::{Value, json};

use super::Machine;
use super::options::{self, Case, Engine};
use super::runner::Run;

/// A case and its median run.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) engine: Engine,
    pub(crate) run: Run,
}

impl Row {
    /// Takes the median by ns per object, whole: its other columns are of the same run. Only `outstanding` is the
    /// worst of all repeats, because one lost object in one of them is a bug.
    pub(crate) fn median(case: &Case, mut runs: Vec<Run>) -> Option<Self> {
        let outstanding = runs.iter().filter_map(|run| run.outstanding).max();
        runs.sort_by(|a, b| a.ns_per_object.total_cmp(&b.ns_per_object));
        let middle = runs.len().checked_sub(1)? / 2;
        let mut run = runs.swap_remove(middle);
        run.outstanding = outstanding;
        Some(Self {
            workload: case.workload.label(),
            engine: case.engine,
            run,
        })
    }

    /// Which rows are compared with each other.
    fn group(&self) -> (&str, u32) {
        (&self.workload, self.run.threads)
    }

    /// The group in words.
    pub(crate) fn group_label(&self) -> String {
        options::group(&self.workload, self.run.threads)
    }

    fn objects_per_grace_period(&self) -> Option<f64> {
        let periods = self.run.grace_periods.filter(|n| *n > 0)?;
        Some(self.run.objects as f64 / periods as f64)
    }

    /// A line on what this row never freed.
    pub(crate) fn leak(&self) -> Option<String> {
        let lost = self.run.outstanding.filter(|n| *n > 0)?;
        Some(format!(
            "{} on {}: {lost}",
            self.engine.name(),
            self.group_label()
        ))
    }
}

/// The row of `engine` that `row` is to be compared with.
pub(super) fn peer<'r>(rows: &'r [Row], row: &Row, engine: Engine) -> Option<&'r Row> {
    rows.iter()
        .find(|other| other.engine == engine && other.group() == row.group())
}

/// `row`'s cost over that of `engine` in the same group.
pub(super) fn ratio(rows: &[Row], row: &Row, engine: Engine) -> Option<f64> {
    let other = peer(rows, row, engine)?;
    Some(row.run.ns_per_object / other.run.ns_per_object)
}

pub(crate) const COLUMNS: [&str; 13] = [
    "workload",
    "threads",
    "engine",
    "ns/object",
    "x crossbeam",
    "x kovan",
    "x malloc",
    "grace periods",
    "objects/GP",
    "peak extra KiB",
    "outstanding",
    "Mreads/s",
    "p99.9 ns",
];

/// Columns that hold words; the others hold numbers and are set to the right.
pub(crate) const WORDS: [usize; 2] = [0, 2];

/// The cells of all rows, in the order of [`COLUMNS`]; "-" where a column does not apply.
pub(crate) fn cells(rows: &[Row]) -> Vec<[String; 13]> {
    fn cell<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
        value.map_or_else(|| "-".to_owned(), show)
    }
    let line = |row: &Row| {
        let run = &row.run;
        [
            row.workload.clone(),
            run.threads.to_string(),
            row.engine.name().to_owned(),
            format!("{:.1}", run.ns_per_object),
            cell(ratio(rows, row, Engine::CrossbeamEpoch), |r| {
                format!("{r:.2}")
            }),
            cell(ratio(rows, row, Engine::Kovan), |r| format!("{r:.2}")),
            cell(ratio(rows, row, Engine::MallocFree), |r| format!("{r:.2}")),
            cell(run.grace_periods, |n| n.to_string()),
            cell(row.objects_per_grace_period(), |n| format!("{n:.1}")),
            cell(run.peak_extra_kib, |n| n.to_string()),
            cell(run.outstanding, |n| n.to_string()),
            cell(run.reads_per_second, |n| format!("{:.1}", n / 1e6)),
            cell(run.retire_ns, |l| l.p999.to_string()),
        ]
    };
    rows.iter().map(line).collect()
}

/// The table for a terminal: aligned, a gap between groups.
pub(crate) fn render(rows: &[Row]) -> String {
    let cells = cells(rows);
    let width = |column: usize| {
        let widest = cells.iter().map(|line| line[column].chars().count()).max();
        widest.unwrap_or(0).max(COLUMNS[column].len())
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let set = |line: &[&str]| {
        let mut text = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            if column > 0 {
                text.push_str("  ");
            }
            if WORDS.contains(&column) {
                text.push_str(&format!("{cell:<width$}"));
            } else {
                text.push_str(&format!("{cell:>width$}"));
            }
        }
        text.trim_end().to_owned() + "\n"
    };
    let mut text = set(&COLUMNS);
    let mut group = None;
    for (row, line) in rows.iter().zip(&cells) {
        if group.replace(row.group()) != Some(row.group()) {
            text.push('\n');
        }
        text.push_str(&set(&line.each_ref().map(String::as_str)));
    }
    text
}

/// The runs as JSON, one run a line; null where a column does not apply.
pub(crate) fn json(machine: &Machine, rows: &[Row]) -> String {
    let machine = json!({
        "cpus": machine.cpus,
        "kernel": machine.kernel,
        "membarrier": machine.membarrier,
    });
    let runs: Vec<String> = rows.iter().map(|row| row_json(row).to_string()).collect();
    let runs = runs.join(",\n    ");
    format!("{{\n  \"machine\": {machine},\n  \"runs\": [\n    {runs}\n  ]\n}}\n")
}

fn row_json(row: &Row) -> Value {
    let run = &row.run;
    json!({
        "workload": row.workload,
        "engine": row.engine.name(),
        "threads": run.threads,
        "objects": run.objects,
        "ns_per_object": run.ns_per_object,
        "grace_periods": run.grace_periods,
        "peak_extra_kib": run.peak_extra_kib,
        "outstanding": run.outstanding,
        "reads_per_second": run.reads_per_second,
        "retire_ns": run.retire_ns.map(|l| json!({ "p50": l.p50, "p99": l.p99, "p999": l.p999, "max": l.max })),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::scale::options::Workload;

    pub(crate) fn row(workload: &str, threads: u32, engine: Engine, ns: f64, gps: u64) -> Row {
        Row {
            workload: workload.to_owned(),
            engine,
            run: Run {
                threads,
                objects: 1000,
                ns_per_object: ns,
                grace_periods: Some(gps),
                peak_extra_kib: Some(512),
                outstanding: Some(0),
                reads_per_second: None,
                retire_ns: None,
                samples: Vec::new(),
            },
        }
    }

    pub(crate) fn sample() -> Vec<Row> {
        vec![
            row("flood", 1, Engine::Kvfree, 3.0, 10),
            row("flood", 1, Engine::KvfreeUnbatched, 100.0, 500),
            row("flood", 1, Engine::CrossbeamEpoch, 30.0, 0),
            row("flood", 1, Engine::Kovan, 2.0, 0),
            row("flood", 2, Engine::Kovan, 2.0, 0),
        ]
    }

    #[test]
    fn the_median_is_one_run_but_outstanding_is_the_worst() {
        let case = Case {
            workload: Workload::Flood,
            threads: 1,
            engine: Engine::Kvfree,
        };
        let mut runs: Vec<Run> = [9.0, 1.0, 5.0]
            .map(|ns| row("flood", 1, Engine::Kvfree, ns, ns as u64).run)
            .to_vec();
        runs[0].outstanding = Some(7);
        let row = Row::median(&case, runs).expect("three runs");
        assert_eq!(row.run.ns_per_object, 5.0);
        assert_eq!(row.run.grace_periods, Some(5));
        assert_eq!(row.run.outstanding, Some(7));
        assert_eq!(row.leak().as_deref(), Some("kvfree on flood, 1 thread: 7"));
        assert!(Row::median(&case, Vec::new()).is_none());
    }

    #[test]
    fn columns_line_up_and_ratios_stay_in_their_group() {
        let rows = sample();
        let text = render(&rows);
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 6);
        let end = lines[0].find("ns/object").expect("header") + "ns/object".len();
        assert!(
            lines[1..]
                .iter()
                .all(|line| line.as_bytes()[end - 2] == b'.')
        );
        let cells = cells(&rows);
        assert_eq!(cells[0][4], "0.10");
        assert_eq!(cells[0][5], "1.50");
        assert_eq!(cells[4][4], "-");
    }

    #[test]
    fn json_has_nulls_where_a_column_does_not_apply() {
        let machine = Machine {
            cpus: 2,
            kernel: None,
            membarrier: Some(true),
        };
        let text = json(&machine, &sample());
        let value: Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(value["machine"]["membarrier"], true);
        assert!(value["machine"]["kernel"].is_null());
        assert_eq!(value["runs"].as_array().map(Vec::len), Some(5));
        assert_eq!(value["runs"][0]["grace_periods"], 10);
        assert!(value["runs"][0]["reads_per_second"].is_null());
        assert_eq!(value["runs"][0].as_object().map(|run| run.len()), Some(10));
    }
}
