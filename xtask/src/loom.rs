//! `cargo xtask loom`: the loom models, and the mutants that they must catch.
//!
//! Each ordering pair `P<n>` has a *mutant*, the same sources with one ordering weaker, that the pair's own model must
//! fail on: see [`crate::mutants`], which also has those that other tests kill.

use clap::Args;

use crate::cargo::{Failure, Workspace};
use crate::mutants;

/// Run the loom models and, with --mutants, check that each catches its weakened ordering
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask loom --mutants\n  cargo xtask loom --weaken p3\n\n\
                  LOOM_MAX_PREEMPTIONS bounds the search (default 3)."
)]
pub(crate) struct Options {
    /// After the models, run every mutant that a model kills
    #[arg(long)]
    mutants: bool,
    /// Run only this mutant, and without it the model that kills it
    #[arg(long, value_name = "NAME", conflicts_with = "mutants")]
    weaken: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    match &options.weaken {
        Some(name) => mutants::run_weakened(workspace, name),
        None => mutants::run_models(workspace, options.mutants),
    }
}
