//! `cargo xtask completions`: what a shell completes the verbs and their options by.
//!
//! Shells complete programs and not what stands behind an alias of cargo's, so the script is for a program called `xtask`: for an
//! alias of that name, which the help shows.

use std::io;

use clap::{Args, Command};
use clap_complete::Shell;

/// Print the completions for a shell
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask completions bash > ~/.local/share/bash-completion/completions/xtask\n  \
                  cargo xtask completions zsh > ~/.zfunc/_xtask\n  \
                  cargo xtask completions fish > ~/.config/fish/completions/xtask.fish\n\n\
                  They complete `xtask`: alias xtask='cargo xtask'."
)]
pub(crate) struct Options {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(options: &Options, command: &mut Command) {
    // Into memory first: a closed pipe is not worth a panic.
    let mut script = Vec::new();
    clap_complete::generate(options.shell, command, "xtask", &mut script);
    let _ = io::Write::write_all(&mut io::stdout(), &script);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_is_told_of_every_verb() {
        let mut command = crate::command();
        for shell in [
            Shell::Bash,
            Shell::Elvish,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Zsh,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "xtask", &mut script);
            let script = String::from_utf8(script).expect("text");
            for verb in crate::command().get_subcommands() {
                assert!(
                    script.contains(verb.get_name()),
                    "{shell}: {}",
                    verb.get_name()
                );
            }
        }
    }
}
