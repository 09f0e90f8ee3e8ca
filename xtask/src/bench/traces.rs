//! Replays of allocation traces with immediate freeing: kvfree's scale worker, a process for each allocator, so that peak
//! memory is its own.
//!
//! They come into the rounds as `trace/NAME/ALLOCATOR`, nanoseconds an object, and `trace-peak/NAME/ALLOCATOR`, KiB.

use std::path::{Path, PathBuf};

use super::Layer;
use super::rounds::{self, Round};
use super::targets::{Library, Targets};
use crate::cargo::{Failure, Workspace, build_bench};
use crate::scale::runner;
use crate::scale::trace::{self, Trace};

/// The worker's engines that free at once, and the library that one wants.
const ENGINES: [(&str, Option<&str>); 4] = [
    ("kmalloc", None),
    ("rusty_alloc", None),
    ("mimalloc", None),
    ("jemalloc", Some("jemalloc")),
];

/// Traces, checked, without a worker yet.
pub(super) struct Traces(Vec<Trace>);

/// Checks and unpacks the traces at `paths`, so that a mistake costs no build.
pub(super) fn prepare(paths: &[PathBuf], directory: &Path) -> Result<Traces, Failure> {
    let directory = directory.join("traces");
    let traces = paths.iter().map(|path| trace::prepare(path, &directory));
    Ok(Traces(traces.collect::<Result<_, _>>()?))
}

impl Traces {
    /// Builds the worker, if there is a trace.
    pub(super) fn build(
        self,
        workspace: &Workspace,
        targets: &Targets,
        absent: &[Library],
        directory: &Path,
    ) -> Result<Replay, Failure> {
        let mut replay = Replay {
            worker: PathBuf::new(),
            engines: Vec::new(),
            traces: self.0,
        };
        if replay.traces.is_empty() {
            return Ok(replay);
        }
        let slab = targets.benches.iter().find(|b| b.layer == Layer::Slab);
        let cfgs = slab.map_or_else(Vec::new, |b| rounds::cfgs(targets, b, absent));
        replay.worker = build_bench(workspace, "kvfree", "scale", &[], &cfgs, directory)?;
        let is_there = |(_, library): &&(_, Option<&str>)| {
            library.is_none_or(|name| !absent.iter().any(|l| l.feature == name))
        };
        replay.engines = ENGINES.iter().filter(is_there).map(|e| e.0).collect();
        Ok(replay)
    }
}

/// Traces and their worker.
pub(super) struct Replay {
    worker: PathBuf,
    engines: Vec<&'static str>,
    traces: Vec<Trace>,
}

impl Replay {
    /// Replays every trace on every engine once.
    pub(super) fn run(&self, round: &mut Round) -> Result<(), Failure> {
        for trace in &self.traces {
            for engine in &self.engines {
                let run = runner::replay(&self.worker, engine, trace)?;
                let name = &trace.name;
                round.insert(format!("trace/{name}/{engine}"), run.ns_per_object);
                if let Some(kib) = run.peak_extra_kib {
                    round.insert(format!("trace-peak/{name}/{engine}"), kib as f64);
                }
            }
        }
        Ok(())
    }
}
