//! What may stand in a file: its length, no path of one machine, nothing left open, and what every crate brings
//! along.

use super::Source;

/// A file is one data structure or one protocol; past this it is two things.
const MOST_LINES: usize = 600;

/// Where the paths of a developer's or a build machine begin. Split, so that this file passes.
const MACHINE_PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
];

const LEFTOVERS: [&str; 3] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("FIX", "ME"),
];

/// (c) No Rust file is longer than the limit.
pub(super) fn length(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    (lines > MOST_LINES).then(|| format!("{}: {lines} lines, at most {MOST_LINES}", source.path))
}

/// (d) No absolute path of a machine.
pub(super) fn absolute_paths(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        for path in MACHINE_PATHS {
            if line
                .match_indices(path)
                .any(|(at, _)| begins_path(line, at))
            {
                complaints.push(format!("{}:{number}: absolute path {path}…", source.path));
            }
        }
    }
    complaints
}

/// Whether the slash at `at` is a path's first: `x/home/y` and `example.org/home/` are not absolute.
fn begins_path(line: &str, at: usize) -> bool {
    let before = line[..at].chars().next_back();
    !before.is_some_and(|c| {
        c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '~' | '$' | '}' | '*')
    })
}

/// (f) Nothing is left open in the code.
pub(super) fn leftovers(source: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(source.text.lines()) {
        for leftover in LEFTOVERS {
            if line.contains(leftover) {
                complaints.push(format!("{}:{number}: {leftover} left open", source.path));
            }
        }
    }
    complaints
}

/// (e) Each crate has a README, a CHANGELOG and a library without `std` by default.
pub(super) fn crate_files(name: &str, sources: &[Source]) -> Vec<String> {
    let find = |file: &str| {
        let path = format!("crates/{name}/{file}");
        sources.iter().find(|source| source.path == path)
    };
    let mut complaints = Vec::new();
    for file in ["README.md", "CHANGELOG.md"] {
        if find(file).is_none_or(|source| source.text.trim().is_empty()) {
            complaints.push(format!("crates/{name}: no {file}"));
        }
    }
    if !find("src/lib.rs").is_some_and(|lib| lib.text.lines().any(is_no_std)) {
        complaints.push(format!("crates/{name}/src/lib.rs: no #![no_std]"));
    }
    complaints
}

fn is_no_std(line: &str) -> bool {
    let line = line.trim();
    line == "#![no_std]" || line.starts_with("#![cfg_attr(not(") && line.ends_with(", no_std)]")
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn a_file_of_600_lines_is_long_enough() {
        assert_eq!(length(&source("a.rs", &"\n".repeat(600))), None);
        assert!(length(&source("a.rs", &"\n".repeat(601))).is_some());
    }

    #[test]
    fn absolute_paths_are_told_from_relative_ones() {
        for path in MACHINE_PATHS {
            let bad = source("a.md", &format!("first\nsee {path}x\n"));
            let found = absolute_paths(&bad);
            assert!(
                found.len() == 1 && found[0].starts_with("a.md:2:"),
                "{found:?}"
            );
            let good = source("a.md", &format!("https://example.org{path}x, target{path}"));
            assert_eq!(absolute_paths(&good), [""; 0]);
        }
    }

    #[test]
    fn leftovers_are_found() {
        for leftover in LEFTOVERS {
            let bad = source("a.rs", &format!("fn f() {{\n    {leftover}\n"));
            assert_eq!(leftovers(&bad).len(), 1);
        }
        assert_eq!(leftovers(&source("a.rs", "fn f() {}\n")), [""; 0]);
    }

    #[test]
    fn a_crate_brings_its_papers() {
        let crate_of = |lib: &str| {
            [
                source("crates/slab/README.md", "# slab"),
                source("crates/slab/CHANGELOG.md", "# 0.1.0"),
                source("crates/slab/src/lib.rs", lib),
            ]
        };
        for lib in [
            "#![no_std]\n",
            "//! x\n#![cfg_attr(not(any(test, feature = \"std\")), no_std)]\n",
        ] {
            assert_eq!(crate_files("slab", &crate_of(lib)), [""; 0]);
        }
        assert_eq!(crate_files("slab", &crate_of("fn f() {}")).len(), 1);
        assert_eq!(crate_files("slab", &[]).len(), 3);
        assert_eq!(crate_files("kvfree", &crate_of("#![no_std]")).len(), 3);
    }
}
