//! `cargo xtask scale` from outside, over a worker that only speaks the protocol.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Answers as kvfree's bench target does, from a table; misbehaves where the engine's cost is "fail" or "leak".
const WORKER: &str = r#"#!/bin/sh
if [ "$1" = --probe ]; then echo '{"membarrier":true}'; exit 0; fi
while [ $# -gt 0 ]; do
    case "$1" in
        --engine) engine=$2 ;;
        --workload) workload=$2 ;;
        --threads) threads=$2 ;;
        --objects) objects=$2 ;;
        --readers) readers=$2 ;;
        --trace) trace=$2 ;;
    esac
    shift 2
done
if [ "$workload" = trace ]; then
    [ -s "$trace" ] || { echo "no trace $trace" >&2; exit 1; }
    objects=353738
fi
reads=null
[ "$readers" -gt 0 ] && reads=3.5e8
lost=0
retire=null
tail=400
[ "$engine" = crossbeam-epoch ] && tail=9000
[ "$workload" = latency ] && retire='{"p50":20,"p99":40,"p999":'$tail',"max":50000}'
case "$engine" in
    kvfree) ns=3.1 gps=100 ms=0.003 kib=500 ;;
    kvfree-headless|kvfree-sized) ns=4.6 gps=110 ms=0.005 kib=700 ;;
    kvfree-box) ns=20.6 gps=110 ms=0.02 kib=700 ;;
    kvfree-unbatched) ns=140.2 gps=12000 ms=0.14 kib=2500 ;;
    malloc-free) ns=6.1 gps=null ms=0.006 kib=0 ;;
    crossbeam-epoch) ns=43.7 gps=null ms=0.04 kib=900 ;;
    kovan) ns=18.4 gps=null ms=0.02 kib=600 ;;
    mimalloc|rusty_alloc) ns=5.1 gps=null ms=0.005 kib=0 ;;
esac
[ "$FAKE" = "fail:$engine" ] && { echo "first line" >&2; echo "out of pages" >&2; exit 1; }
[ "$FAKE" = "leak:$engine" ] && lost=3
[ "$FAKE" = "hang:$engine" ] && exec sleep 60
echo '{"progress":0.5}'
i=0
while [ $i -lt 60 ]; do
    echo "$i $ms $kib" | awk '{ t = $1 * $2 * 80; s = $1 < 58 ? $3 * (0.4 + ($1 % 7) / 11) : 0; printf "{\"sample\":[%f,%f]}\n", t, s }'
    i=$((i + 1))
done
echo "{\"result\":{\"threads\":$threads,\"objects\":$objects,\"ns_per_object\":$ns,\"grace_periods\":$gps,\"peak_extra_kib\":$kib,\"outstanding\":$lost,\"reads_per_second\":$reads,\"retire_ns\":$retire}}"
"#;

/// A directory of one test's own, with the worker in it; cargo's target directory too, so that no real report is lost.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory).expect("an old directory of ours");
        }
        fs::create_dir_all(&directory).expect("a directory");
        let worker = directory.join("worker");
        fs::write(&worker, WORKER).expect("the worker");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&worker, mode).expect("its mode");
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn scale(&self, words: &str, fake: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .arg("scale")
            .arg("--worker")
            .arg(self.path("worker"))
            .args(words.split_whitespace())
            .current_dir(&self.0)
            .env("CARGO_TARGET_DIR", self.path("target"))
            .env("FAKE", fake)
            .output()
            .expect("xtask runs")
    }

    /// Runs to a failure and returns its one line.
    fn refused(&self, words: &str, fake: &str, status: i32) -> String {
        let output = self.scale(words, fake);
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(status), "{words}: {line}");
        assert_eq!(line.lines().count(), 1, "{words}: {line}");
        assert!(line.starts_with("error: "), "{line}");
        line
    }
}

#[test]
fn a_whole_run_leaves_a_table_a_report_and_json() {
    let place = Place::new("whole");
    let output = place.scale("--quick --json runs.json", "");
    let table = String::from_utf8(output.stdout).expect("text");
    let stderr = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "", "no progress bar without a terminal");
    assert!(!table.contains('\x1b'), "no colours without a terminal");
    assert!(
        table.contains("trace:sqlite") && !table.contains("FALLS SHORT"),
        "{table}"
    );

    let json = fs::read_to_string(place.path("runs.json")).expect("the JSON");
    let json: Value = serde_json::from_str(&json).expect("valid JSON");
    assert_eq!(json["machine"]["membarrier"], true);
    let runs = json["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 41);
    let reader = runs.iter().find(|run| run["workload"] == "flood+reader");
    assert_eq!(
        reader.map(|run| &run["reads_per_second"]),
        Some(&Value::from(3.5e8))
    );
    assert!(runs[0]["reads_per_second"].is_null() && runs[0]["retire_ns"].is_null());
    let timed = runs.iter().find(|run| run["workload"] == "latency");
    assert_eq!(
        timed.map(|run| &run["retire_ns"]["p999"]),
        Some(&Value::from(400))
    );

    let html = fs::read_to_string(place.path("target/scale/report.html")).expect("a report");
    assert_eq!(html.matches("<svg").count(), 2);
    let plain = fs::read(place.path("target/scale/sqlite.atrc")).expect("the plain trace");
    assert_eq!(plain.len(), 24 + 12 * 707_460);
}

#[test]
fn a_plain_trace_is_told_from_a_packed_one_by_its_bytes() {
    let place = Place::new("plain");
    assert!(
        place
            .scale("--quick --workload trace --no-report", "")
            .status
            .success()
    );
    let misnamed = place.path("mine.trace.zst");
    fs::copy(place.path("target/scale/sqlite.atrc"), misnamed).expect("a copy");
    let output = place.scale(
        "--quick --workload trace --trace mine.trace.zst --engine kovan",
        "",
    );
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success() && table.contains("trace:mine"),
        "{table}"
    );
}

#[test]
fn mistakes_are_one_line_and_status_2() {
    let place = Place::new("mistakes");
    fs::write(place.path("junk.trace"), "junk").expect("a file");
    fs::write(
        place.path("short.trace"),
        b"ATRC\x01\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x08",
    )
    .expect("a file");
    for (words, part) in [
        ("--objects 0", "--objects"),
        ("--engine best", "kovan"),
        ("--nothing", "--nothing"),
        ("--threads x", "--threads"),
        ("--batch off --engine kvfree", "--batch"),
        ("--json no/such/place.json", "no/such"),
        ("--trace missing.trace", "missing.trace"),
        ("--trace junk.trace", "junk.trace: header"),
        ("--trace short.trace", "short.trace: record 0 "),
        ("--trace .", "is a directory"),
    ] {
        let line = place.refused(words, "", 2);
        assert!(line.contains(part), "{words}: {line}");
    }
    assert!(!place.path("target/scale/short.atrc").exists());
}

#[test]
fn a_failed_worker_is_named_with_its_engine_and_workload() {
    let place = Place::new("failed");
    let line = place.refused("--quick --workload flood", "fail:kovan", 1);
    assert!(
        line.contains("kovan on flood, 1 thread: out of pages"),
        "{line}"
    );
    let line = place.refused("--quick --workload flood --silence 1", "hang:kvfree", 1);
    assert!(
        line.contains("kvfree on flood, 1 thread: no sign of life"),
        "{line}"
    );
}

#[test]
fn an_object_that_was_never_freed_fails_the_run() {
    let place = Place::new("leak");
    let line = place.refused("--quick --workload flood --threads 2", "leak:kvfree", 1);
    assert!(line.contains("kvfree on flood, 2 threads: 3"), "{line}");
}
