//! What a worker tells: its lines read, and put into words.

use std::fmt::Write;

use serde_json::{Map, Value};

/// What was counted, as a status or a result tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    pub(super) seconds: f64,
    pub(super) counts: Vec<(String, u64)>,
    pub(super) faults: Vec<(String, u64)>,
    /// Readers by the stage of their element; what is beyond the first two is an error.
    pub(super) pipe: Vec<u64>,
    /// How often an element has come to each stage from removal on.
    pub(super) circulation: Vec<u64>,
    /// What the thing under test counts itself.
    pub(super) own: Map<String, Value>,
    pub(super) first_fault_seconds: Option<f64>,
    pub(super) messages: Vec<String>,
}

/// One line of a worker.
#[derive(Debug)]
pub(super) enum Line {
    Status(Found),
    Result(Found),
}

pub(super) fn parse(line: &str) -> Result<Line, String> {
    let odd = || format!("the worker wrote a line that is not its protocol: {line}");
    let value: Value = serde_json::from_str(line).map_err(|_| odd())?;
    if let Some(status) = value.get("status") {
        found(status).map(Line::Status).ok_or_else(odd)
    } else {
        let result = value.get("result").and_then(found);
        result.map(Line::Result).ok_or_else(odd)
    }
}

fn found(value: &Value) -> Option<Found> {
    let numbers = |key: &str| {
        let pairs = value[key].as_object()?.iter();
        pairs
            .map(|(name, n)| Some((name.clone(), n.as_u64()?)))
            .collect::<Option<Vec<_>>>()
    };
    let words = value["messages"].as_array().into_iter().flatten();
    let list = |key: &str| {
        let numbers = value[key].as_array()?.iter();
        numbers.map(Value::as_u64).collect::<Option<Vec<u64>>>()
    };
    Some(Found {
        seconds: value["seconds"].as_f64()?,
        counts: numbers("counts")?,
        faults: numbers("faults")?,
        pipe: list("pipe")?,
        circulation: list("circulation")?,
        own: value["own"].as_object().cloned().unwrap_or_default(),
        first_fault_seconds: value["first_fault_seconds"].as_f64(),
        messages: words.filter_map(Value::as_str).map(str::to_owned).collect(),
    })
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Found {
    fn count(&self, name: &str) -> u64 {
        let found = self.counts.iter().find(|(count, _)| count == name);
        found.map_or(0, |(_, n)| *n)
    }

    pub(super) fn nr_faults(&self) -> u64 {
        self.faults.iter().map(|(_, n)| n).sum()
    }

    /// One line while it runs.
    pub(super) fn status(&self) -> String {
        let mut text = format!("{:.0} s", self.seconds);
        for name in ["reads", "updates", "allocations", "frees", "retires"] {
            if self.count(name) > 0 {
                let n = grouped(self.count(name));
                // Writing to a string does not fail.
                let _ = write!(text, ", {n} {name}");
            }
        }
        for (fault, n) in &self.faults {
            let _ = write!(text, ", !!! {n} x {fault}");
        }
        text
    }

    /// Everything, once it is over.
    pub(super) fn statistics(&self) -> String {
        let mut text = String::new();
        let mut paragraph = |what: &str, pairs: &mut dyn Iterator<Item = String>| {
            let pairs: Vec<String> = pairs.collect();
            if !pairs.is_empty() {
                let _ = writeln!(text, "  {what}: {}", pairs.join(", "));
            }
        };
        let counts = self.counts.iter();
        paragraph(
            "counted",
            &mut counts.map(|(name, n)| format!("{name} {}", grouped(*n))),
        );
        if self.pipe.iter().any(|n| *n > 0) {
            paragraph("reader pipe", &mut self.pipe.iter().map(|n| grouped(*n)));
            let stages = self.circulation.iter();
            paragraph("circulation", &mut stages.map(|n| grouped(*n)));
        }
        let own = self.own.iter();
        paragraph(
            "its own",
            &mut own.map(|(name, value)| match value.as_u64() {
                Some(n) => format!("{name} {}", grouped(n)),
                None => format!("{name} {}", value.as_str().unwrap_or("?")),
            }),
        );
        for (fault, n) in &self.faults {
            let _ = writeln!(text, "  !!! {n} x {fault}");
        }
        for message in &self.messages {
            let _ = writeln!(text, "  !!! {message}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"result":{"seconds":1.5,"counts":{"reads":1234567},"faults":{},"pipe":[9,1,0],"circulation":[5,4],
        "own":{"grace periods":5,"fences":"Fenced"},"first_fault_seconds":null,"messages":[]}}"#;

    #[test]
    fn a_result_is_read_and_told() {
        let Ok(Line::Result(found)) = parse(LINE) else {
            panic!("a result");
        };
        assert_eq!((found.seconds, found.nr_faults()), (1.5, 0));
        let text = found.statistics();
        for part in ["reads 1,234,567", "reader pipe: 9, 1, 0", "fences Fenced"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("!!!"), "{text}");
        assert_eq!(found.status(), "2 s, 1,234,567 reads");
    }

    #[test]
    fn faults_stand_out() {
        let line = LINE.replace(r#""faults":{}"#, r#""faults":{"too short":2}"#);
        let Ok(Line::Result(found)) = parse(&line) else {
            panic!("a result");
        };
        assert!(found.status().contains("!!! 2 x too short"));
        assert!(found.statistics().contains("\n  !!! 2 x too short\n"));
    }

    #[test]
    fn odd_lines_are_errors() {
        for line in [
            "hello",
            "{}",
            r#"{"result":{"seconds":1}}"#,
            r#"{"status":5}"#,
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
