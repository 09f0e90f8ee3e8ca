//! The workspace's own commands: `scale` (the main job), `bench`, `icount`, `simulate`, `torture`, `test-all`, `loom`, `mutants`, `nostd`, `asan`,
//! `valgrind`, `fuzz`, `tidy` and `completions`.
//!
//! One file per verb. What they share is in [`cargo`]: where the workspace is, how cargo is called, and how a failure
//! ends the program: one line on stderr, exit status 2 for a bad option or bad input, 1 for a failed run or test. Progress bars
//! and colours are for terminals; a pipe gets plain lines.

mod asan;
mod bench;
mod cargo;
mod choice;
mod completions;
mod fuzz;
mod icount;
mod loom;
mod miri;
mod mutants;
mod nostd;
mod scale;
mod simulate;
mod test_all;
mod tidy;
mod tools;
mod torture;
mod tsan;
mod valgrind;
mod verdict;
mod worker;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::cargo::{Failure, Workspace};

/// The workspace's own commands
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    after_help = "Examples:\n  cargo xtask scale\n  cargo xtask simulate\n  cargo xtask torture --seconds 60\n  cargo xtask test-all --quick\n  cargo xtask loom --mutants"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Scale(scale::Options),
    Bench(bench::Options),
    Icount(icount::Options),
    Simulate(simulate::Options),
    Torture(torture::Options),
    TestAll(test_all::Options),
    Loom(loom::Options),
    Mutants(mutants::Options),
    Nostd(nostd::Options),
    Asan(asan::Options),
    Valgrind(valgrind::Options),
    Miri(miri::Options),
    Tsan(tsan::Options),
    Fuzz(fuzz::Options),
    Tidy(tidy::Options),
    Completions(completions::Options),
}

/// What the status of every verb means.
const EXIT_STATUS: &str = "Exit status: 0 all is well; 1 a check, a test or a run failed; 2 a bad option or bad input, and nothing was run.";

/// The command line, with the exit statuses below each verb's examples.
fn command() -> Command {
    let with_status = |verb: Command| {
        let examples = verb.get_after_help().cloned().unwrap_or_default();
        verb.after_help(format!("{examples}\n\n{EXIT_STATUS}"))
    };
    with_status(Cli::command()).mut_subcommands(with_status)
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(words)?;
    Cli::from_arg_matches(&matches)
}

fn main() -> ExitCode {
    let cli = match parse(env::args_os()) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp) => {
            // A closed pipe behind `--help` is not worth a message.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return report(&Failure::Usage(one_line(&error))),
    };
    if let Verb::Completions(options) = &cli.verb {
        completions::run(options, &mut command());
        return ExitCode::SUCCESS;
    }
    let verdict = Workspace::locate().and_then(|workspace| match cli.verb {
        Verb::Completions(_) => Ok(()),
        Verb::Scale(options) => scale::run(&workspace, &options),
        Verb::Bench(options) => bench::run(&workspace, &options),
        Verb::Icount(options) => icount::run(&workspace, &options),
        Verb::Simulate(options) => simulate::run(&workspace, &options),
        Verb::Torture(options) => torture::run(&workspace, &options),
        Verb::TestAll(options) => test_all::run(&workspace, &options),
        Verb::Loom(options) => loom::run(&workspace, &options),
        Verb::Mutants(options) => mutants::run(&workspace, &options),
        Verb::Nostd(options) => nostd::run(&workspace, &options),
        Verb::Asan(options) => asan::run(&workspace, &options),
        Verb::Valgrind(options) => valgrind::run(&workspace, &options),
        Verb::Miri(options) => miri::run(&workspace, &options),
        Verb::Tsan(options) => tsan::run(&workspace, &options),
        Verb::Fuzz(options) => fuzz::run(&workspace, &options),
        Verb::Tidy(options) => tidy::with_options(&workspace, &options),
    });
    match verdict {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

fn report(failure: &Failure) -> ExitCode {
    eprintln!("error: {failure}");
    ExitCode::from(failure.exit_status())
}

/// Folds clap's message into one line: the complaint and its hint, without the usage block.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given; cargo xtask --help lists them".to_owned();
    }
    let complaint = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = complaint.split_whitespace().collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn clap_agrees_with_itself() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_has_examples_and_says_what_its_status_means() {
        for verb in command().get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            let example = format!("cargo xtask {}", verb.get_name());
            assert!(
                help.contains("Examples:") && help.contains(&example),
                "{help}"
            );
            assert_eq!(help.matches("Exit status: ").count(), 1, "{help}");
            assert!(
                help.is_ascii() || !help.contains('\u{1b}'),
                "colour in a pipe"
            );
        }
    }

    #[test]
    fn a_bad_option_is_one_line() {
        for line in [
            &["xtask"][..],
            &["xtask", "nothing"],
            &["xtask", "scale", "--objects", "0"],
            &["xtask", "scale", "--engine", "none"],
            &["xtask", "scale", "--nothing"],
            &["xtask", "simulate", "--cpus", "0"],
            &["xtask", "torture", "--seconds", "0"],
        ] {
            let error = parse(words(line)).err().expect("must be refused");
            let line = one_line(&error);
            assert!(!line.contains('\n') && !line.is_empty(), "{line}");
            assert!(!line.starts_with("error"), "{line}");
        }
    }
}
