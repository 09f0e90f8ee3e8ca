//! `cargo xtask simulate`: one tree over as many slots as wanted, in one thread, counted instead of timed.
//!
//! The library's code runs as it is; only the machine below it is made up (`cpus`): who runs on which slot is a
//! variable, and everything that slots do follows from a seed (`world`). So a run has no races and no clock, the same
//! options give the same bytes, and what cannot be had in hardware, a machine of 65,536 CPUs, can at least be counted:
//! which words a grace period writes and reads (`ledger`). A model beside it knows which sections are open, and so
//! when a grace period ends early, or late.

mod chart;
mod cpus;
mod ledger;
mod options;
mod table;
mod world;

use std::fs;
use std::path::Path;

pub(crate) use self::options::Options;

use self::table::Row;
use crate::cargo::{Failure, Workspace};
use crate::scale::{cannot_write, check_writable, progress_bar, save, say};

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<(), Failure> {
    let cases = options.cases()?;
    if let Some(path) = &options.json {
        check_writable(path)?;
    }
    let directory = match &options.out {
        Some(directory) => directory.clone(),
        None => workspace.target.join("simulate"),
    };
    make(&directory, options.out.is_some())?;

    let steps = u64::from(options.grace_periods);
    let bar = progress_bar(steps * cases.len() as u64);
    let mut rows: Vec<Row> = Vec::new();
    for (case, before) in cases.iter().zip((0..).step_by(steps as usize)) {
        bar.set_message(format!("{} slots", case.slots));
        match world::run(case, |ended| bar.set_position(before + ended)) {
            Ok(run) => rows.push(Row { case: *case, run }),
            Err(fault) => {
                bar.finish_and_clear();
                return Err(Failure::Run(format!("{} slots: {fault}", case.slots)));
            }
        }
    }
    bar.finish_and_clear();

    let verdicts = table::verdicts(&rows);
    let mut text = String::new();
    if options.each {
        text.push_str(&table::each(&rows));
        text.push('\n');
    }
    text.push_str(&table::render(&rows));
    text.push_str(&format!("\n{}\n\n{}", options.conditions(), table::LEGEND));
    if let Some(path) = &options.json {
        save(path, &table::json(options.seed, &rows, &verdicts))?;
    }
    let picture = directory.join("cost.svg");
    let svg = chart::cost(&rows).map_err(|error| cannot_write(&picture, &error))?;
    save(&picture, &svg)?;
    text.push_str(&format!("\n\npicture: {}\n", picture.display()));
    for verdict in &verdicts {
        text.push_str(&format!("\n{verdict}"));
    }
    say(&text);
    let broken: Vec<&str> = verdicts
        .iter()
        .filter(|verdict| !verdict.holds)
        .map(|verdict| verdict.text.as_str())
        .collect();
    if broken.is_empty() {
        Ok(())
    } else {
        Err(Failure::Run(format!("falls short: {}", broken.join("; "))))
    }
}

/// Makes the directory; that it cannot be is the caller's mistake if the caller named it.
fn make(directory: &Path, named: bool) -> Result<(), Failure> {
    fs::create_dir_all(directory).map_err(|error| {
        let failure = cannot_write(directory, &error.to_string());
        if named {
            Failure::Usage(failure.to_string())
        } else {
            failure
        }
    })
}
