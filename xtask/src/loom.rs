//! `cargo xtask loom`: the loom models, and the mutants that they must catch.
//!
//! A model that passes says little until it has been seen to fail. Each ordering pair `P<n>` therefore has a
//! *mutant*: the same sources built with `--cfg weaken="…"`, one ordering weaker. The pair's own model must fail on
//! it.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;

use crate::cargo::{Failure, Workspace, host_triple, with_rustflags};
use crate::scale::progress_bar;

/// Run the loom models and, with --mutants, check that each catches its weakened ordering
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask loom --mutants\n  cargo xtask loom --weaken p3\n\n\
                  LOOM_MAX_PREEMPTIONS bounds the search (default 3)."
)]
pub(crate) struct Options {
    /// After the models, run every mutant
    #[arg(long)]
    mutants: bool,
    /// Run only this mutant
    #[arg(long, value_name = "NAME", conflicts_with = "mutants")]
    weaken: Option<String>,
}

impl Options {
    /// The models and every mutant.
    pub(crate) fn all() -> Self {
        Self {
            mutants: true,
            weaken: None,
        }
    }
}

/// One weakened ordering, and the test that must see it.
struct Mutant {
    weaken: &'static str,
    package: &'static str,
    /// The file in the package's `tests`.
    file: &'static str,
    test: &'static str,
}

const fn mutant(weaken: &'static str, package: &'static str, test: &'static str) -> Mutant {
    Mutant {
        weaken,
        package,
        file: "loom",
        test,
    }
}

impl Mutant {
    const fn in_file(self, file: &'static str) -> Self {
        Self { file, ..self }
    }
}

const MUTANTS: &[Mutant] = &[
    mutant("p1", "rcu-core", "p1_publish_vs_load"),
    mutant("p1_exchange", "rcu-core", "p1_exchange_vs_load"),
    mutant("p2", "rcu-tree", "p2_enter_vs_scan"),
    mutant("p2_quiescent", "rcu-tree", "p2_quiescent_vs_scan"),
    mutant("p3", "rcu-tree", "p3_exit_vs_scan"),
    mutant("p3_enter", "rcu-tree", "p3_second_section"),
    mutant("p3_quiescent", "rcu-tree", "p3_quiescent_vs_scan"),
    mutant("p4", "rcu-tree", "p4_end_vs_poll"),
    mutant("p4_merge", "rcu-tree", "p4_merge_of_two_lanes"),
    mutant("p4_nest", "rcu-tree", "p4_nest_of_full_and_small_cookies"),
    mutant("p5_join", "rcu-tree", "p5_join_vs_snapshot"),
    mutant("p5", "rcu-tree", "p5_unlink_vs_anothers_grace_period").in_file("loom_p5"),
    mutant(
        "p7_bits",
        "pagealloc",
        "p7_give_of_a_page_vs_claim_by_anothers_count",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_count",
        "pagealloc",
        "p7_give_of_a_page_vs_claim_of_the_whole_half",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_hints",
        "pagealloc",
        "p7_give_vs_a_searcher_that_found_nothing",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_claim_bits",
        "pagealloc",
        "p7_give_of_a_page_vs_claim_by_anothers_count",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_claim_count",
        "pagealloc",
        "p7_give_of_the_whole_half_vs_claim_of_a_page",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_claim_whole",
        "pagealloc",
        "p7_give_of_a_page_vs_claim_of_the_whole_half",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_claim_row",
        "pagealloc",
        "p7_give_of_a_page_vs_claim_of_rows",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_claim_range",
        "pagealloc",
        "p7_give_of_a_page_vs_removal_of_its_range",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_back",
        "pagealloc",
        "p7_failed_claim_of_rows_vs_claim_of_the_whole_half",
    )
    .in_file("loom_bits"),
    mutant(
        "p7_back",
        "pagealloc",
        "p7_failed_removal_vs_claim_of_the_whole_half",
    )
    .in_file("loom_bits"),
    mutant(
        "bits_back",
        "pagealloc",
        "p7_failed_claim_of_rows_vs_claim_of_the_whole_half",
    )
    .in_file("loom_bits"),
    mutant(
        "bits_back",
        "pagealloc",
        "p7_failed_removal_vs_claim_of_the_whole_half",
    )
    .in_file("loom_bits"),
    mutant("bits_idle", "pagealloc", "p7_claim_vs_tick").in_file("loom_bits"),
    mutant("gate", "pagealloc", "p12_closing_vs_first_use").in_file("loom_gate"),
    mutant("p4_ripe", "slab", "h7_recycled_sheaf_vs_reader").in_file("loom_cache"),
    mutant("p6_deferred", "slab", "p6_deferred_free_vs_alloc").in_file("loom_cache"),
    mutant("p6_inbox", "slab", "p6_deferred_free_vs_alloc").in_file("loom_cache"),
    mutant("p6_pin", "slab", "p6_pin_vs_reuse").in_file("loom_pin"),
    mutant("p7_stash", "pagealloc", "p7_stash_push_vs_take_all"),
    mutant("p7_take", "pagealloc", "p7_stash_push_vs_take_all"),
    mutant("p8", "rcu-core", "p8_owner_vs_visitor"),
    mutant("p8_biased", "pagealloc", "p8_remote_drain_vs_owner"),
    mutant("p8_bias", "rcu-core", "p8_owner_vs_visitor"),
    mutant("p8_biased", "rcu-core", "p8_owner_vs_visitor"),
    mutant("p8_busy", "rcu-core", "p8_owner_vs_visitor"),
    mutant("p8_heavy", "rcu-core", "p8_owner_vs_visitor"),
    mutant("p8_push", "rcu-core", "p8_head_stack_hand_over"),
    mutant("p8_revoked", "rcu-core", "p8_owner_vs_visitor"),
    mutant("p8_spin", "rcu-core", "p8_spin_lock_hand_over"),
    mutant("p8_spin", "slab", "p6_barn_hand_over").in_file("loom_cache"),
    mutant("p8_spin", "slab", "p6_slab_hand_over").in_file("loom_cache"),
    mutant("nulls", "rcu-core", "t23_a_reader_carried_off_starts_again").in_file("loom_r22"),
    mutant(
        "p1_nulls",
        "rcu-core",
        "p1_a_reader_sees_what_a_link_leads_to",
    )
    .in_file("loom_r22"),
    mutant("p8_work", "rcu-core", "p8_work_queue_vs_run").in_file("loom_r22"),
    mutant("refcount", "rcu-core", "r22_get_vs_last_put").in_file("loom_r22"),
    mutant("t20", "slab", "t20_pin_then_look_vs_reuse").in_file("loom_pin"),
    mutant("t38", "rcu-core", "t38_numbering_vs_grace_periods"),
    mutant("t39", "rcu-tree", "t39_barrier_vs_migration"),
    mutant("passes_enter", "kvfree", "p8_barriers_share_a_pass"),
    mutant("passes_end", "kvfree", "p8_end_of_a_pass_vs_barrier"),
    mutant("rounds_end", "kvfree", "p8_rounds_vs_barrier"),
    mutant("duty_call", "kvfree", "p8_duty_leaving_vs_noting"),
    mutant("duty_leave", "kvfree", "p8_duty_hands_the_head_on"),
];

/// The packages that have loom models, and the files that these are in.
const MODELS: [(&str, &[&str]); 5] = [
    ("rcu-core", &["loom", "loom_r22"]),
    ("rcu-tree", &["loom", "loom_p5"]),
    ("pagealloc", &["loom", "loom_bits", "loom_gate"]),
    ("slab", &["loom_cache", "loom_pin"]),
    ("kvfree", &["loom"]),
];

/// Packages whose default features bring in what is not built for models.
const WITHOUT_DEFAULTS: [&str; 1] = ["kvfree"];

/// Enough to find every known mutant, few enough that a model of three threads ends within seconds.
const MAX_PREEMPTIONS: &str = "3";

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let chosen: Vec<&Mutant> = match &options.weaken {
        Some(name) => {
            find(name)?;
            MUTANTS.iter().filter(|m| m.weaken == name).collect()
        }
        None => MUTANTS.iter().filter(|_| options.mutants).collect(),
    };
    let bench = Bench::new(workspace)?;
    if options.weaken.is_none() {
        bench.models()?;
    }
    let mut survivors = Vec::new();
    let bar = progress_bar(chosen.len() as u64);
    for mutant in chosen {
        bar.set_message(mutant.weaken);
        // On failure the bar goes with the value.
        if !bench.kills(mutant, &bar)? {
            survivors.push(mutant.weaken);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if survivors.is_empty() {
        Ok(())
    } else {
        Err(Failure::Run(format!(
            "mutants that no model caught: {}",
            survivors.join(", ")
        )))
    }
}

fn find(name: &str) -> Result<&'static Mutant, Failure> {
    MUTANTS.iter().find(|m| m.weaken == name).ok_or_else(|| {
        let known: Vec<&str> = MUTANTS.iter().map(|m| m.weaken).collect();
        Failure::Usage(format!(
            "no mutant '{name}'; there are {}",
            known.join(", ")
        ))
    })
}

/// How cargo is called for a model: same flags, target directory and bound each time, so that a mutant rebuilds
/// only the workspace's own crates.
struct Bench<'w> {
    workspace: &'w Workspace,
    target: PathBuf,
    host: String,
}

impl<'w> Bench<'w> {
    fn new(workspace: &'w Workspace) -> Result<Self, Failure> {
        for (package, files) in MODELS {
            for file in files {
                if !workspace.has_target(package, "test", file) {
                    return Err(Failure::Run(format!("{package} has no tests/{file}.rs")));
                }
            }
        }
        Ok(Self {
            workspace,
            target: workspace.target.join("loom"),
            host: host_triple()?,
        })
    }

    fn cargo_test(&self, package: &str, files: &[&str], flags: &[&str]) -> Command {
        let mut command = self.workspace.cargo();
        command.args(["test", "--release", "-p", package, "--target"]);
        command.arg(&self.host);
        if WITHOUT_DEFAULTS.contains(&package) {
            command.arg("--no-default-features");
        }
        for file in files {
            command.args(["--test", file]);
        }
        let (name, value) = with_rustflags(flags);
        command.env(name, value);
        command.env("CARGO_TARGET_DIR", &self.target);
        if env::var_os("LOOM_MAX_PREEMPTIONS").is_none() {
            command.env("LOOM_MAX_PREEMPTIONS", MAX_PREEMPTIONS);
        }
        command
    }

    /// Runs every model as it stands.
    fn models(&self) -> Result<(), Failure> {
        let mut failed = Vec::new();
        for (package, files) in MODELS {
            let status = self
                .cargo_test(package, files, &["--cfg=loom"])
                .arg("--no-fail-fast")
                .status()
                .map_err(|error| Failure::Run(format!("cargo does not start: {error}")))?;
            if !status.success() {
                failed.push(package);
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            let packages = failed.join(", ");
            Err(Failure::Run(format!("a loom model failed in {packages}")))
        }
    }

    /// Runs one model on its mutant. A build that fails is an error, not a kill.
    fn kills(&self, mutant: &Mutant, bar: &ProgressBar) -> Result<bool, Failure> {
        let Mutant {
            weaken,
            package,
            file,
            test,
        } = mutant;
        let begun = Instant::now();
        let cfg = format!("--cfg=weaken=\"{weaken}\"");
        let mut command = if cfg!(unix) {
            let mut command = self.cargo_test(package, &[file], &["--cfg=loom"]);
            let wrapper = self
                .wrapper(weaken)
                .map_err(|error| Failure::Run(format!("mutant {weaken}: no wrapper: {error}")))?;
            command.env("RUSTC_WORKSPACE_WRAPPER", wrapper);
            command
        } else {
            self.cargo_test(package, &[file], &["--cfg=loom", &cfg])
        };
        let output = command
            .args(["--", "--exact", test])
            .output()
            .map_err(|error| Failure::Run(format!("cargo does not start: {error}")))?;
        let seconds = begun.elapsed().as_secs_f64();
        let say = |line: &str| bar.suspend(|| say(line));
        match judge(&output, test) {
            Fate::Killed => {
                say(&format!(
                    "mutant {weaken}: killed by {package}::{test}, {seconds:.1} s"
                ));
                Ok(true)
            }
            Fate::Survived => {
                say(&format!(
                    "mutant {weaken}: SURVIVED {package}::{test}, {seconds:.1} s"
                ));
                Ok(false)
            }
            Fate::NotTested(why) => Err(Failure::Run(format!(
                "mutant {weaken}: {package}::{test} did not run: {why}"
            ))),
        }
    }

    /// Writes the compiler wrapper that adds the mutant's cfg. cargo calls it for the workspace's crates only and
    /// keeps their files apart by its path, so that loom and its thirty dependencies are built once for all
    /// mutants. The same cfg in `RUSTFLAGS` gives the same mutant and costs a rebuild of everything: 18 s each
    /// instead of 0.3.
    fn wrapper(&self, weaken: &str) -> io::Result<PathBuf> {
        let directory = self.target.join("wrappers");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(format!("weaken-{weaken}"));
        let script = format!("#!/bin/sh\nexec \"$@\" --cfg 'weaken=\"{weaken}\"'\n");
        if std::fs::read_to_string(&path).is_ok_and(|old| old == script) {
            return Ok(path);
        }
        std::fs::write(&path, script)?;
        make_executable(&path)?;
        Ok(path)
    }
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

#[derive(Debug, PartialEq)]
enum Fate {
    Killed,
    Survived,
    NotTested(String),
}

/// Reads a mutant's fate out of the harness's output: it must have run the one test, and the test must have failed.
fn judge(output: &Output, test: &str) -> Fate {
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
    let aborted = stderr.contains(" panicked at ") || stderr.contains("(signal: 6, SIGABRT");
    if stdout.contains("running 1 test") && aborted {
        return Fate::Killed;
    }
    if stdout.contains("running 0 tests") {
        return Fate::NotTested("no test of that name".to_owned());
    }
    let line = stderr.lines().find(|line| line.starts_with("error"));
    Fate::NotTested(line.unwrap_or("no result line").to_owned())
}

fn say(line: &str) {
    // Losing a line to a closed pipe must not change the verdict.
    let _ = writeln!(io::stdout(), "{line}");
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
    fn a_build_error_or_a_missing_test_is_not_a_kill() {
        let broken = output("", "error[E0425]: cannot find value\n");
        assert!(matches!(judge(&broken, "p2"), Fate::NotTested(why) if why.contains("E0425")));
        let missing = output("running 0 tests\n", "");
        assert!(matches!(judge(&missing, "p2"), Fate::NotTested(_)));
        let killed_by_system = output("running 1 test\n", "error: signal: 9\n");
        assert!(matches!(judge(&killed_by_system, "p2"), Fate::NotTested(_)));
    }

    #[test]
    fn an_unknown_mutant_is_refused_with_the_list() {
        let error = find("p9").err().expect("refused");
        assert!(error.to_string().contains("p8_revoked"));
        assert_eq!(error.exit_status(), 2);
        assert!(find("p3_enter").is_ok());
    }
}
