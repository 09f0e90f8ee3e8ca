//! Deeds that end the program: each runs in a child process.

use std::process::Command;

const CASE: &str = "ABORT_CASE";

/// Runs `deed` in a child of its own, which must abort and say all of `words`.
pub(crate) fn aborts(case: &str, deed: impl FnOnce(), words: &[&str]) {
    if std::env::var_os(CASE).is_some() {
        deed();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", case, "--nocapture"])
        .env(CASE, "1")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "the child lived on: {message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}
