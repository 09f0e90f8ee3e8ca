//! `cargo xtask simulate` from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A directory of one test's own; cargo's target directory too.
fn place(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).expect("an old directory of ours");
    }
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

fn simulate(place: &Path, words: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("simulate")
        .args(words.split_whitespace())
        .current_dir(place)
        .env("CARGO_TARGET_DIR", place.join("target"))
        .output()
        .expect("xtask runs")
}

#[test]
fn the_same_options_give_the_same_bytes() {
    let place = place("simulate-twice");
    let words =
        "--cpus 300,16 --grace-periods 6 --churn 20 --each --json counts.json --out picture";
    let once = || {
        let output = simulate(&place, words);
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success(), "{text}");
        assert_eq!(output.stderr, b"", "no progress bar without a terminal");
        let read = |name: &str| fs::read_to_string(place.join(name)).expect(name);
        (text, read("counts.json"), read("picture/cost.svg"))
    };
    let first = once();
    assert_eq!(first, once());
    assert!(
        !first.0.contains('\x1b') && !first.0.contains("FALLS SHORT"),
        "{}",
        first.0
    );
    assert!(
        first
            .0
            .trim_end()
            .lines()
            .last()
            .is_some_and(|line| line.starts_with("holds"))
    );
    let json: Value = serde_json::from_str(&first.1).expect("valid JSON");
    assert_eq!(json["runs"][1]["slots"], 300);
    assert_eq!(
        json["runs"][1]["grace_periods"].as_array().map(Vec::len),
        Some(6)
    );
    assert!(first.2.starts_with("<svg") && first.2.contains("slots read"));
}

#[test]
fn from_256_to_4096_slots_the_bounds_hold() {
    let place = place("simulate-bounds");
    let output = simulate(&place, "--cpus 16,256,4096 --grace-periods 8");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("\nholds ").count(), 3, "{text}");
    assert!(place.join("target/simulate/cost.svg").is_file());
}

#[test]
fn mistakes_are_one_line_and_status_2() {
    let place = place("simulate-mistakes");
    fs::write(place.join("file"), "").expect("a file");
    for (words, part) in [
        ("--cpus 0", "--cpus"),
        ("--cpus 4194305", "4194304"),
        ("--cpus 16,x", "--cpus"),
        ("--cpus 16,,32", "--cpus"),
        ("--cpus 17 --fanout 2 --fanout-leaf 2", "16 slots"),
        ("--fanout 65", "--fanout"),
        ("--fanout-leaf 1", "--fanout-leaf"),
        ("--readers 101", "--readers"),
        ("--json no/such/place.json", "no/such"),
        ("--json .", "is a directory"),
        ("--out file", "file"),
        ("--seed", "--seed"),
    ] {
        let output = simulate(&place, words);
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{words}: {line}");
        assert_eq!(line.lines().count(), 1, "{words}: {line}");
        assert!(
            line.starts_with("error: ") && line.contains(part),
            "{words}: {line}"
        );
        assert_eq!(output.stdout, b"", "{words}");
    }
}
