//! `cargo xtask scale`: the main job on real input, every engine side by side.
//!
//! Options and traces are checked first, so that a mistake costs no build. Then the worker is built, run once a row
//! and repeat with repeats outermost (engines of one workload follow each other within seconds, so that a machine
//! that drifts drifts for all of them), and what it found becomes a table, a report and JSON.

pub(crate) mod chart;
mod options;
mod report;
pub(crate) mod runner;
mod table;
mod targets;
pub(crate) mod trace;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::options::Options;

use self::options::Case;
use self::runner::Run;
use self::table::Row;
use self::trace::Trace;
use crate::cargo::{Failure, Workspace};

/// Where the bundled trace lies, from the workspace root.
pub(crate) const BUNDLED_TRACE: &str = "xtask/traces/sqlite.trace.zst";

/// Ticks of the progress bar for one run.
const TICKS: u64 = 1000;

/// What the numbers were taken on.
#[derive(Debug)]
struct Machine {
    cpus: usize,
    kernel: Option<String>,
    membarrier: Option<bool>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    options.check()?;
    if let Some(path) = &options.json {
        check_writable(path)?;
    }
    let directory = workspace.target.join("scale");
    let traces = traces(workspace, options, &directory)?;
    let cases = options.cases(traces);
    let worker = match &options.worker {
        Some(path) => path.clone(),
        None => runner::build(workspace)?,
    };
    let machine = Machine {
        cpus: available_parallelism().map_or(1, usize::from),
        kernel: kernel(),
        membarrier: runner::probe_membarrier(&worker),
    };
    let rows = measure(&worker, &cases, options)?;
    let verdicts = targets::verdicts(&rows);
    let mut text = table::render(&rows);
    for verdict in &verdicts {
        text.push_str(&format!("\n{verdict}"));
    }
    say(&text);
    if let Some(path) = &options.json {
        save(path, &table::json(&machine, &rows))?;
    }
    if !options.no_report {
        let path = directory.join("report.html");
        fs::create_dir_all(&directory)
            .map_err(|error| cannot_write(&directory, &error.to_string()))?;
        let html = report::render(&machine, &options.conditions(), &rows, &verdicts)
            .map_err(|error| cannot_write(&path, &error))?;
        save(&path, &html)?;
        say(&format!("\nreport: {}", path.display()));
    }
    if let Some(folder) = &options.pictures {
        fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error.to_string()))?;
        for (name, svg) in report::pictures(&rows).map_err(|error| cannot_write(folder, &error))? {
            save(&folder.join(name), &svg)?;
        }
    }
    let leaks: Vec<String> = rows.iter().filter_map(Row::leak).collect();
    if leaks.is_empty() {
        Ok(())
    } else {
        let list = leaks.join("; ");
        Err(Failure::Run(format!("objects never freed: {list}")))
    }
}

/// Checks and unpacks the traces asked for: the given ones, or the bundled one.
fn traces(
    workspace: &Workspace,
    options: &Options,
    directory: &Path,
) -> Result<Vec<Trace>, Failure> {
    if !options.wants_traces() {
        return Ok(Vec::new());
    }
    let paths = if options.trace.is_empty() {
        vec![workspace.root.join(BUNDLED_TRACE)]
    } else {
        options.trace.clone()
    };
    let mut traces: Vec<Trace> = Vec::new();
    for path in &paths {
        let trace = trace::prepare(path, directory)?;
        if traces.iter().any(|other| other.name == trace.name) {
            return Err(Failure::Usage(format!(
                "{}: a second trace named {}; rows could not be told apart",
                path.display(),
                trace.name
            )));
        }
        traces.push(trace);
    }
    Ok(traces)
}

/// Runs every case as often as asked and keeps the median run of each.
fn measure(worker: &Path, cases: &[Case], options: &Options) -> Result<Vec<Row>, Failure> {
    let repeats = options.repeats();
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); cases.len()];
    let bar = progress_bar(TICKS * u64::from(repeats) * cases.len() as u64);
    let mut done = 0;
    for _ in 0..repeats {
        for (case, runs) in cases.iter().zip(&mut runs) {
            bar.set_message(format!("{}: {}", case.group(), case.engine.name()));
            let found = runner::run(worker, case, options, |fraction| {
                bar.set_position(done + (fraction * TICKS as f64) as u64);
            });
            match found {
                Ok(run) => runs.push(run),
                Err(failure) => {
                    bar.finish_and_clear();
                    return Err(failure);
                }
            }
            done += TICKS;
            bar.set_position(done);
        }
    }
    bar.finish_and_clear();
    let rows = cases
        .iter()
        .zip(runs)
        .filter_map(|(c, r)| Row::median(c, r));
    Ok(rows.collect())
}

pub(crate) fn progress_bar(length: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    let style =
        ProgressStyle::with_template("{bar:30} {percent:>3}% {elapsed} (about {eta} left)  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

pub(crate) fn kernel() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(text.trim().to_owned())
}

/// Finds out before the runs, not after them, that the JSON has no place to go.
pub(crate) fn check_writable(path: &Path) -> Result<(), Failure> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if path.is_dir() {
        Err(Failure::Usage(format!(
            "{}: is a directory",
            path.display()
        )))
    } else if parent.is_dir() {
        Ok(())
    } else {
        let directory = parent.display();
        Err(Failure::Usage(format!(
            "{}: no directory {directory}",
            path.display()
        )))
    }
}

pub(crate) fn save(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| cannot_write(path, &error.to_string()))
}

pub(crate) fn cannot_write(path: &Path, why: &str) -> Failure {
    Failure::Run(format!("cannot write {}: {why}", path.display()))
}

pub(crate) fn say(text: &str) {
    // A reader that has seen enough (`| head`) must not turn a good run into a failed one.
    let _ = writeln!(io::stdout(), "{text}");
}
