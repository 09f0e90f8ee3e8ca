//! The options of `cargo xtask torture`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use super::scenarios::{SCENARIOS, Scenario, find};
use crate::cargo::Failure;

/// Seconds that a scenario gets in which something is wrong: what is found late is not found.
const BROKEN_SECONDS: f64 = 10.0;
/// How long nothing may move there.
const BROKEN_PATIENCE: f64 = 4.0;

/// Torture the RCUs and the allocators: readers and writers of every kind at once, checking each other
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Examples:\n  cargo xtask torture\n  cargo xtask torture --scenario tree,tiny --seconds 600\n  \
                  cargo xtask torture --broken\n  cargo xtask torture --scenario tree-delays --seed 7\n\n\
                  Each scenario runs in a process of its own and ends with SUCCESS or FAILURE; so does the whole, and the exit \
                  status is 1 on failure. The same seed makes the same choices; how threads interleave is the machine's."
)]
pub(crate) struct Options {
    /// Seconds of each scenario
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = seconds)]
    pub(super) seconds: f64,
    /// Which scenarios; all without a flaw if none is named
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    scenario: Vec<String>,
    /// Run the scenarios with something wrong in them, which must be found within ten seconds each
    #[arg(long)]
    broken: bool,
    /// List the scenarios
    #[arg(long)]
    pub(super) list: bool,
    /// What all choices follow from; another one each time if none is given
    #[arg(long, value_name = "S")]
    pub(super) seed: Option<u64>,
    /// Seconds for which nothing may move before that is a fault
    #[arg(long, value_name = "S", default_value_t = 15.0, value_parser = seconds)]
    patience: f64,
    /// Run this executable as the worker
    #[arg(long, value_name = "FILE", hide = true)]
    pub(super) worker: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=1e6).contains(&seconds) => Ok(seconds),
        Ok(_) => Err("not between 0.1 and 1000000".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// One run of the worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) scenario: &'static Scenario,
    pub(super) seconds: f64,
    pub(super) patience: f64,
    pub(super) seed: u64,
}

impl Case {
    /// How long the worker may be silent. It tells its status every second, save while what it tortures hangs.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_secs_f64(self.patience * 5.0 + 10.0)
    }
}

impl Options {
    /// The runs asked for, in the order of the table.
    pub(super) fn cases(&self) -> Result<Vec<Case>, Failure> {
        for name in &self.scenario {
            if find(name).is_none() {
                return Err(Failure::Usage(format!(
                    "no scenario is called {name}; --list lists them"
                )));
            }
        }
        let seed = self.seed.unwrap_or_else(from_the_clock);
        let wanted = |scenario: &&Scenario| {
            if self.scenario.is_empty() {
                scenario.is_broken() == self.broken
            } else {
                self.scenario.iter().any(|name| name == scenario.name)
                    || (self.broken && scenario.is_broken())
            }
        };
        let case = |scenario: &'static Scenario| Case {
            scenario,
            seconds: if scenario.is_broken() {
                BROKEN_SECONDS
            } else {
                self.seconds
            },
            patience: if scenario.is_broken() {
                BROKEN_PATIENCE
            } else {
                self.patience
            },
            seed,
        };
        Ok(SCENARIOS.iter().filter(wanted).map(case).collect())
    }
}

fn from_the_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |time| {
        time.as_secs() ^ u64::from(time.subsec_nanos()) << 24
    })
}
