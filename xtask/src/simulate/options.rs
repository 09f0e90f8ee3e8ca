//! The options of `cargo xtask simulate`, and the machines that they ask for.

use std::path::PathBuf;

use clap::Args;

use crate::cargo::Failure;

/// More slots than this no tree of the default shape holds: 16 · 64³.
const MOST_SLOTS: i64 = 16 * 64 * 64 * 64;
/// Levels that a tree has at the most, as `rcu_tree::Geometry` says.
const MOST_LEVELS: u32 = 4;

/// Count what grace periods touch on machines of any size, simulated in one deterministic process
#[derive(Args, Debug)]
#[command(
    long_about = "The tree's own code over simulated CPUs, one after the other in one thread: readers that come, nest \
                  and go, callbacks, storms of slots that register and unregister. Counts, per grace period, how \
                  often each node's words are written and which cache lines the scan reads, and checks every grace \
                  period and callback against a model. The same options give the same output.",
    after_help = "Examples:\n  cargo xtask simulate\n  cargo xtask simulate --cpus 100000 --grace-periods 50 --seed 7\n  \
                  cargo xtask simulate --cpus 16 --fanout-leaf 2 --fanout 2 --churn 50 --each --json counts.json"
)]
pub(crate) struct Options {
    /// How many slots the machine has; one run each
    #[arg(
        long,
        value_name = "N,…",
        value_delimiter = ',',
        default_value = "16,256,4096,65536"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=MOST_SLOTS))]
    cpus: Vec<u32>,
    /// What everything random follows from
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Grace periods of each run
    #[arg(long, value_name = "G", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) grace_periods: u32,
    /// Slots under one leaf
    #[arg(long, value_name = "A", default_value_t = rcu_tree::FANOUT_LEAF as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=64))]
    fanout_leaf: u32,
    /// Children of one inner node
    #[arg(long, value_name = "B", default_value_t = rcu_tree::FANOUT as u32)]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=64))]
    fanout: u32,
    /// How likely a slot that is outside enters a section in a round, in percent
    #[arg(long, value_name = "P", default_value_t = 25)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    readers: u32,
    /// How many of the slots a storm reaches, one storm a round, in percent
    #[arg(long, value_name = "P", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    churn: u32,
    /// How often in a round somebody drives grace periods and runs callbacks: each look reads what is waited for anew
    #[arg(long, value_name = "D", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65536))]
    drivers: u32,
    /// Also print a line for each grace period
    #[arg(long)]
    pub(crate) each: bool,
    /// Also write the counts as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Where to put cost.svg [default: target/simulate]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// One machine, and what happens on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) slots: u32,
    pub(crate) fanout_leaf: u32,
    pub(crate) fanout: u32,
    pub(crate) seed: u64,
    pub(crate) grace_periods: u32,
    /// In percent.
    pub(crate) readers: u32,
    /// In percent.
    pub(crate) churn: u32,
    pub(crate) drivers: u32,
}

impl Options {
    /// The runs asked for, smallest machine first.
    pub(crate) fn cases(&self) -> Result<Vec<Case>, Failure> {
        let mut counts = self.cpus.clone();
        counts.sort_unstable();
        counts.dedup();
        let inner = u64::from(self.fanout).pow(MOST_LEVELS - 1);
        let room = u64::from(self.fanout_leaf) * inner;
        if let Some(slots) = counts.iter().find(|slots| u64::from(**slots) > room) {
            return Err(Failure::Usage(format!(
                "--cpus {slots}: four levels of fanout {} over leaves of {} hold {room} slots",
                self.fanout, self.fanout_leaf
            )));
        }
        let case = |slots| Case {
            slots,
            fanout_leaf: self.fanout_leaf,
            fanout: self.fanout,
            seed: self.seed,
            grace_periods: self.grace_periods,
            readers: self.readers,
            churn: self.churn,
            drivers: self.drivers,
        };
        Ok(counts.into_iter().map(case).collect())
    }

    /// What the runs have in common, in words.
    pub(crate) fn conditions(&self) -> String {
        format!(
            "fanout {} over leaves of {}; seed {}; in a round a slot that is outside enters with {} %, a storm reaches \
             {} % of the slots, and somebody drives {}",
            self.fanout,
            self.fanout_leaf,
            self.seed,
            self.readers,
            self.churn,
            match self.drivers {
                1 => "once".to_owned(),
                times => format!("{times} times"),
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Wrapped {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &str) -> Result<Options, clap::Error> {
        let words = std::iter::once("simulate").chain(words.split_whitespace());
        Wrapped::try_parse_from(words).map(|wrapped| wrapped.options)
    }

    #[test]
    fn counts_are_sorted_and_the_defaults_are_those_of_the_library() {
        let cases = parse("--cpus 300,16,300").unwrap().cases().unwrap();
        let slots: Vec<u32> = cases.iter().map(|case| case.slots).collect();
        assert_eq!(slots, [16, 300]);
        assert_eq!((cases[0].fanout_leaf, cases[0].fanout), (16, 64));
        assert_eq!(parse("").unwrap().cases().unwrap().len(), 4);
        assert!(parse("--cpus 4194304").unwrap().cases().is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            "--cpus 0",
            "--cpus 4194305",
            "--cpus 1,,2",
            "--cpus many",
            "--fanout-leaf 1",
            "--fanout-leaf 65",
            "--fanout 1",
            "--fanout 65",
            "--grace-periods 0",
            "--readers 101",
            "--churn -1",
            "--drivers 0",
            "--seed x",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
        let options = parse("--cpus 17 --fanout-leaf 2 --fanout 2").unwrap();
        let failure = options.cases().expect_err("16 slots fit");
        assert_eq!(failure.exit_status(), 2);
        assert!(failure.to_string().contains("hold 16 slots"), "{failure}");
    }
}
