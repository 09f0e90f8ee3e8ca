//! Where mutants are run: the test programs, built once for all of them, and the verdict on each run.
//!
//! Two builds of a package's tests at the most, whatever the number of its mutants: one of its models (`--cfg loom`), one
//! of its own tests, both with `--cfg weaken="any"`, so that the environment names the mutant (`rcu_core::weaken`). A
//! compiler wrapper adds that flag to the workspace's crates only: their dependencies are those that are there anyway.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{MODELS, Program};
use crate::cargo::{Failure, Workspace, host_triple, with_rustflags};

/// Packages whose default features bring in what is not built for models.
const WITHOUT_DEFAULTS: [&str; 1] = ["kvfree"];

/// Enough to find every known mutant, few enough that a model of three threads ends within seconds.
const MAX_PREEMPTIONS: &str = "3";

/// After this a test hangs, or its model has grown out of bounds.
const TIME_LIMIT: Duration = Duration::from_secs(900);

/// The test programs that were built.
pub(super) struct Bench {
    programs: BTreeMap<Program, PathBuf>,
}

impl Bench {
    /// Builds what `programs` names, once each.
    pub(super) fn new(workspace: &Workspace, programs: &[Program]) -> Result<Self, Failure> {
        let mut built = BTreeMap::new();
        let mut packages: Vec<(bool, &'static str)> =
            programs.iter().map(|p| (p.is_model(), p.package)).collect();
        packages.sort_unstable();
        packages.dedup();
        for (model, package) in packages {
            let wanted: Vec<Program> = programs
                .iter()
                .filter(|p| (p.is_model(), p.package) == (model, package))
                .copied()
                .collect();
            build(workspace, model, package, &wanted, &mut built)?;
        }
        Ok(Self { programs: built })
    }

    /// Runs every model as it stands, the ones without a mutant too.
    pub(super) fn models(&self, say: &(impl Fn(&str) + Sync)) -> Result<(), Failure> {
        let files: Vec<Program> = MODELS
            .iter()
            .flat_map(|&(package, files)| {
                files.iter().map(move |file| Program::model(package, file))
            })
            .collect();
        let failed = Mutex::new(Vec::new());
        side_by_side(&files, |file| {
            let begun = Instant::now();
            let run = self.run(*file, None, None)?;
            let seconds = begun.elapsed().as_secs_f64();
            let stdout = String::from_utf8_lossy(&run.output.stdout);
            let sum = stdout
                .lines()
                .find(|line| line.starts_with("test result"))
                .unwrap_or("no result");
            say(&format!("models of {file}: {sum}, {seconds:.1} s"));
            if run.hung || !run.output.status.success() {
                say(&stdout);
                say(&String::from_utf8_lossy(&run.output.stderr));
                failed
                    .lock()
                    .expect("nobody panics with it")
                    .push(file.to_string());
            }
            Ok(())
        })?;
        let mut failed = failed.into_inner().expect("nobody panics with it");
        failed.sort();
        if failed.is_empty() {
            Ok(())
        } else {
            let files = failed.join(", ");
            Err(Failure::Run(format!("a loom model failed in {files}")))
        }
    }

    /// What `test` makes of `mutant`, or of no mutant.
    pub(super) fn fate(
        &self,
        program: Program,
        test: &str,
        mutant: Option<&str>,
    ) -> Result<Fate, Failure> {
        let run = self.run(program, Some(test), mutant)?;
        Ok(if run.hung {
            Fate::NotTested(format!("still running after {} s", TIME_LIMIT.as_secs()))
        } else {
            judge(&run.output, test)
        })
    }

    fn run(
        &self,
        program: Program,
        test: Option<&str>,
        mutant: Option<&str>,
    ) -> Result<Run, Failure> {
        let path = &self.programs[&program];
        let mut command = Command::new(path);
        if let Some(test) = test {
            command.args(["--exact", test]);
        }
        command.env("WEAKEN", mutant.unwrap_or_default());
        if env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
            command.env("LOOM_MAX_PREEMPTIONS", MAX_PREEMPTIONS);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
            .spawn()
            .and_then(wait)
            .map_err(|error| Failure::Run(format!("{} does not run: {error}", path.display())))
    }
}

/// A run of a test program.
struct Run {
    output: Output,
    /// It was stopped at the time limit.
    hung: bool,
}

fn wait(mut child: Child) -> io::Result<Run> {
    fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut pipe) = pipe {
                // What was read before an error is what there is.
                let _ = pipe.read_to_end(&mut text);
            }
            text
        })
    }
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let begun = Instant::now();
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > TIME_LIMIT {
            hung = true;
            child.kill()?;
            break child.wait()?;
        }
        thread::sleep(Duration::from_millis(10));
    };
    let text = |pipe: thread::JoinHandle<Vec<u8>>| pipe.join().unwrap_or_default();
    Ok(Run {
        output: Output {
            status,
            stdout: text(stdout),
            stderr: text(stderr),
        },
        hung,
    })
}

/// Calls `f` on every item, on as many threads as there are processors. The first error ends it.
pub(super) fn side_by_side<T: Sync>(
    items: &[T],
    f: impl Fn(&T) -> Result<(), Failure> + Sync,
) -> Result<(), Failure> {
    let next = Mutex::new(items.iter());
    let threads = thread::available_parallelism().map_or(1, Into::into);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(items.len()))
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let item = next.lock().expect("nobody panics with it").next();
                        match item {
                            Some(item) => f(item)?,
                            None => return Ok(()),
                        }
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a worker panicked"))
    })
}

/// Builds the `wanted` programs of one package and kind, and notes where they are.
fn build(
    workspace: &Workspace,
    model: bool,
    package: &str,
    wanted: &[Program],
    built: &mut BTreeMap<Program, PathBuf>,
) -> Result<(), Failure> {
    let mut command = workspace.cargo();
    command.args(["test", "--no-run", "-p", package]);
    command.arg("--message-format=json-render-diagnostics");
    let target = if model {
        // With a triple, flags reach neither proc macros nor build scripts.
        command.args(["--release", "--target", &host_triple()?]);
        if WITHOUT_DEFAULTS.contains(&package) {
            command.arg("--no-default-features");
        }
        workspace.target.join("loom")
    } else {
        command.arg("--all-features");
        workspace.target.clone()
    };
    for program in wanted {
        match program.file {
            Some(file) if workspace.has_target(package, "test", file) => {
                command.args(["--test", file]);
            }
            Some(file) => {
                return Err(Failure::Run(format!("{package} has no tests/{file}.rs")));
            }
            None => {
                command.arg("--lib");
            }
        }
    }
    let mut flags = Vec::new();
    if model {
        flags.push("--cfg=loom");
    }
    match wrapper(&target) {
        Ok(Some(wrapper)) => {
            command.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
        }
        Ok(None) => flags.push("--cfg=weaken=\"any\""),
        Err(error) => return Err(Failure::Run(format!("no compiler wrapper: {error}"))),
    }
    if !flags.is_empty() {
        let (name, value) = with_rustflags(&flags);
        command.env(name, value);
    }
    command.env("CARGO_TARGET_DIR", &target);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::Run(format!("cargo does not start: {error}")))?;
    if !output.status.success() {
        return Err(Failure::Run(format!("the tests of {package} do not build")));
    }
    let programs = executables(&String::from_utf8_lossy(&output.stdout));
    for program in wanted {
        let name = program
            .file
            .map_or_else(|| package.replace('-', "_"), str::to_owned);
        let path = programs
            .get(&name)
            .ok_or_else(|| Failure::Run(format!("cargo names no executable for {program}")))?;
        built.insert(*program, path.clone());
    }
    Ok(())
}

/// The test programs that cargo's messages name, by their target.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact" && m["profile"]["test"] == true)
        .filter_map(|m| {
            let path = m["executable"].as_str()?;
            Some((m["target"]["name"].as_str()?.replace('-', "_"), path.into()))
        })
        .collect()
}

/// Writes the compiler wrapper that makes the workspace's crates ask the environment for a mutant. `None` where there are
/// no shell scripts: then flags for everything do the same, and build everything anew.
fn wrapper(target: &Path) -> io::Result<Option<PathBuf>> {
    if !cfg!(unix) {
        return Ok(None);
    }
    const SCRIPT: &str = "#!/bin/sh\nexec \"$@\" --cfg 'weaken=\"any\"'\n";
    let directory = target.join("wrappers");
    fs::create_dir_all(&directory)?;
    let path = directory.join("weaken-any");
    if fs::read_to_string(&path).is_ok_and(|old| old == SCRIPT) {
        return Ok(Some(path));
    }
    fs::write(&path, SCRIPT)?;
    make_executable(&path)?;
    Ok(Some(path))
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    /// The test failed.
    Killed,
    /// The test passed.
    Survived,
    NotTested(String),
}

/// Reads a fate out of the harness's output: it must have run the one test.
pub(super) fn judge(output: &Output, test: &str) -> Fate {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let of_the_test = |line: &&str| line.starts_with(&format!("test {test} "));
    match stdout.lines().find(of_the_test) {
        Some(line) if line.ends_with("FAILED") => return Fate::Killed,
        Some(line) if line.ends_with("ok") => return Fate::Survived,
        _ => {}
    }
    // A second panic while the first unwinds through the model's threads aborts before the harness can say FAILED; so does
    // a library that finds a contract broken.
    if stdout.contains("running 1 test")
        && (stderr.contains(" panicked at ") || has_aborted(output))
    {
        return Fate::Killed;
    }
    if stdout.contains("running 0 tests") {
        return Fate::NotTested("no test of that name".to_owned());
    }
    Fate::NotTested(format!("no result line, {}", output.status))
}

#[cfg(unix)]
fn has_aborted(output: &Output) -> bool {
    use std::os::unix::process::ExitStatusExt;
    const SIGABRT: i32 = 6;
    output.status.signal() == Some(SIGABRT)
}

#[cfg(not(unix))]
fn has_aborted(_: &Output) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(stdout: &str, stderr: &str) -> Output {
        Output {
            status: std::process::ExitStatus::default(),
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn only_a_test_that_ran_and_failed_kills() {
        let failed = "running 1 test\ntest p2_enter_vs_scan ... FAILED\n";
        assert_eq!(judge(&output(failed, ""), "p2_enter_vs_scan"), Fate::Killed);
        let passed = "running 1 test\ntest p2_enter_vs_scan ... ok\n";
        assert_eq!(
            judge(&output(passed, ""), "p2_enter_vs_scan"),
            Fate::Survived
        );
        let aborted = output(
            "running 1 test\n",
            "thread 'p2_enter_vs_scan' panicked at x\nprocess abort",
        );
        assert_eq!(judge(&aborted, "p2_enter_vs_scan"), Fate::Killed);
    }

    #[test]
    fn a_missing_test_or_a_run_that_ended_otherwise_is_not_a_kill() {
        let missing = output("running 0 tests\n", "");
        assert!(matches!(judge(&missing, "p2"), Fate::NotTested(_)));
        let killed_by_system = output("running 1 test\n", "");
        assert!(matches!(judge(&killed_by_system, "p2"), Fate::NotTested(_)));
    }

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let artifact = |name: &str, test: bool, path: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"profile":{{"test":{test}}},"executable":{path}}}"#
            )
        };
        let messages = [
            artifact("loom", true, r#""/t/loom-1""#),
            artifact("rcu-tree", false, "null"),
            artifact("rcu-tree", true, r#""/t/rcu_tree-2""#),
            "not json".to_owned(),
        ]
        .join("\n");
        let found = executables(&messages);
        assert_eq!(found.len(), 2);
        assert_eq!(found["loom"], Path::new("/t/loom-1"));
        assert_eq!(found["rcu_tree"], Path::new("/t/rcu_tree-2"));
    }
}
