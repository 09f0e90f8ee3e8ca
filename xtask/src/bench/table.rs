//! What the rounds say: one row a target, the table, and the JSON.

use serde_json::{Value, json};

use super::rounds::Round;
use super::targets::{Bound, Target};

/// A target and what was measured for it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) target: Target,
    /// The median round's, where ours was measured.
    pub(super) ours_ns: Option<f64>,
    /// The peer: of several, the one that took least in the median.
    pub(super) peer: String,
    /// The median round's of that peer, which may be absent.
    pub(super) peer_ns: Option<f64>,
    /// All peers of the row, as far as they were measured.
    pub(super) peers: Vec<(String, Option<f64>)>,
    pub(super) limit_ns: Option<f64>,
    /// The median of the rounds' ratios.
    pub(super) ratio: Option<f64>,
}

/// A row of an earlier run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Earlier {
    pub(super) id: String,
    pub(super) threads: u64,
    pub(super) peer: String,
    pub(super) ours_ns: Option<f64>,
    pub(super) ratio: Option<f64>,
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len().checked_sub(1)? / 2;
    if values.len() % 2 == 1 {
        Some(values[middle])
    } else {
        Some(f64::midpoint(values[middle], values[middle + 1]))
    }
}

impl Row {
    pub(super) fn of(target: &Target, rounds: &[Round]) -> Self {
        let all = |id: &str| median(rounds.iter().filter_map(|r| r.get(id).copied()).collect());
        let ratio = |round: &Round| {
            let theirs = target.peers.iter().filter_map(|(_, id)| round.get(id));
            let (ours, theirs) = (round.get(&target.ours)?, theirs.copied().reduce(f64::min)?);
            Some(match target.bound {
                Bound::AtMost(_) => ours / theirs,
                Bound::AtLeast(_) => f64::from(target.threads) * theirs / ours,
            })
        };
        let measured = target.peers.iter();
        let measured = measured.filter_map(|(name, id)| Some((name, all(id)?)));
        let least = measured.min_by(|a, b| a.1.total_cmp(&b.1));
        let names = || {
            let names: Vec<&str> = target.peers.iter().map(|p| p.0.as_str()).collect();
            names.join(", ")
        };
        Self {
            ours_ns: all(&target.ours),
            peer: least.map_or_else(names, |(name, _)| name.clone()),
            peer_ns: least.map(|(_, ns)| ns),
            peers: (target.peers.iter())
                .map(|(name, id)| (name.clone(), all(id)))
                .collect(),
            limit_ns: target.limit.as_deref().and_then(all),
            ratio: median(rounds.iter().filter_map(ratio).collect()),
            target: target.clone(),
        }
    }

    pub(super) fn is_of_trace(&self) -> bool {
        self.target.ours.starts_with("trace")
    }

    /// `None` where nothing was measured.
    pub(super) fn holds(&self) -> Option<bool> {
        let ratio = self.ratio?;
        Some(match self.target.bound {
            Bound::AtMost(most) => ratio <= most,
            Bound::AtLeast(least) => ratio >= least,
        })
    }

    pub(super) fn bound(&self) -> f64 {
        match self.target.bound {
            Bound::AtMost(bound) | Bound::AtLeast(bound) => bound,
        }
    }

    /// The ratio as a share of what it may be: at most one where the target holds.
    pub(super) fn share(&self) -> Option<f64> {
        let ratio = self.ratio?;
        Some(match self.target.bound {
            Bound::AtMost(most) => ratio / most,
            Bound::AtLeast(least) => least / ratio,
        })
    }

    pub(super) fn bound_in_words(&self) -> String {
        match self.target.bound {
            Bound::AtMost(most) => format!("at most {most:.2}"),
            Bound::AtLeast(least) => format!("at least {least:.2}"),
        }
    }

    pub(super) fn verdict(&self) -> &'static str {
        match self.holds() {
            Some(true) => "holds",
            Some(false) => "FALLS SHORT",
            None => "not measured",
        }
    }

    /// The row in words.
    pub(super) fn label(&self) -> String {
        let Target { id, threads, .. } = &self.target;
        let peer = &self.peer;
        match self.ratio {
            Some(ratio) => format!("{id}, {threads}, {ratio:.2} x {peer}"),
            None => format!("{id}, {threads}, {peer}"),
        }
    }

    pub(super) fn cells(&self) -> [String; 8] {
        let sign = match self.target.bound {
            Bound::AtMost(_) => "<=",
            Bound::AtLeast(_) => ">=",
        };
        [
            self.target.id.clone(),
            self.target.threads.to_string(),
            match (self.ours_ns, self.target.unit.as_str()) {
                (None, _) | (_, "ns") => number(self.ours_ns),
                (_, unit) => format!("{} {unit}", number(self.ours_ns)),
            },
            self.peer.clone(),
            number(self.peer_ns),
            number(self.ratio),
            format!("{sign} {:.2}", self.bound()),
            self.verdict().to_owned(),
        ]
    }
}

pub(super) fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 100.0 => format!("{value:.2}"),
        Some(value) => grouped(value),
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The row of an earlier run that is about the same.
pub(super) fn earlier<'e>(before: &'e [Earlier], row: &Row) -> Option<&'e Earlier> {
    let target = &row.target;
    let same = |e: &&Earlier| {
        e.id == target.id && e.threads == u64::from(target.threads) && e.peer == row.peer
    };
    before.iter().find(same)
}

pub(super) const COLUMNS: [&str; 8] = [
    "id", "threads", "ours", "peer", "peer's", "ratio", "target", "verdict",
];

/// Columns of words; the others hold numbers and are set to the right.
pub(super) const WORDS: [usize; 3] = [0, 3, 7];

/// The table for a terminal; nanoseconds where nothing else is said.
pub(super) fn render(rows: &[Row]) -> String {
    let header = COLUMNS.map(str::to_owned);
    let lines: Vec<[String; 8]> = [header]
        .into_iter()
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].len())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut set = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            if WORDS.contains(&column) {
                set.push_str(&format!("{cell:<width$}  "));
            } else {
                set.push_str(&format!("{cell:>width$}  "));
            }
        }
        text.push_str(set.trim_end());
        text.push('\n');
    }
    text
}

/// The rows as JSON, one a line; null where nothing was measured.
pub(super) fn json(rows: &[Row]) -> String {
    let lines: Vec<String> = rows.iter().map(|row| row_json(row).to_string()).collect();
    format!("{{\"rows\":[\n  {}\n]}}\n", lines.join(",\n  "))
}

fn row_json(row: &Row) -> Value {
    json!({
        "id": row.target.id,
        "threads": row.target.threads,
        "ours_ns": row.ours_ns,
        "peer": row.peer,
        "peer_ns": row.peer_ns,
        "ratio": row.ratio,
        "target": row.bound(),
        "holds": row.holds(),
    })
}

/// Reads back what [`json()`] wrote.
pub(super) fn from_json(text: &str) -> Result<Vec<Earlier>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let rows = value["rows"].as_array().ok_or("no rows")?;
    let row = |row: &Value| {
        Some(Earlier {
            id: row["id"].as_str()?.to_owned(),
            threads: row["threads"].as_u64()?,
            peer: row["peer"].as_str()?.to_owned(),
            ours_ns: row["ours_ns"].as_f64(),
            ratio: row["ratio"].as_f64(),
        })
    };
    let all: Option<Vec<Earlier>> = rows.iter().map(row).collect();
    all.ok_or_else(|| "a row without id, threads or peer".to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::targets::tests::target;
    use super::*;

    pub(in crate::bench) fn round(values: &[(&str, f64)]) -> Round {
        values
            .iter()
            .map(|(id, ns)| ((*id).to_owned(), *ns))
            .collect()
    }

    pub(in crate::bench) fn rows() -> Vec<Row> {
        let rounds = [round(&[
            ("a/1", 2.0),
            ("a/2", 2.1),
            ("peer/1", 4.0),
            ("peer/2", 2.0),
            ("plain/1", 1.0),
        ])];
        [
            target("a", 1, Bound::AtMost(0.6)),
            target("a", 2, Bound::AtLeast(1.95)),
            target("b", 1, Bound::AtMost(0.5)),
        ]
        .map(|target| Row::of(&target, &rounds))
        .to_vec()
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // A machine that runs at half its speed in one round: the ratio does not see it.
        let rounds = [
            round(&[("a/1", 1.0), ("peer/1", 2.0)]),
            round(&[("a/1", 2.0), ("peer/1", 4.0)]),
            round(&[("a/1", 1.0), ("peer/1", 8.0)]),
        ];
        let row = Row::of(&target("a", 1, Bound::AtMost(0.5)), &rounds);
        assert_eq!((row.ratio, row.holds()), (Some(0.5), Some(true)));
        assert_eq!((row.ours_ns, row.peer_ns), (Some(1.0), Some(4.0)));
        assert_eq!(median(vec![1.0, 3.0]), Some(2.0));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn of_several_peers_each_rounds_best_counts() {
        let mut target = target("a", 1, Bound::AtMost(0.5));
        target
            .peers
            .push(("other".to_owned(), "other/1".to_owned()));
        target
            .peers
            .push(("absent".to_owned(), "absent/1".to_owned()));
        let rounds = [
            round(&[("a/1", 1.0), ("peer/1", 2.0), ("other/1", 5.0)]),
            round(&[("a/1", 1.0), ("peer/1", 9.0), ("other/1", 4.0)]),
            round(&[("a/1", 1.0), ("peer/1", 9.0), ("other/1", 8.0)]),
        ];
        let row = Row::of(&target, &rounds);
        assert_eq!((row.ratio, row.peer_ns), (Some(0.25), Some(5.0)));
        assert_eq!(row.peer, "other");
        assert_eq!(Row::of(&target, &[]).peer, "peer, other, absent");
    }

    #[test]
    fn verdicts_follow_the_bound() {
        let rows = rows();
        let holds: Vec<_> = rows.iter().map(Row::holds).collect();
        assert_eq!(holds, [Some(true), Some(false), None]);
        assert!((rows[1].ratio.unwrap() - 2.0 * 2.0 / 2.1).abs() < 1e-9);
        assert_eq!(rows[2].verdict(), "not measured");
    }

    #[test]
    fn a_missing_peer_is_not_measured_and_ours_still_is() {
        let rounds = [round(&[("a/1", 1.0)])];
        let row = Row::of(&target("a", 1, Bound::AtMost(0.5)), &rounds);
        assert_eq!(
            (row.ours_ns, row.peer_ns, row.ratio),
            (Some(1.0), None, None)
        );
        assert_eq!(row.cells()[4..], ["-", "-", "<= 0.50", "not measured"]);
    }

    #[test]
    fn json_comes_back() {
        let text = json(&rows());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["rows"][0].as_object().map(|row| row.len()), Some(8));
        assert!(value["rows"][2]["holds"].is_null());
        let earlier = from_json(&text).unwrap();
        assert_eq!(earlier[0].ratio, Some(0.5));
        assert_eq!(earlier[2].ratio, None);
        for odd in ["", "{}", r#"{"rows":[{}]}"#] {
            assert!(from_json(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let words = [Some(0.666), Some(99.0), Some(100.4), Some(1234567.0), None].map(number);
        assert_eq!(words, ["0.67", "99.00", "100", "1,234,567", "-"]);
    }

    #[test]
    fn columns_line_up() {
        let text = render(&rows());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let at = lines[0].find("verdict").unwrap();
        assert!(lines[1][at..].starts_with("holds") && lines[2][at..].starts_with("FALLS SHORT"));
    }
}
