//! The options of `cargo xtask scale`, and the list of runs that they ask for.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::trace::Trace;
use crate::cargo::Failure;

/// Objects of one run, over all its threads.
const OBJECTS: u64 = 5_000_000;
/// The same under `--quick`: enough to fill and recycle every kind of batch many times.
const QUICK_OBJECTS: u64 = 200_000;
/// Repeats of each run; the median is reported.
const REPEATS: u32 = 3;

/// Measure deferred freeing: floods and real allocation traces, every engine side by side
#[derive(Args, Debug)]
#[command(
    long_about = "The kernel's rcuscale kfree_rcu test grown up: allocate, touch, retire; each run in its \
                  own process, every engine side by side. Prints a table and writes report.html under target/scale.",
    after_help = "Examples:\n  cargo xtask scale\n  cargo xtask scale --quick --engine kvfree,kovan \
                  --threads 1,2,4\n  cargo xtask scale --workload trace --trace redis.trace.zst --json runs.json"
)]
pub(crate) struct Options {
    /// Thread counts of the flood [default: 1,2; flood+reader: 1]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: Vec<u32>,
    /// Objects per run, over all its threads [default: 5000000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4_000_000_000))]
    objects: Option<u64>,
    /// Bytes per object of a flood
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=8192))]
    pub(crate) size: u32,
    /// Readers running flat out beside a flood+reader; 0 leaves that workload out
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=256))]
    readers: u32,
    /// Repeats of each run; the median by ns per object is reported [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    repeats: Option<u32>,
    /// Engines to run [default: all that apply]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    engine: Vec<Engine>,
    /// Workloads to run [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    workload: Vec<Kind>,
    /// kvfree with its batches, without them, or both
    #[arg(long, value_name = "WHICH", default_value = "both")]
    batch: Batch,
    /// Replay this allocation trace, zstd or plain, instead of the bundled one; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Vec<PathBuf>,
    /// Also write the runs as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Few objects, one repeat: a smoke test, not a measurement
    #[arg(long)]
    quick: bool,
    /// Write no report.html
    #[arg(long)]
    pub(crate) no_report: bool,
    /// Also write the report's pictures, cost.svg and flood.svg, into this folder
    #[arg(long, value_name = "FOLDER")]
    pub(crate) pictures: Option<PathBuf>,
    /// Give a run up after so many seconds without a sign of life
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    silence: u64,
    /// Run this worker instead of building the one in kvfree
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) worker: Option<PathBuf>,
}

/// Whose allocation and deferred freeing is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Engine {
    /// A typed cache, objects retired in batches.
    Kvfree,
    /// `Kmalloc` classes and pages, objects retired without a head.
    KvfreeHeadless,
    /// The same, by the size that who retires knows.
    KvfreeSized,
    /// Boxes of the global allocator, retired in batches.
    KvfreeBox,
    /// One callback per object, as before batching.
    KvfreeUnbatched,
    /// The global allocator with no deferral at all.
    MallocFree,
    /// Epochs; the peer that users have.
    CrossbeamEpoch,
    /// Wait-free eras, with recycling; the best peer.
    Kovan,
    /// An allocator that frees at once, on traces.
    Mimalloc,
    /// The same; the best of them.
    RustyAlloc,
}

impl Engine {
    pub(crate) const ALL: [Self; 10] = [
        Self::Kvfree,
        Self::KvfreeHeadless,
        Self::KvfreeSized,
        Self::KvfreeBox,
        Self::KvfreeUnbatched,
        Self::MallocFree,
        Self::CrossbeamEpoch,
        Self::Kovan,
        Self::Mimalloc,
        Self::RustyAlloc,
    ];

    /// Whether it can run, and has something to say, on a workload of that kind.
    fn applies(self, kind: Kind) -> bool {
        match kind {
            Kind::Flood | Kind::FloodReader => !matches!(self, Self::Mimalloc | Self::RustyAlloc),
            // How long one call takes is a question to who defers.
            Kind::Latency => !matches!(
                self,
                Self::KvfreeUnbatched | Self::MallocFree | Self::Mimalloc | Self::RustyAlloc
            ),
            // All of ours have the same readers.
            Kind::Reader => matches!(self, Self::Kvfree | Self::CrossbeamEpoch | Self::Kovan),
            // A trace's sizes vary, a typed cache has one, and a box's type has one.
            Kind::Trace => !matches!(self, Self::Kvfree | Self::KvfreeBox),
        }
    }

    /// Its name in options, rows and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kvfree => "kvfree",
            Self::KvfreeHeadless => "kvfree-headless",
            Self::KvfreeSized => "kvfree-sized",
            Self::KvfreeBox => "kvfree-box",
            Self::KvfreeUnbatched => "kvfree-unbatched",
            Self::MallocFree => "malloc-free",
            Self::CrossbeamEpoch => "crossbeam-epoch",
            Self::Kovan => "kovan",
            Self::Mimalloc => "mimalloc",
            Self::RustyAlloc => "rusty_alloc",
        }
    }
}

/// A workload as an option names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Flood,
    #[value(name = "flood+reader")]
    FloodReader,
    /// Those readers alone.
    Reader,
    /// A flood by one thread, each `retire` timed.
    Latency,
    Trace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Batch {
    On,
    Off,
    Both,
}

/// A workload as it runs.
#[derive(Clone, Debug)]
pub(crate) enum Workload {
    Flood,
    /// A flood beside this many readers.
    FloodReader(u32),
    /// As many readers, without a flood.
    Reader(u32),
    /// A flood, each `retire` timed.
    Latency,
    Trace(Trace),
}

impl Workload {
    /// Its name in rows and JSON.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Flood => "flood".to_owned(),
            Self::FloodReader(_) => "flood+reader".to_owned(),
            Self::Reader(_) => "reader".to_owned(),
            Self::Latency => "latency".to_owned(),
            Self::Trace(trace) => format!("trace:{}", trace.name),
        }
    }
}

/// One row to be: an engine on a workload.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) workload: Workload,
    pub(crate) threads: u32,
    pub(crate) engine: Engine,
}

impl Case {
    /// What is run, in words; rows of the same words are compared.
    pub(crate) fn group(&self) -> String {
        group(&self.workload.label(), self.threads)
    }
}

/// A workload and its thread count in words.
pub(crate) fn group(workload: &str, threads: u32) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!("{workload}, {threads} thread{plural}")
}

impl Options {
    pub(crate) fn objects(&self) -> u64 {
        let default = if self.quick { QUICK_OBJECTS } else { OBJECTS };
        self.objects.unwrap_or(default)
    }

    pub(crate) fn repeats(&self) -> u32 {
        let default = if self.quick { 1 } else { REPEATS };
        self.repeats.unwrap_or(default)
    }

    /// What all rows have in common, in words.
    pub(crate) fn conditions(&self) -> String {
        format!(
            "{} objects a run, {} bytes each in a flood, median of {}",
            self.objects(),
            self.size,
            self.repeats()
        )
    }

    pub(crate) fn silence(&self) -> Duration {
        Duration::from_secs(self.silence)
    }

    pub(crate) fn wants_traces(&self) -> bool {
        self.wants(Kind::Trace)
    }

    fn wants(&self, kind: Kind) -> bool {
        let wanted = self.workload.is_empty() || self.workload.contains(&kind);
        wanted && (!matches!(kind, Kind::FloodReader | Kind::Reader) || self.readers > 0)
    }

    /// Whether the options ask for `engine` at all.
    fn selects(&self, engine: Engine) -> bool {
        let named = self.engine.is_empty() || self.engine.contains(&engine);
        let batch = match engine {
            Engine::Kvfree | Engine::KvfreeHeadless | Engine::KvfreeSized | Engine::KvfreeBox => {
                self.batch != Batch::Off
            }
            Engine::KvfreeUnbatched => self.batch != Batch::On,
            _ => true,
        };
        named && batch
    }

    /// What single options cannot say about themselves. Needs no trace, so it comes before any is opened.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let wrong = |text: &str| Err(Failure::Usage(text.to_owned()));
        let with_readers = [Kind::FloodReader, Kind::Reader];
        if with_readers.iter().any(|kind| self.workload.contains(kind)) && self.readers == 0 {
            return wrong("--workload flood+reader or reader needs --readers of at least 1");
        }
        if !self.trace.is_empty() && !self.wants_traces() {
            return wrong("--trace is given, but --workload leaves traces out");
        }
        if !Engine::ALL.iter().any(|engine| self.selects(*engine)) {
            return wrong("no engine is left: --batch takes away what --engine asks for");
        }
        let most = self.threads.iter().copied().max().unwrap_or(1);
        if self.objects() < u64::from(most) {
            return Err(Failure::Usage(format!(
                "--objects {} is less than one for each of {most} threads",
                self.objects()
            )));
        }
        let kinds = [
            Kind::Flood,
            Kind::FloodReader,
            Kind::Reader,
            Kind::Latency,
            Kind::Trace,
        ];
        let has_rows = |kind: &Kind| self.wants(*kind) && !self.engines(*kind).is_empty();
        if !kinds.iter().any(has_rows) {
            return wrong(
                "none of these engines runs these workloads: kvfree and kvfree-box have objects of one size and replay no trace \
                 (kvfree-headless does), mimalloc and rusty_alloc only replay traces",
            );
        }
        Ok(())
    }

    fn engines(&self, kind: Kind) -> Vec<Engine> {
        let mut engines = Engine::ALL.to_vec();
        engines.retain(|engine| self.selects(*engine) && engine.applies(kind));
        engines
    }

    /// The rows, engines of one workload side by side.
    pub(crate) fn cases(&self, traces: Vec<Trace>) -> Vec<Case> {
        let mut workloads = Vec::new();
        if self.wants(Kind::Flood) {
            for threads in self.thread_counts(&[1, 2]) {
                workloads.push((Kind::Flood, Workload::Flood, threads));
            }
        }
        if self.wants(Kind::FloodReader) {
            for threads in self.thread_counts(&[1]) {
                let workload = Workload::FloodReader(self.readers);
                workloads.push((Kind::FloodReader, workload, threads));
            }
        }
        if self.wants(Kind::Reader) {
            let workload = Workload::Reader(self.readers);
            workloads.push((Kind::Reader, workload, self.readers));
        }
        if self.wants(Kind::Latency) {
            workloads.push((Kind::Latency, Workload::Latency, 1));
        }
        for trace in traces {
            let threads = trace.threads;
            workloads.push((Kind::Trace, Workload::Trace(trace), threads));
        }
        let mut cases = Vec::new();
        for (kind, workload, threads) in workloads {
            for engine in self.engines(kind) {
                cases.push(Case {
                    workload: workload.clone(),
                    threads,
                    engine,
                });
            }
        }
        cases
    }

    fn thread_counts(&self, default: &[u32]) -> Vec<u32> {
        let mut counts = if self.threads.is_empty() {
            default.to_vec()
        } else {
            self.threads.clone()
        };
        counts.sort_unstable();
        counts.dedup();
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &str) -> Result<Options, clap::Error> {
        let words = ["scale"].into_iter().chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options)
    }

    fn sqlite() -> Trace {
        Trace {
            name: "sqlite".to_owned(),
            plain: "sqlite.atrc".into(),
            threads: 1,
        }
    }

    fn rows(words: &str) -> Vec<String> {
        let options = parse(words).expect("good options");
        options.check().expect("consistent options");
        let traces = if options.wants_traces() {
            vec![sqlite()]
        } else {
            Vec::new()
        };
        let row = |c: Case| format!("{}/{}/{}", c.workload.label(), c.threads, c.engine.name());
        options.cases(traces).into_iter().map(row).collect()
    }

    #[test]
    fn by_default_every_engine_runs_every_workload() {
        let rows = rows("");
        assert_eq!(rows.len(), 8 + 8 + 8 + 3 + 6 + 8);
        assert_eq!(rows[0], "flood/1/kvfree");
        assert!(rows.contains(&"flood+reader/1/kovan".to_owned()));
        assert!(rows.contains(&"trace:sqlite/1/rusty_alloc".to_owned()));
        assert!(!rows.contains(&"trace:sqlite/1/kvfree".to_owned()));
        assert!(!rows.contains(&"flood/1/mimalloc".to_owned()));
    }

    #[test]
    fn options_narrow_the_rows() {
        assert_eq!(rows("--workload trace").len(), 8);
        assert_eq!(rows("--workload reader,latency").len(), 3 + 6);
        assert_eq!(rows("--readers 0").len(), 8 + 8 + 6 + 8);
        assert_eq!(
            rows("--engine kvfree,kovan --threads 2,2,1 --workload flood"),
            [
                "flood/1/kvfree",
                "flood/1/kovan",
                "flood/2/kvfree",
                "flood/2/kovan"
            ]
        );
        assert!(
            rows("--batch on")
                .iter()
                .all(|row| !row.ends_with("unbatched"))
        );
        assert!(
            rows("--batch off")
                .iter()
                .all(|row| !row.ends_with("/kvfree"))
        );
    }

    #[test]
    fn absurd_values_are_refused() {
        for words in [
            "--objects 0",
            "--objects 4000000001",
            "--size 15",
            "--size 8193",
            "--threads 0",
            "--threads 257",
            "--threads 1,,2",
            "--readers 257",
            "--repeats 0",
            "--repeats 100",
            "--engine epoch",
            "--workload floods",
            "--batch maybe",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for words in [
            "--engine kvfree --batch off",
            "--engine kvfree,kvfree-box --workload trace",
            "--engine mimalloc --workload flood",
            "--workload reader --readers 0",
            "--workload flood+reader --readers 0",
            "--workload flood --trace x.trace",
            "--objects 1 --threads 2",
        ] {
            let options = parse(words).expect("each option alone is good");
            let error = options.check().expect_err(words);
            assert_eq!(error.exit_status(), 2);
        }
    }
}
