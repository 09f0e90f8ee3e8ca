//! A process of a verb's own that speaks in lines: started, heard out, and never left behind.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// A child that does not outlive us, whichever way we leave.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only when the child is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the worker and hears it out, line by line. The error is one line: a line's, the worker's last words if it failed, or
/// that nothing was heard for as long as `silence`.
pub(crate) fn hear(
    mut command: Command,
    silence: Duration,
    mut line: impl FnMut(&str) -> Result<(), String>,
) -> Result<(), String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("the worker does not start: {error}"))?;
    let mut worker = Worker(child);
    let (stdout, stderr) = match (worker.0.stdout.take(), worker.0.stderr.take()) {
        (Some(stdout), Some(stderr)) => (stdout, stderr),
        _ => return Err("the worker has no pipes".to_owned()),
    };
    let complaint = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = BufReader::new(stderr).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // In slices, so that a machine that stood still meanwhile counts for one of them.
    let slice = silence.min(Duration::from_secs(1));
    let mut silent = Duration::ZERO;
    loop {
        match lines.recv_timeout(slice) {
            Ok(Ok(text)) => line(&text)?,
            Ok(Err(error)) => return Err(format!("cannot read the worker: {error}")),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                silent += slice;
                if silent < silence {
                    continue;
                }
                return Err(format!(
                    "no sign of life for {} s, given up",
                    silence.as_secs()
                ));
            }
        }
        silent = Duration::ZERO;
    }
    let status = worker.0.wait().map_err(|error| error.to_string())?;
    let complaint = complaint.join().unwrap_or_default();
    if status.success() {
        Ok(())
    } else {
        Err(last_words(&complaint, status))
    }
}

/// The one line of a failed worker's stderr that says most: a panic's place and message, else the last line that stands at the
/// margin. A layer that aborts says what broke there, and what it knows besides in indented lines below.
fn last_words(complaint: &str, status: ExitStatus) -> String {
    let lines: Vec<&str> = complaint
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let panic = lines.iter().position(|line| line.contains(" panicked at "));
    let words = match panic {
        Some(at) => lines[at..lines.len().min(at + 2)].join(" "),
        None => {
            let mut from_the_last = lines.iter().rev();
            let at_the_margin = from_the_last.find(|line| !line.starts_with(char::is_whitespace));
            at_the_margin
                .or(lines.last())
                .map_or("", |line| line.trim_start())
                .to_owned()
        }
    };
    if words.is_empty() {
        format!("the worker failed ({status})")
    } else {
        format!("{words} ({status})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_prefer_the_panic() {
        let status = ExitStatus::default();
        let panic = "\nthread 'main' panicked at a.rs:1:2:\nindex out of bounds\nnote: run with RUST_BACKTRACE=1\n";
        let line = last_words(panic, status);
        assert!(line.contains("a.rs:1:2") && line.contains("out of bounds"));
        assert!(last_words("one\ntwo\n\n", status).starts_with("two"));
        let abort = "pagealloc: broken contract: freed twice\n  in no block\n  freed by 3\n";
        assert!(last_words(abort, status).starts_with("pagealloc: broken contract"));
        assert!(last_words("  only this", status).starts_with("only this"));
        assert!(last_words("", status).starts_with("the worker failed"));
    }
}
