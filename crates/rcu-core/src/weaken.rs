//! Mutants: places where the code can be made wrong on purpose, to see that a test notices.
//!
//! `weakened!("p3")` is the constant `false` in every build but two kinds of test builds: with `--cfg weaken="p3"` it is
//! `true`; with `--cfg weaken="any"` the environment variable `WEAKEN` says which mutant is run, so that one build serves
//! all of them. `cargo xtask mutants` has the list of mutants and of the tests that must fail on them.

/// Whether the mutant of this name is what is to run.
#[cfg(not(weaken = "any"))]
#[doc(hidden)]
#[macro_export]
macro_rules! weakened {
    ($mutant:tt) => {
        cfg!(weaken = $mutant)
    };
}

/// Whether the mutant of this name is what is to run.
#[cfg(weaken = "any")]
#[doc(hidden)]
#[macro_export]
macro_rules! weakened {
    ($mutant:tt) => {
        // The names are checked as in other builds.
        cfg!(weaken = $mutant) || $crate::weaken::is_chosen($mutant)
    };
}

/// Whether the environment names this mutant.
#[cfg(weaken = "any")]
#[must_use]
pub fn is_chosen(mutant: &str) -> bool {
    extern crate std;
    static CHOSEN: std::sync::OnceLock<std::string::String> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("WEAKEN").unwrap_or_default()) == mutant
}
