//! What the worker is asked to do.

use std::path::PathBuf;

pub(crate) enum Workload {
    Flood,
    /// The readers alone.
    Reader,
    /// A flood by one thread, each `retire` timed.
    Latency,
    Trace(PathBuf),
}

pub(crate) struct Args {
    pub(crate) engine: String,
    pub(crate) workload: Workload,
    pub(crate) threads: usize,
    pub(crate) objects: usize,
    pub(crate) size: usize,
    pub(crate) readers: usize,
}

/// The arguments; `None` if only a probe is asked for.
pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
    let (mut engine, mut workload, mut trace) = (None, String::from("flood"), None);
    let (mut threads, mut objects, mut size, mut readers) = (1, 5_000_000, 64, 0);
    while let Some(option) = args.next() {
        if option == "--probe" {
            return Ok(None);
        }
        // `cargo bench` passes this to every bench.
        if option == "--bench" {
            continue;
        }
        // Criterion's word for a run that only shows that it works.
        if option == "--test" {
            objects = 10_000;
            continue;
        }
        let value = args
            .next()
            .ok_or_else(|| format!("{option} needs a value"))?;
        let number = || {
            value
                .parse::<usize>()
                .map_err(|_| format!("{option}: {value} is no number"))
        };
        match option.as_str() {
            "--engine" => engine = Some(value),
            "--workload" => workload = value,
            "--trace" => trace = Some(PathBuf::from(value)),
            "--threads" => threads = number()?.max(1),
            "--objects" => objects = number()?.max(1),
            "--size" => size = number()?,
            "--readers" => readers = number()?,
            "--warmup-fraction" => {}
            _ => return Err(format!("no option is called {option}")),
        }
    }
    let workload =
        match (workload.as_str(), trace) {
            ("flood", None) => Workload::Flood,
            ("reader", None) if readers > 0 => Workload::Reader,
            ("latency", None) => Workload::Latency,
            ("trace", Some(file)) => Workload::Trace(file),
            _ => return Err(
                "--workload is flood, latency, reader with --readers N, or trace with --trace FILE"
                    .into(),
            ),
        };
    let engine = engine.unwrap_or_else(|| "kvfree".into());
    Ok(Some(Args {
        engine,
        workload,
        threads,
        objects,
        size: size.max(16),
        readers,
    }))
}
