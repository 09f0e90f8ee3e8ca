//! Choices of tests that run in another way than cargo's own (`miri`, `tsan`, `valgrind`): a line for each, and what they came to.

use std::io::{self, Write};
use std::process::Command;
use std::time::Instant;

use crate::cargo::Failure;
use crate::tools;

/// What a verb's choice has come to so far.
pub(crate) struct Choice {
    verb: &'static str,
    failed: Vec<String>,
}

impl Choice {
    pub(crate) fn of(verb: &'static str) -> Self {
        Self {
            verb,
            failed: Vec::new(),
        }
    }

    /// Runs `command`, which runs these tests of the package.
    pub(crate) fn run(&mut self, package: &str, tests: &str, command: &mut Command) {
        let begun = Instant::now();
        let is_ok = tools::run(command).is_ok();
        let verdict = if is_ok { "ok" } else { "FAILED" };
        self.say(package, tests, verdict, begun);
        if !is_ok {
            self.fail(package.to_owned());
        }
    }

    pub(crate) fn say(&self, package: &str, tests: &str, verdict: &str, begun: Instant) {
        let (verb, seconds) = (self.verb, begun.elapsed().as_secs_f64());
        // A closed pipe has seen what it wanted.
        let _ = writeln!(
            io::stdout(),
            "{verb}: {package} ({tests}): {verdict}, {seconds:.1} s"
        );
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.failed.push(what);
    }

    /// An error that names what failed, if something has.
    pub(crate) fn end(self) -> Result<(), Failure> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let failed = self.failed.join(", ");
        Err(Failure::Run(format!("{}: failed in {failed}", self.verb)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_named_at_the_end() {
        let mut choice = Choice::of("miri");
        choice.run("slab", "--lib", &mut Command::new("true"));
        choice.run("kvfree", "--lib", &mut Command::new("false"));
        choice.run("pagealloc", "--lib", &mut Command::new("/none/such"));
        let Err(Failure::Run(said)) = choice.end() else {
            panic!("two have failed");
        };
        assert_eq!(said, "miri: failed in kvfree, pagealloc");
        assert!(Choice::of("tsan").end().is_ok());
    }
}
