//! The reviewed file: which benches there are, which libraries some want, and which ratio is enough.
//!
//! JSON with three lists. A *bench* is `layer`, `package`, `bench`, and the `libraries` that it can do without. A
//! *library* is the cargo `feature` that links it, what that `links`, and how to `install` it; or, where the bench tells by
//! a `cfg` and not by a feature that it is there, the name of that, and the `program` that builds it. A *row* is its `id`, the
//! bench identifiers of `ours` and `theirs`, the `peer`'s name, one of `at_most` (ours over theirs) and `at_least` (how
//! many times the work of one thread `threads` threads do), maybe the bench identifier of the physical `limit`, maybe the
//! `unit` of what is measured if that is not nanoseconds, and the `reason` for the number. In place of `peer` a row may have a list of `peers`, and `{peer}` in `theirs`: it is then
//! compared with the one that took least in the same round.

use serde_json::Value;

use super::Layer;
use crate::cargo::Failure;

/// The file, checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Targets {
    pub(super) benches: Vec<Bench>,
    pub(super) libraries: Vec<Library>,
    pub(super) rows: Vec<Target>,
}

/// A criterion bench target of a crate.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bench {
    pub(super) layer: Layer,
    pub(super) package: String,
    pub(super) bench: String,
    pub(super) libraries: Vec<String>,
}

/// A peer that cargo cannot fetch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Library {
    pub(super) feature: String,
    pub(super) links: Vec<String>,
    pub(super) install: String,
    /// Set in place of the feature.
    pub(super) cfg: Option<String>,
    /// What must be there to build it.
    pub(super) program: Option<String>,
}

/// What a ratio is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    /// Ours over theirs.
    AtMost(f64),
    /// The work of all threads over that of one, in the same time.
    AtLeast(f64),
}

/// One row of the table to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) id: String,
    pub(super) layer: Layer,
    pub(super) threads: u32,
    pub(super) ours: String,
    /// Names, and bench identifiers. At least one.
    pub(super) peers: Vec<(String, String)>,
    pub(super) limit: Option<String>,
    pub(super) bound: Bound,
    /// Of what is measured.
    pub(super) unit: String,
    pub(super) reason: String,
}

impl Targets {
    /// The error says what is wrong, and where.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let file: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let targets = Self {
            benches: each(&file, "benches", bench)?,
            libraries: each(&file, "libraries", library)?,
            rows: each(&file, "rows", target)?,
        };
        for bench in &targets.benches {
            for name in &bench.libraries {
                if targets.library(name).is_none() {
                    return Err(format!("{}: no library {name}", bench.bench));
                }
            }
        }
        Ok(targets)
    }

    /// The part of it that one layer has; all of it for none.
    pub(super) fn of_layer(mut self, layer: Option<Layer>) -> Result<Self, Failure> {
        let Some(layer) = layer else {
            return Ok(self);
        };
        self.benches.retain(|bench| bench.layer == layer);
        self.rows.retain(|row| row.layer == layer);
        if self.rows.is_empty() || self.benches.is_empty() {
            return Err(Failure::Usage(format!(
                "the layer {} has no benches with targets yet",
                layer.name()
            )));
        }
        Ok(self)
    }

    pub(super) fn library(&self, feature: &str) -> Option<&Library> {
        self.libraries.iter().find(|l| l.feature == feature)
    }
}

fn each<T>(
    file: &Value,
    key: &str,
    parse: impl Fn(&Value) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let list = file[key]
        .as_array()
        .ok_or_else(|| format!("no list {key}"))?;
    let numbered = (1..).zip(list);
    numbered
        .map(|(number, value)| parse(value).map_err(|what| format!("{key}, {number}: {what}")))
        .collect()
}

fn word(value: &Value, key: &str) -> Result<String, String> {
    match value[key].as_str() {
        Some(word) if !word.trim().is_empty() => Ok(word.to_owned()),
        _ => Err(format!("no {key}")),
    }
}

fn words(value: &Value, key: &str) -> Result<Vec<String>, String> {
    let list = value[key].as_array().ok_or_else(|| format!("no {key}"))?;
    list.iter()
        .map(|v| {
            v.as_str()
                .map(str::to_owned)
                .ok_or_else(|| format!("{key} is not of words"))
        })
        .collect()
}

fn layer(value: &Value) -> Result<Layer, String> {
    let name = word(value, "layer")?;
    Layer::named(&name).ok_or_else(|| format!("no layer is called {name}"))
}

fn bench(value: &Value) -> Result<Bench, String> {
    Ok(Bench {
        layer: layer(value)?,
        package: word(value, "package")?,
        bench: word(value, "bench")?,
        libraries: words(value, "libraries")?,
    })
}

fn library(value: &Value) -> Result<Library, String> {
    Ok(Library {
        feature: word(value, "feature")?,
        links: words(value, "links")?,
        install: word(value, "install")?,
        cfg: value["cfg"].as_str().map(str::to_owned),
        program: value["program"].as_str().map(str::to_owned),
    })
}

fn target(value: &Value) -> Result<Target, String> {
    let bound = match (value["at_most"].as_f64(), value["at_least"].as_f64()) {
        (Some(most), None) => Bound::AtMost(most),
        (None, Some(least)) => Bound::AtLeast(least),
        _ => return Err("needs one of at_most and at_least".to_owned()),
    };
    let threads = value["threads"].as_u64().and_then(|n| n.try_into().ok());
    let theirs = word(value, "theirs")?;
    let names = match value["peer"].as_str() {
        Some(_) => vec![word(value, "peer")?],
        None => words(value, "peers")?,
    };
    let identifier = |name: String| {
        let theirs = theirs.replace("{peer}", &name);
        (name, theirs)
    };
    let peers: Vec<(String, String)> = names.into_iter().map(identifier).collect();
    if peers.is_empty() || (peers.len() > 1 && !theirs.contains("{peer}")) {
        return Err("peers need {peer} in theirs".to_owned());
    }
    Ok(Target {
        id: word(value, "id")?,
        layer: layer(value)?,
        threads: threads.ok_or("no threads")?,
        ours: word(value, "ours")?,
        peers,
        limit: value["limit"].as_str().map(str::to_owned),
        bound,
        unit: value["unit"].as_str().unwrap_or("ns").to_owned(),
        reason: word(value, "reason")?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn target(id: &str, threads: u32, bound: Bound) -> Target {
        Target {
            id: id.to_owned(),
            layer: Layer::Rcu,
            threads,
            ours: format!("{id}/{threads}"),
            peers: vec![("peer".to_owned(), format!("peer/{threads}"))],
            limit: Some(format!("plain/{threads}")),
            bound,
            unit: "ns".to_owned(),
            reason: "a <reason>".to_owned(),
        }
    }

    const ROW: &str = r#"{"id":"a","layer":"rcu","threads":1,"ours":"g/a/1","peer":"p","theirs":"g/p/1","at_most":0.5,"reason":"r"}"#;

    fn file(row: &str) -> String {
        format!(
            r#"{{"benches":[{{"layer":"rcu","package":"p","bench":"b","libraries":[]}}],"libraries":[],"rows":[{row}]}}"#
        )
    }

    #[test]
    fn a_good_file_parses_and_is_cut_by_layer() {
        let targets = Targets::parse(&file(ROW)).unwrap();
        assert_eq!(targets.rows[0].bound, Bound::AtMost(0.5));
        assert_eq!(targets.rows[0].limit, None);
        assert!(targets.clone().of_layer(None).is_ok());
        assert!(targets.clone().of_layer(Some(Layer::Rcu)).is_ok());
        let error = targets.of_layer(Some(Layer::Slab)).unwrap_err();
        assert_eq!(error.exit_status(), 2);
    }

    #[test]
    fn a_row_may_have_several_peers() {
        let row = ROW.replace(r#""peer":"p""#, r#""peers":["p","q"]"#);
        let row = row.replace("g/p/1", "g/{peer}/1");
        let targets = Targets::parse(&file(&row)).unwrap();
        let peers = [("p", "g/p/1"), ("q", "g/q/1")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(targets.rows[0].peers, peers);
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        for (from, to, what) in [
            (r#""reason":"r""#, r#""reason":" ""#, "reason"),
            (
                r#""layer":"rcu","threads""#,
                r#""layer":"x","threads""#,
                "x",
            ),
            (r#""at_most":0.5,"#, "", "at_most"),
            (r#""at_most""#, r#""at_least":1,"at_most""#, "at_least"),
            (r#""peer":"p""#, r#""peers":["p","q"]"#, "{peer}"),
            (r#""threads":1"#, r#""threads":-1"#, "threads"),
            (r#""libraries":[]}"#, r#""libraries":["l"]}"#, "library l"),
            (r#""rows""#, r#""lines""#, "rows"),
        ] {
            let text = file(ROW).replace(from, to);
            let error = Targets::parse(&text).unwrap_err();
            assert!(error.contains(what), "{what}: {error}");
        }
        assert!(Targets::parse("[").is_err());
    }
}
