//! `cargo xtask bench`: small pieces beside their peers, each ratio against the target that the design set for it.
//!
//! The benches are criterion's, in the crates' `benches/`; ours and the peers run in one process, one workload generic
//! over them. criterion runs one after the other, and a machine drifts: so the verb runs whole rounds, takes each ratio
//! within a round, and reports the median of the rounds. What is compared with what, and which ratio is enough, is
//! `xtask/bench-targets.json`; every row of it gives its reason.

mod chart;
mod report;
mod rounds;
mod table;
mod targets;
mod traces;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use self::rounds::Round;
use self::table::Row;
use self::targets::Targets;
use crate::cargo::{Failure, Workspace, compiler_version};
use crate::scale::BUNDLED_TRACE;

/// The reviewed file, from the workspace root.
const TARGETS: &str = "xtask/bench-targets.json";
/// Rounds of each bench; ratios are taken within a round, and their median is reported.
const ROUNDS: u32 = 3;

/// Measure the pieces of a layer beside their peers, and judge the ratios
#[derive(Args, Debug)]
#[command(
    long_about = "Runs the criterion benches of a layer in rounds, ours and the peers in one process, and judges the \
                  median ratios by xtask/bench-targets.json. Prints a table and writes report.html under target/bench.",
    after_help = "Examples:\n  cargo xtask bench --layer rcu\n  cargo xtask bench --quick --json now.json\n  \
                  cargo xtask bench --layer rcu --history before.json --check\n  \
                  cargo xtask bench --layer slab --trace redis.trace.zst"
)]
pub(crate) struct Options {
    /// The layer to measure [default: all that have benches]
    #[arg(long, value_name = "NAME")]
    layer: Option<Layer>,
    /// One short round: a smoke test, not a measurement
    #[arg(long)]
    quick: bool,
    /// Rounds of each bench [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: Option<u32>,
    /// Also write the rows as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// An earlier run's JSON to show beside this one in report.html
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Exit with status 1 if a target that was measured is missed
    #[arg(long)]
    check: bool,
    /// Replay this allocation trace, zstd or plain, instead of the bundled one on the slab layer's allocators; may be repeated
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Write no report.html
    #[arg(long)]
    no_report: bool,
}

/// A layer, as an option and the file of targets name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layer {
    Rcu,
    Pagealloc,
    Slab,
    Kvfree,
}

impl Layer {
    const ALL: [Self; 4] = [Self::Rcu, Self::Pagealloc, Self::Slab, Self::Kvfree];

    fn name(self) -> &'static str {
        match self {
            Self::Rcu => "rcu",
            Self::Pagealloc => "pagealloc",
            Self::Slab => "slab",
            Self::Kvfree => "kvfree",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layer| layer.name() == name)
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let targets = Targets::parse(&read(&workspace.root.join(TARGETS))?)
        .map_err(|what| Failure::Usage(format!("{TARGETS}: {what}")))?
        .of_layer(options.layer)?;
    let before = match &options.history {
        Some(path) => {
            let rows = table::from_json(&read(path)?)
                .map_err(|what| Failure::Usage(format!("{}: {what}", path.display())))?;
            Some(rows)
        }
        None => None,
    };
    if let Some(path) = &options.json
        && (path.is_dir()
            || path
                .parent()
                .is_some_and(|p| p != Path::new("") && !p.is_dir()))
    {
        let path = path.display();
        return Err(Failure::Usage(format!("{path}: no such place for a file")));
    }

    let directory = workspace.target.join("bench");
    if !options.trace.is_empty() && !targets.benches.iter().any(|b| b.layer == Layer::Slab) {
        return Err(Failure::Usage("--trace is for the layer slab".to_owned()));
    }
    let mut files = options.trace.clone();
    if files.is_empty() && targets.benches.iter().any(|b| b.layer == Layer::Slab) {
        files.push(workspace.root.join(BUNDLED_TRACE));
    }
    let replay = traces::prepare(&files, &directory)?;
    let absent = rounds::absent_libraries(&targets);
    let executables = rounds::build(workspace, &targets, &absent, &directory.join("build"))?;
    let replay = replay.build(workspace, &targets, &absent, &directory.join("build"))?;
    let nr_rounds = options
        .rounds
        .unwrap_or(if options.quick { 1 } else { ROUNDS });
    let mut rounds: Vec<Round> = Vec::new();
    for number in 1..=nr_rounds {
        let home = directory.join(format!("criterion/round-{number}"));
        let mut round = rounds::run(&executables, options.quick, &home)?;
        replay.run(&mut round)?;
        rounds.push(round);
    }

    let rows: Vec<Row> = targets.rows.iter().map(|t| Row::of(t, &rounds)).collect();
    say(&table::render(&rows));
    for library in &absent {
        say(&format!(
            "not measured beside {}: it is not installed ({})\n",
            library.feature, library.install
        ));
    }
    if rows
        .iter()
        .any(|row| row.is_of_trace() && row.ours_ns.is_none())
    {
        say("a trace that was not replayed has to be given: --trace FILE\n");
    }
    if let Some(path) = &options.json {
        save(path, &table::json(&rows))?;
    }
    if !options.no_report {
        let path = directory.join("report.html");
        let words = where_and_how(options, nr_rounds)?;
        let page = report::render(&rows, before.as_deref(), &words)
            .map_err(|what| Failure::Run(format!("the report cannot be drawn: {what}")))?;
        save(&path, &page)?;
        say(&format!("report: {}\n", path.display()));
    }
    let missed: Vec<String> = rows
        .iter()
        .filter(|row| row.holds() == Some(false))
        .map(Row::label)
        .collect();
    if options.check && !missed.is_empty() {
        return Err(Failure::Run(format!(
            "targets missed: {}",
            missed.join("; ")
        )));
    }
    Ok(())
}

/// The command and the machine, for whoever finds the report.
fn where_and_how(options: &Options, nr_rounds: u32) -> Result<String, Failure> {
    let mut command = String::from("cargo xtask bench");
    if let Some(layer) = options.layer {
        command.push_str(&format!(" --layer {}", layer.name()));
    }
    if options.quick {
        command.push_str(" --quick");
    }
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = crate::scale::kernel().unwrap_or_else(|| std::env::consts::OS.to_owned());
    let compiler = compiler_version()?;
    Ok(format!(
        "{command}, {nr_rounds} round(s), on {cpus} CPU(s) of {model}, kernel {kernel}, {compiler}"
    ))
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text)
        .map_err(|error| Failure::Run(format!("cannot write {}: {error}", path.display())))
}

fn say(text: &str) {
    // Whoever closed the pipe has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::targets::Bench;
    use super::*;
    use crate::cargo::CRATES;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &str) -> Result<Options, clap::Error> {
        let words = ["bench"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options)
    }

    #[test]
    fn good_options_parse() {
        let options = parse("--layer rcu --quick --json x.json --history y.json --check").unwrap();
        assert_eq!(options.layer, Some(Layer::Rcu));
        assert!(options.quick && options.check && !options.no_report);
        assert_eq!(parse("").unwrap().layer, None);
    }

    #[test]
    fn bad_options_are_refused() {
        for words in [
            "--layer epoch",
            "--layer",
            "--rounds 0",
            "--rounds 100",
            "--json",
            "--fast",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn layers_are_called_the_same_everywhere() {
        for layer in Layer::ALL {
            let value = layer.to_possible_value().unwrap();
            assert_eq!(value.get_name(), layer.name());
            assert_eq!(Layer::named(layer.name()), Some(layer));
        }
        assert_eq!(Layer::named("epoch"), None);
    }

    #[test]
    fn the_reviewed_file_is_good() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-targets.json");
        let targets = Targets::parse(&fs::read_to_string(path).unwrap()).unwrap();
        assert!(targets.rows.len() > 10);
        let workspace = Workspace::locate().unwrap();
        for Bench { package, bench, .. } in &targets.benches {
            assert!(
                workspace.has_target(package, "bench", bench),
                "{package}: {bench}"
            );
        }
        assert!(targets.of_layer(Some(Layer::Rcu)).is_ok());
    }

    #[test]
    fn every_crate_has_a_bench() {
        let workspace = Workspace::locate().unwrap();
        for name in CRATES {
            let package = workspace
                .packages()
                .iter()
                .find(|p| p["name"] == name)
                .unwrap();
            let targets = package["targets"].as_array().unwrap();
            assert!(targets.iter().any(|t| t["kind"][0] == "bench"), "{name}");
        }
    }
}
