//! `cargo xtask tidy`: the rules of the house that a compiler does not know.
//!
//! Each check is a function from plain values to a list of complaints, tested on small inputs with a passing and a
//! failing case. This file only gathers the inputs: `cargo metadata` and the files that git knows or would add.

mod api;
mod layers;
mod licences;
mod never;
mod orderings;
mod rows;
mod text;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::process::Command;

use clap::Args;

use crate::cargo::{CRATES, Failure, Workspace};

/// Check layers, dependencies, licences, file lengths, paths, leftovers, comments on atomic accesses, rows and public interfaces
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask tidy\n  cargo xtask tidy --bless      after a change of a public interface\n  \
                  cargo xtask tidy --rows\n  cargo xtask tidy --licences\n\n\
                  Prints one line a violation, with file and line."
)]
pub(crate) struct Options {
    /// Print the rows of the notes on Linux's semantics, each with its tests or the reason why it has none
    #[arg(long)]
    rows: bool,
    /// Write the lists of public interfaces in xtask/api anew
    #[arg(long, conflicts_with = "rows")]
    bless: bool,
    /// Print the packages that are built in, from outside, by licence
    #[arg(long, conflicts_with_all = ["rows", "bless"])]
    licences: bool,
}

/// A text file of the repository.
#[derive(Debug)]
struct Source {
    /// From the repository's root, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

pub(crate) fn with_options(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let table = if options.rows {
        rows::table(&sources(workspace)?)
    } else if options.licences {
        licences::table(&workspace.resolved()?)
    } else {
        if options.bless {
            bless(workspace)?;
        }
        return run(workspace);
    };
    // A closed pipe has seen what it wanted.
    let _ = write!(io::stdout(), "{table}");
    Ok(())
}

/// Writes the lists of public interfaces.
fn bless(workspace: &Workspace) -> Result<(), Failure> {
    let sources = sources(workspace)?;
    for krate in CRATES {
        let path = workspace.root.join(api::file(krate));
        let text = api::Api::of(krate, &sources).text(krate);
        let written = match path.parent() {
            Some(folder) => fs::create_dir_all(folder).and_then(|()| fs::write(&path, text)),
            None => fs::write(&path, text),
        };
        written.map_err(|error| Failure::Run(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

pub(crate) fn run(workspace: &Workspace) -> Result<(), Failure> {
    let sources = sources(workspace)?;
    let pairs: BTreeSet<String> = sources
        .iter()
        .filter(|source| source.path == "ARCHITECTURE.md")
        .flat_map(|source| orderings::pairs(&source.text))
        .collect();

    let mut complaints = layers::edges(workspace.packages());
    complaints.extend(layers::dependencies(workspace.packages()));
    for source in &sources {
        if source.path == "Cargo.lock" {
            complaints.extend(layers::ambiguous(&source.text));
        }
        complaints.extend(text::absolute_paths(source));
        if source.is_rust() {
            complaints.extend(text::length(source));
            complaints.extend(text::leftovers(source));
            complaints.extend(never::broken(source));
        }
        if orderings::applies_to(&source.path) {
            complaints.extend(orderings::uncommented(source));
            complaints.extend(orderings::unknown_pairs(source, &pairs));
        }
    }
    complaints.extend(licences::unknown(&workspace.resolved()?));
    complaints.extend(rows::unproved(&sources));
    complaints.extend(api::changes(&sources));
    for name in CRATES {
        complaints.extend(text::crate_files(name, &sources));
    }
    let mut stdout = io::stdout();
    for complaint in &complaints {
        // The count below says it again to whoever closed the pipe.
        let _ = writeln!(stdout, "{complaint}");
    }
    if complaints.is_empty() {
        let _ = writeln!(stdout, "tidy: {} files, nothing to say", sources.len());
        Ok(())
    } else {
        Err(Failure::Run(format!(
            "tidy: {} violations",
            complaints.len()
        )))
    }
}

/// Every text file that is tracked, or would be by `git add --all`.
fn sources(workspace: &Workspace) -> Result<Vec<Source>, Failure> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(&workspace.root)
        .output()
        .map_err(|error| Failure::Run(format!("git does not start: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().next().unwrap_or("no message");
        return Err(Failure::Run(format!("git ls-files failed: {line}")));
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let mut sources = Vec::new();
    for path in listing.split_terminator('\0') {
        // A file that is deleted but not yet from the index, or is no text, has no lines to judge.
        let Ok(bytes) = fs::read(workspace.root.join(path)) else {
            continue;
        };
        if let Ok(text) = String::from_utf8(bytes)
            && !text.contains('\0')
        {
            let path = path.to_owned();
            sources.push(Source { path, text });
        }
    }
    Ok(sources)
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}
