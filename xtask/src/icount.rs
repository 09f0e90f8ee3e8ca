//! `cargo xtask icount`: how many instructions each fast path is, and that none of them is a locked one.
//!
//! The paths are the functions of kvfree's bench `probes`, built as every bench is. Their code is counted in the assembly that the
//! compiler writes beside the program ([`asm`]), and what one call executes by callgrind, where valgrind is installed
//! ([`callgrind`]). `xtask/icount.json` says what they were; a locked instruction or a fence more fails.

mod asm;
mod callgrind;
mod table;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use self::asm::Listing;
use self::table::{Row, Table};
use crate::cargo::{Failure, Workspace, build_bench_with_assembly, compiler_version};

/// What is written down, from the workspace root.
const TABLE: &str = "xtask/icount.json";
/// What the probes' symbols begin with.
const PREFIX: &str = "probe_";

/// Count the instructions of every fast path, and fail if one has gained a locked instruction or a fence
#[derive(Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  cargo xtask icount\n  cargo xtask icount --write\n\n\
                  Counts the code of the functions in crates/kvfree/benches/probes by the compiler's own assembly (x86-64), and \
                  what a call of each executes by callgrind, where valgrind is installed. Compares both with xtask/icount.json. \
                  Exits with 1 if a path has a locked instruction or a fence more than is written there; instructions more than \
                  a tenth are only remarked."
)]
pub(crate) struct Options {
    /// Write what was counted to xtask/icount.json, for review
    #[arg(long)]
    write: bool,
    /// Also write it here, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave callgrind out
    #[arg(long)]
    no_callgrind: bool,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    if !cfg!(target_arch = "x86_64") {
        say("icount reads the assembly of x86-64 only, and this is another architecture\n");
        return Ok(());
    }
    let place = workspace.root.join(TABLE);
    let written = if options.write {
        Table::new()
    } else {
        let text = fs::read_to_string(&place)
            .map_err(|error| Failure::Usage(format!("cannot read {TABLE}: {error}")))?;
        table::from_json(&text).map_err(|what| Failure::Usage(format!("{TABLE}: {what}")))?
    };
    // The same build as the scale verb's, whose dependencies it shares.
    let directory = workspace.target.join("scale/build");
    let (program, texts) = build_bench_with_assembly(workspace, "kvfree", "probes", &directory)?;
    let mut now = counted(&texts)?;
    let callgrind = !options.no_callgrind && callgrind::is_there();
    if callgrind {
        let mut executed = callgrind::count(&program, &directory)?;
        for (name, row) in &mut now {
            row.run = Some(executed.remove(name).ok_or_else(|| {
                Failure::Run(format!("callgrind has seen no call of {PREFIX}{name}"))
            })?);
        }
    }

    say(&table::render(&now, &written));
    if !callgrind {
        say("without callgrind, so only code was counted\n");
    }
    let text = table::json(&now, &compiler_version()?);
    if let Some(path) = &options.json {
        save(path, &text)?;
    }
    if options.write {
        return save(&place, &text);
    }
    let verdict = table::judge(&now, &written);
    for remark in &verdict.remarks {
        say(&format!("remark: {remark}\n"));
    }
    if verdict.failures.is_empty() {
        Ok(())
    } else {
        Err(Failure::Run(verdict.failures.join("; ")))
    }
}

/// The code of every probe in `texts`, files of assembly.
fn counted(texts: &[String]) -> Result<Table, Failure> {
    let mut listing = Listing::default();
    for text in texts {
        listing.read(text);
    }
    let mut table = Table::new();
    for symbol in listing.names().filter(|name| name.starts_with(PREFIX)) {
        let code = listing
            .fast_path(symbol)
            .ok_or_else(|| Failure::Run(format!("no way leads through {symbol}")))?;
        table.insert(symbol[PREFIX.len()..].to_owned(), Row { code, run: None });
    }
    if table.is_empty() {
        return Err(Failure::Run("the assembly has no probes in it".to_owned()));
    }
    Ok(table)
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text)
        .map_err(|error| Failure::Run(format!("cannot write {}: {error}", path.display())))
}

fn say(text: &str) {
    // Whoever closed the pipe has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTION: &str = "probe_read:\n\tmovq\t(%rdi), %rax\n\tretq\n.Lfunc_end0:\n";

    #[test]
    fn a_lock_that_comes_into_the_assembly_fails_against_the_table() {
        let written = counted(&[FUNCTION.to_owned()]).unwrap();
        assert_eq!(written["read"].code.instructions, 2);
        let locked = FUNCTION.replace("\tretq", "\tlock\t\torl\t$0, -64(%rsp)\n\tretq");
        let verdict = table::judge(&counted(&[locked]).unwrap(), &written);
        assert_eq!(verdict.failures.len(), 1, "{verdict:?}");
        let fenced = FUNCTION.replace("\tretq", "\tmfence\n\tretq");
        let verdict = table::judge(&counted(&[fenced]).unwrap(), &written);
        assert_eq!(verdict.failures.len(), 1, "{verdict:?}");
    }

    #[test]
    fn assembly_without_probes_is_an_error() {
        assert!(counted(&[]).is_err());
        assert!(counted(&["probe_stop:\n\tud2\n.Lfunc_end0:\n".to_owned()]).is_err());
    }

    #[test]
    fn what_is_written_down_names_no_lock_where_there_must_be_none() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("icount.json");
        let written = table::from_json(&fs::read_to_string(path).unwrap()).unwrap();
        assert!(written.len() > 15);
        // Publishing is a locked exchange, and a cookie a full fence: a swap takes one, and so does every push into a block of
        // objects that have a function of their own. A wait is a grace period, which fences.
        let locked = [
            "cell_swap",
            "retire_box",
            "retire_dropping",
            "retire_global_box",
            "retire_mixed",
            "synchronize",
        ];
        for (name, row) in &written {
            if !locked.contains(&name.as_str()) {
                assert_eq!((row.code.locked, row.code.fences), (0, 0), "{name}");
                assert_eq!(row.run.map_or(0, |run| run.locked), 0, "{name}");
            }
        }
    }
}
