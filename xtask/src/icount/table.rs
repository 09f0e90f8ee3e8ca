//! What was counted, beside what is written down, and the verdict.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::asm::Counts;
use super::callgrind::Executed;

/// One fast path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// All of the fast path's code.
    pub(super) code: Counts,
    /// What one call runs of it, where callgrind was there.
    pub(super) run: Option<Executed>,
}

/// Rows by the names of the paths.
pub(super) type Table = BTreeMap<String, Row>;

/// Where a table differs from the one that is written down.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Worse in what must not get worse.
    pub(super) failures: Vec<String>,
    /// For somebody to look at.
    pub(super) remarks: Vec<String>,
}

/// By how many per cent a path may grow unremarked.
const GROWTH: u64 = 10;

/// Judges `now` by `written`.
pub(super) fn judge(now: &Table, written: &Table) -> Verdict {
    let mut verdict = Verdict::default();
    for (name, row) in now {
        let Some(old) = written.get(name) else {
            verdict.failures.push(format!("{name} is not in the table"));
            continue;
        };
        let run = |r: &Row| r.run.unwrap_or_default();
        let both = row.run.is_some() && old.run.is_some();
        for (what, is, was) in [
            ("locked instructions", row.code.locked, old.code.locked),
            ("fences", row.code.fences, old.code.fences),
        ] {
            if is > was {
                verdict.failures.push(format!(
                    "{name}: {is} {what} in its code, {was} in the table"
                ));
            }
        }
        if both && run(row).locked > run(old).locked {
            let (is, was) = (run(row).locked, run(old).locked);
            verdict.failures.push(format!(
                "{name}: {is} locked instructions executed, {was} in the table"
            ));
        }
        let grown = |is: u64, was: u64| is * 100 > was * (100 + GROWTH);
        if grown(row.code.instructions, old.code.instructions) {
            let (is, was) = (row.code.instructions, old.code.instructions);
            verdict.remarks.push(format!(
                "{name}: {is} instructions of code, {was} in the table"
            ));
        }
        if both && grown(run(row).instructions, run(old).instructions) {
            let (is, was) = (run(row).instructions, run(old).instructions);
            verdict.remarks.push(format!(
                "{name}: {is} instructions executed, {was} in the table"
            ));
        }
    }
    let gone = written.keys().filter(|name| !now.contains_key(*name));
    verdict
        .failures
        .extend(gone.map(|name| format!("{name} is in the table, but is no probe")));
    verdict
}

const COLUMNS: [&str; 13] = [
    "path", "instr", "loads", "stores", "branches", "locked", "fences", "calls", "instr", "loads",
    "stores", "branches", "locked",
];

/// The table for a terminal. A count that is not what is written down shows the difference.
pub(super) fn render(now: &Table, written: &Table) -> String {
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    lines.extend(
        now.iter()
            .map(|(name, row)| cells(name, row, written.get(name))),
    );
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let code: usize = widths[1..8].iter().map(|w| w + 2).sum();
    let mut text = format!("{:1$}", "", widths[0]);
    text.push_str(&format!(
        "  {:<1$}{2}\n",
        "all of its code", code, "one call executes"
    ));
    for line in &lines {
        let mut set = format!("{:<1$}", line[0], widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            set.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(set.trim_end());
        text.push('\n');
    }
    text
}

fn cells(name: &str, row: &Row, old: Option<&Row>) -> [String; 13] {
    let (now, was) = (numbers(row), old.map(numbers));
    let cell = |column: usize| match (now[column], was.and_then(|w| w[column])) {
        (None, _) => "-".to_owned(),
        (Some(is), Some(was)) if is != was => {
            format!("{is} ({:+})", is.cast_signed() - was.cast_signed())
        }
        (Some(is), _) => is.to_string(),
    };
    std::array::from_fn(|column| {
        if column == 0 {
            name.to_owned()
        } else {
            cell(column - 1)
        }
    })
}

fn numbers(row: &Row) -> [Option<u64>; 12] {
    let c = row.code;
    let run = |f: fn(Executed) -> u64| row.run.map(f);
    [
        Some(c.instructions),
        Some(c.loads),
        Some(c.stores),
        Some(c.branches),
        Some(c.locked),
        Some(c.fences),
        Some(c.calls),
        run(|r| r.instructions),
        run(|r| r.loads),
        run(|r| r.stores),
        run(|r| r.branches),
        run(|r| r.locked),
    ]
}

/// The table as JSON, a row a line.
pub(super) fn json(table: &Table, compiler: &str) -> String {
    let row = |(name, row): (&String, &Row)| {
        let c = row.code;
        let code = json!({
            "instructions": c.instructions, "loads": c.loads, "stores": c.stores, "branches": c.branches,
            "locked": c.locked, "fences": c.fences, "calls": c.calls,
        });
        let run = row.run.map(|r| {
            json!({
                "instructions": r.instructions, "loads": r.loads, "stores": r.stores, "branches": r.branches,
                "locked": r.locked,
            })
        });
        json!({ "path": name, "code": code, "run": run }).to_string()
    };
    let rows: Vec<String> = table.iter().map(row).collect();
    format!(
        "{{\"compiler\":{},\"rows\":[\n  {}\n]}}\n",
        json!(compiler),
        rows.join(",\n  ")
    )
}

/// Reads what [`json()`] wrote.
pub(super) fn from_json(text: &str) -> Result<Table, String> {
    let file: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let rows = file["rows"].as_array().ok_or("no list rows")?;
    rows.iter()
        .map(|row| parse(row).ok_or_else(|| format!("not a row: {row}")))
        .collect()
}

fn parse(row: &Value) -> Option<(String, Row)> {
    let code = |key: &str| row["code"][key].as_u64();
    let run = |key: &str| row["run"][key].as_u64();
    let counts = Counts {
        instructions: code("instructions")?,
        loads: code("loads")?,
        stores: code("stores")?,
        branches: code("branches")?,
        locked: code("locked")?,
        fences: code("fences")?,
        calls: code("calls")?,
    };
    let executed = if row["run"].is_null() {
        None
    } else {
        Some(Executed {
            instructions: run("instructions")?,
            loads: run("loads")?,
            stores: run("stores")?,
            branches: run("branches")?,
            locked: run("locked")?,
        })
    };
    Some((
        row["path"].as_str()?.to_owned(),
        Row {
            code: counts,
            run: executed,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(change: impl Fn(&mut Row)) -> Table {
        let mut row = Row {
            code: Counts {
                instructions: 100,
                loads: 9,
                stores: 4,
                branches: 6,
                ..Counts::default()
            },
            run: Some(Executed {
                instructions: 50,
                loads: 7,
                stores: 3,
                branches: 4,
                locked: 0,
            }),
        };
        change(&mut row);
        Table::from([("read_guard".to_owned(), row)])
    }

    #[test]
    fn locked_instructions_and_fences_fail_and_growth_is_remarked() {
        let written = table(|_| {});
        assert_eq!(judge(&written, &written), Verdict::default());
        type Change = fn(&mut Row);
        let cases: [(Change, usize, usize); 7] = [
            (|r| r.code.locked += 1, 1, 0),
            (|r| r.code.fences += 1, 1, 0),
            (|r| r.run.as_mut().unwrap().locked += 1, 1, 0),
            (|r| r.code.instructions = 110, 0, 0),
            (|r| r.code.instructions = 111, 0, 1),
            (|r| r.run.as_mut().unwrap().instructions = 56, 0, 1),
            (|r| r.run = None, 0, 0),
        ];
        for (number, (change, failures, remarks)) in cases.into_iter().enumerate() {
            let verdict = judge(&table(change), &written);
            assert_eq!(
                (verdict.failures.len(), verdict.remarks.len()),
                (failures, remarks),
                "{number}: {verdict:?}"
            );
        }
        assert_eq!(judge(&written, &Table::new()).failures.len(), 1);
        assert_eq!(judge(&Table::new(), &written).failures.len(), 1);
    }

    #[test]
    fn what_is_written_is_read_and_shown() {
        for written in [table(|_| {}), table(|r| r.run = None)] {
            assert_eq!(from_json(&json(&written, "rustc 1")).unwrap(), written);
        }
        assert!(from_json("{}").is_err() && from_json(r#"{"rows":[{}]}"#).is_err());
        let shown = render(&table(|r| r.code.loads = 12), &table(|_| {}));
        assert!(
            shown.contains("12 (+3)") && shown.contains("executes"),
            "{shown}"
        );
    }
}
