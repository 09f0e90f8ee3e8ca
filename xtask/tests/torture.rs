//! `cargo xtask torture` from outside: over a worker that only speaks the protocol, and over the real one.
#![cfg(unix)]

#[path = "../../crates/kvfree/benches/torture/random.rs"]
mod random;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use random::Random;

/// Finds what `FAKE` says, as the real one would.
const WORKER: &str = r#"#!/bin/sh
result() {
    echo "{\"status\":{\"seconds\":0.5,\"counts\":{\"reads\":10},\"faults\":{},\"pipe\":[10,0],\"circulation\":[]}}"
    echo "{\"result\":{\"seconds\":1,\"counts\":{\"reads\":1234},\"faults\":{$1},\"pipe\":[1230,4],\"circulation\":[4,4],\"first_fault_seconds\":0.25,\"messages\":[$2]}}"
}
case "$FAKE" in
    clean) result ;;
    short) result '"grace period too short":3' '"0.250 s: a reader holds an element at stage 2"' ;;
    abort) echo "slab: object freed twice: cache left" >&2; kill -ABRT $$ ;;
    silent) exit 0 ;;
    noise) echo hello ;;
esac
"#;

fn torture(place: &Path, words: &str, fake: &str) -> Output {
    let worker = place.join("worker");
    fs::write(&worker, WORKER).expect("the worker");
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).expect("its mode");
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("torture")
        .arg("--worker")
        .arg(worker)
        .args(words.split_whitespace())
        .env("FAKE", fake)
        .output()
        .expect("xtask runs")
}

fn place(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

/// What it said, and its exit status.
fn said(output: &Output) -> (String, Option<i32>) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, output.status.code())
}

#[test]
fn a_clean_run_ends_with_success() {
    let place = place("torture-clean");
    let (text, status) = said(&torture(&place, "--scenario tree,tiny --seed 7", "clean"));
    assert_eq!(status, Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&"seed 7"));
    assert!(text.contains("\ntree: SUCCESS: 0 faults"), "{text}");
    assert!(text.contains("reads 1,234") && text.contains("reader pipe: 1,230, 4"));
    assert!(
        lines
            .last()
            .is_some_and(|line| line.starts_with("SUCCESS: 2 scenarios"))
    );
    assert!(!text.contains("!!!"), "{text}");
}

#[test]
fn a_fault_is_told_and_fails_the_run() {
    let place = place("torture-fault");
    let (text, status) = said(&torture(&place, "--scenario tree --seed 7", "short"));
    assert_eq!(status, Some(1), "{text}");
    for part in [
        "tree: FAILURE:",
        "!!! 3 x grace period too short",
        "!!! 0.250 s: a reader holds",
        "FAILURE: 1 of 1 scenarios",
        "seed 7",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for fake in ["abort", "silent", "noise"] {
        let (text, status) = said(&torture(&place, "--scenario slab", fake));
        assert_eq!(status, Some(1), "{fake}: {text}");
        assert!(text.contains("slab: FAILURE: !!! "), "{fake}: {text}");
    }
}

#[test]
fn what_is_broken_must_be_flagged_and_as_what_it_is() {
    let place = place("torture-broken");
    for (scenario, fake, status) in [
        ("returns-early", "short", 0),
        ("returns-early", "clean", 1),
        ("slab-double-free", "abort", 0),
        ("slab-double-free", "short", 1),
        ("slab-wrong-cache", "abort", 1),
    ] {
        let words = format!("--scenario {scenario}");
        let (text, code) = said(&torture(&place, &words, fake));
        assert_eq!(code, Some(status), "{scenario} {fake}: {text}");
        assert_eq!(text.contains(": flagged after "), status == 0, "{text}");
    }
}

#[test]
fn mistakes_are_one_line_and_status_2() {
    let place = place("torture-mistakes");
    for (words, part) in [
        ("--scenario none", "no scenario is called none"),
        ("--seconds 0", "--seconds"),
        ("--seconds x", "--seconds"),
        ("--seed x", "--seed"),
        ("--patience 0", "--patience"),
        ("--nothing", "--nothing"),
    ] {
        let output = torture(&place, words, "clean");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words}: {line}");
        assert_eq!(line.lines().count(), 1, "{words}: {line}");
        assert!(line.starts_with("error: ") && line.contains(part), "{line}");
        assert_eq!(output.stdout, b"", "{words}");
    }
}

#[test]
fn the_list_names_every_scenario_and_runs_none() {
    let (text, status) = said(&torture(&place("torture-list"), "--list", "noise"));
    assert_eq!(status, Some(0));
    for name in ["tree-fenced", "kvfree-tight-budget", "lost-report"] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{text}");
    }
}

#[test]
fn the_same_seed_makes_the_same_choices() {
    let draw = |seed, role, thread, round| {
        let mut random = Random::of(seed, role, thread, round);
        let numbers = [(); 8].map(|()| random.next());
        let small = [(); 8].map(|()| random.below(10));
        assert!(small.iter().all(|n| *n < 10));
        (numbers, small, random.one_in(3), random.pick(&[1, 2, 3]))
    };
    let first = draw(7, "reader", 1, 5);
    assert_eq!(first, draw(7, "reader", 1, 5));
    for other in [
        draw(8, "reader", 1, 5),
        draw(7, "writer", 1, 5),
        draw(7, "reader", 2, 5),
        draw(7, "reader", 1, 6),
    ] {
        assert_ne!(first.0, other.0);
    }
}

/// Builds the real worker, and takes about twenty seconds more: `cargo xtask test-all` runs it.
#[test]
#[ignore = "builds the worker with optimisation; test-all runs it"]
fn every_broken_detector_and_every_injected_fault_is_flagged() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["torture", "--broken"])
        .output()
        .expect("xtask runs");
    let (text, status) = said(&output);
    assert_eq!(status, Some(0), "{text}");
    for line in text
        .lines()
        .filter(|line| line.contains(": flagged after "))
    {
        let (_, rest) = line.split_once("flagged after ").expect("just seen");
        let seconds = rest.split(' ').next().and_then(|n| n.parse::<f64>().ok());
        assert!(seconds.is_some_and(|seconds| seconds <= 10.0), "{line}");
    }
    println!("{text}");
}
