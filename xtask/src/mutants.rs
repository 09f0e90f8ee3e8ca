//! `cargo xtask mutants`: every place where the code can be made wrong on purpose, and the test that notices.
//!
//! A test that passes says little until it has been seen to fail. So there are *mutants*: one ordering weaker, one look
//! left out, one step too early, each behind `rcu_core::weakened!("name")`. A mutant's own test must fail on it, and pass
//! without it. Those that a loom model kills are run by `cargo xtask loom --mutants` too.

mod bench;
mod list;

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use crate::cargo::{Failure, Workspace};
use bench::{Bench, Fate, side_by_side};
use list::MUTANTS;

/// Show for each mutant the test that must fail on it, and that it does
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask mutants\n  cargo xtask mutants --only p3 --only t38\n  cargo xtask mutants --json\n\n\
                  Exit status 1 if a mutant survives, or a test fails without one. LOOM_MAX_PREEMPTIONS bounds the \
                  search of loom models (default 3)."
)]
pub(crate) struct Options {
    /// Run only this mutant (may be given more than once)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Print the table as JSON, and what happens meanwhile on standard error
    #[arg(long)]
    json: bool,
    /// Run nothing: print which test is to kill which mutant
    #[arg(long)]
    list: bool,
}

impl Options {
    /// Every mutant.
    pub(crate) fn all() -> Self {
        Self {
            only: Vec::new(),
            json: false,
            list: false,
        }
    }
}

/// The packages that have loom models, and the files that these are in.
const MODELS: [(&str, &[&str]); 5] = [
    ("rcu-core", &["loom", "loom_r22"]),
    ("rcu-tree", &["loom", "loom_machine"]),
    ("pagealloc", &["loom", "loom_bits", "loom_gate"]),
    ("slab", &["loom_cache", "loom_pin"]),
    ("kvfree", &["loom"]),
];

/// A test program: a package's unit tests, or those of one of its loom models' files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    package: &'static str,
    /// The file in the package's `tests`; `None`: the library's own tests.
    file: Option<&'static str>,
}

impl Program {
    const fn model(package: &'static str, file: &'static str) -> Self {
        Self {
            package,
            file: Some(file),
        }
    }

    const fn is_model(&self) -> bool {
        self.file.is_some()
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.package, self.file.unwrap_or("lib"))
    }
}

/// One wrong place, and a test that must see it.
#[derive(Clone, Copy, Debug)]
struct Mutant {
    name: &'static str,
    program: Program,
    test: &'static str,
}

impl Mutant {
    /// Killed by a loom model.
    const fn of_model(
        name: &'static str,
        package: &'static str,
        file: &'static str,
        test: &'static str,
    ) -> Self {
        Self {
            name,
            program: Program::model(package, file),
            test,
        }
    }

    /// Killed by a test of the library's own.
    const fn of_unit(name: &'static str, package: &'static str, test: &'static str) -> Self {
        Self {
            name,
            program: Program {
                package,
                file: None,
            },
            test,
        }
    }
}

/// What became of a mutant under its test.
struct Verdict {
    mutant: Mutant,
    fate: Fate,
    seconds: f64,
}

impl Verdict {
    fn word(&self) -> String {
        match &self.fate {
            Fate::Killed => "killed".to_owned(),
            Fate::Survived => "SURVIVED".to_owned(),
            Fate::NotTested(why) => format!("NOT TESTED: {why}"),
        }
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let chosen: Vec<Mutant> = if options.only.is_empty() {
        MUTANTS.to_vec()
    } else {
        options.only.iter().try_for_each(|name| find(name))?;
        let is_chosen = |m: &&Mutant| options.only.iter().any(|name| name == m.name);
        MUTANTS.iter().filter(is_chosen).copied().collect()
    };
    if options.list {
        for mutant in &chosen {
            say(&format!(
                "{:<16} {}::{}",
                mutant.name, mutant.program, mutant.test
            ));
        }
        return Ok(());
    }
    let to_stderr = options.json;
    let tell = move |line: &str| {
        if to_stderr {
            eprintln!("{line}")
        } else {
            say(line)
        }
    };
    let verdicts = examine(workspace, &chosen, options.only.is_empty(), &tell)?;
    if options.json {
        say(&json_of(&verdicts));
    } else {
        table(&verdicts).iter().for_each(|line| say(line));
    }
    judge_all(&verdicts)
}

/// The models, and with `mutants` those of their mutants.
pub(crate) fn run_models(workspace: &Workspace, mutants: bool) -> Result<(), Failure> {
    let chosen: Vec<Mutant> = MUTANTS
        .iter()
        .filter(|m| mutants && m.program.is_model())
        .copied()
        .collect();
    judge_all(&examine(workspace, &chosen, true, &say)?)
}

/// The mutants of this name that models kill.
pub(crate) fn run_weakened(workspace: &Workspace, name: &str) -> Result<(), Failure> {
    find(name)?;
    let of_name = |m: &&Mutant| m.name == name && m.program.is_model();
    let chosen: Vec<Mutant> = MUTANTS.iter().filter(of_name).copied().collect();
    judge_all(&examine(workspace, &chosen, false, &say)?)
}

/// Builds what is needed, runs the models if asked to, then each mutant.
fn examine(
    workspace: &Workspace,
    chosen: &[Mutant],
    models: bool,
    tell: &(impl Fn(&str) + Sync),
) -> Result<Vec<Verdict>, Failure> {
    let mut programs: Vec<Program> = chosen.iter().map(|m| m.program).collect();
    if models {
        let all = MODELS.iter().flat_map(|&(package, files)| {
            files.iter().map(move |file| Program::model(package, file))
        });
        programs.extend(all);
    }
    programs.sort_unstable();
    programs.dedup();
    let bench = Bench::new(workspace, &programs)?;
    if models {
        bench.models(tell)?;
    }
    unweakened(&bench, chosen, models)?;
    let verdicts = Mutex::new(Vec::new());
    side_by_side(chosen, |mutant| {
        let begun = Instant::now();
        let fate = bench.fate(mutant.program, mutant.test, Some(mutant.name))?;
        let verdict = Verdict {
            mutant: *mutant,
            fate,
            seconds: begun.elapsed().as_secs_f64(),
        };
        tell(&format!(
            "mutant {}: {} by {}::{}, {:.1} s",
            mutant.name,
            verdict.word(),
            mutant.program,
            mutant.test,
            verdict.seconds
        ));
        verdicts
            .lock()
            .expect("nobody panics with it")
            .push(verdict);
        Ok(())
    })?;
    let mut verdicts = verdicts.into_inner().expect("nobody panics with it");
    let place = |v: &Verdict| {
        let is_it = |m: &Mutant| (m.name, m.test) == (v.mutant.name, v.mutant.test);
        MUTANTS.iter().position(is_it)
    };
    verdicts.sort_by_key(place);
    Ok(verdicts)
}

/// Runs the tests that are to kill without a mutant: one that fails anyway kills nothing. Models that have been run are
/// left out.
fn unweakened(bench: &Bench, chosen: &[Mutant], models_were_run: bool) -> Result<(), Failure> {
    let mut tests: Vec<(Program, &str)> = chosen
        .iter()
        .filter(|m| !(models_were_run && m.program.is_model()))
        .map(|m| (m.program, m.test))
        .collect();
    tests.sort_unstable();
    tests.dedup();
    side_by_side(&tests, |&(program, test)| {
        match bench.fate(program, test, None)? {
            Fate::Survived => Ok(()),
            Fate::Killed => Err(Failure::Run(format!(
                "{program}::{test} fails without a mutant"
            ))),
            Fate::NotTested(why) => Err(Failure::Run(format!(
                "{program}::{test} did not run: {why}"
            ))),
        }
    })
}

fn judge_all(verdicts: &[Verdict]) -> Result<(), Failure> {
    let names = |is_it: fn(&Fate) -> bool| -> Vec<&str> {
        verdicts
            .iter()
            .filter(|v| is_it(&v.fate))
            .map(|v| v.mutant.name)
            .collect()
    };
    let not_tested = names(|fate| matches!(fate, Fate::NotTested(_)));
    let survivors = names(|fate| *fate == Fate::Survived);
    if !survivors.is_empty() {
        let names = survivors.join(", ");
        return Err(Failure::Run(format!(
            "mutants that no test caught: {names}"
        )));
    }
    if !not_tested.is_empty() {
        let names = not_tested.join(", ");
        return Err(Failure::Run(format!(
            "mutants whose test did not run: {names}"
        )));
    }
    Ok(())
}

fn find(name: &str) -> Result<(), Failure> {
    if MUTANTS.iter().any(|m| m.name == name) {
        return Ok(());
    }
    let mut known: Vec<&str> = MUTANTS.iter().map(|m| m.name).collect();
    known.dedup();
    Err(Failure::Usage(format!(
        "no mutant '{name}'; there are {}",
        known.join(", ")
    )))
}

/// One line a mutant and test, and a sum.
fn table(verdicts: &[Verdict]) -> Vec<String> {
    let width = verdicts
        .iter()
        .map(|v| v.mutant.name.len())
        .max()
        .unwrap_or(0);
    let mut lines = vec![format!("\n{:<width$}  {:<8}  test", "mutant", "fate")];
    for v in verdicts {
        lines.push(format!(
            "{:<width$}  {:<8}  {}::{}",
            v.mutant.name,
            v.word(),
            v.mutant.program,
            v.mutant.test
        ));
    }
    let killed = verdicts.iter().filter(|v| v.fate == Fate::Killed).count();
    lines.push(format!("{killed} of {} killed", verdicts.len()));
    lines
}

fn json_of(verdicts: &[Verdict]) -> String {
    let rows: Vec<_> = verdicts
        .iter()
        .map(|v| {
            json!({
                "mutant": v.mutant.name,
                "package": v.mutant.program.package,
                "kind": if v.mutant.program.is_model() { "loom" } else { "unit" },
                "file": v.mutant.program.file,
                "test": v.mutant.test,
                "fate": match v.fate {
                    Fate::Killed => "killed",
                    Fate::Survived => "survived",
                    Fate::NotTested(_) => "not tested",
                },
                "seconds": v.seconds,
            })
        })
        .collect();
    let killed = verdicts.iter().filter(|v| v.fate == Fate::Killed).count();
    json!({ "mutants": rows, "killed": killed, "all": verdicts.len() }).to_string()
}

fn say(line: &str) {
    // Losing a line to a closed pipe must not change the verdict.
    let _ = writeln!(io::stdout(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(fate: Fate) -> Verdict {
        Verdict {
            mutant: MUTANTS[0],
            fate,
            seconds: 1.5,
        }
    }

    #[test]
    fn an_unknown_mutant_is_refused_with_the_list() {
        let error = find("p9").expect_err("refused");
        assert!(error.to_string().contains("p8_revoked"));
        assert_eq!(error.exit_status(), 2);
        assert!(find("p3_enter").is_ok());
    }

    #[test]
    fn every_mutant_has_a_test_once_and_every_models_file_is_known() {
        for (index, mutant) in MUTANTS.iter().enumerate() {
            let same = |m: &&Mutant| (m.name, m.test) == (mutant.name, mutant.test);
            assert_eq!(
                MUTANTS.iter().filter(same).count(),
                1,
                "{index}: {}",
                mutant.name
            );
            if let Some(file) = mutant.program.file {
                let of_package = |&&(package, _): &&(&str, _)| package == mutant.program.package;
                let (_, files) = MODELS.iter().find(of_package).expect("a package of models");
                assert!(files.contains(&file), "{file}");
            }
        }
    }

    #[test]
    fn a_survivor_fails_the_run_and_shows_in_both_forms() {
        assert!(judge_all(&[verdict(Fate::Killed)]).is_ok());
        for fate in [Fate::Survived, Fate::NotTested("x".to_owned())] {
            let verdicts = [verdict(Fate::Killed), verdict(fate)];
            assert_eq!(judge_all(&verdicts).unwrap_err().exit_status(), 1);
            assert_eq!(table(&verdicts).last().unwrap(), "1 of 2 killed");
            let json: serde_json::Value = serde_json::from_str(&json_of(&verdicts)).unwrap();
            assert_eq!((&json["killed"], &json["all"]), (&json!(1), &json!(2)));
            assert_ne!(json["mutants"][1]["fate"], "killed");
        }
    }
}
