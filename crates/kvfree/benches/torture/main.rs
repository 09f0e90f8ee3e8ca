//! The worker of `cargo xtask torture`: one scenario, one process.
//!
//! `torture --scenario NAME [--seconds S] [--seed N] [--patience S]` prints JSON lines (`report`); `--list` lists the scenarios.
//! What was found is in the result; the exit status is 0 if there is one. A scenario in which something is wrong on purpose
//! ends as soon as that is found.
//!
//! *Why a process a scenario*: fences, thread slots and trees are static; a detector that hangs can only be left behind; and a
//! contract that is broken on purpose ends the program.
//!
//! Nothing here times anything but its own patience: what may not happen is found out by order, not by clock.

mod args;
mod books;
mod memory;
mod random;
mod rcu;
mod report;
mod scenarios;
mod stage;
mod subjects;

use books::{Count, Fault};
use scenarios::Scenario;
use serde_json::Value;
use stage::{LOOK, Stage};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How often the status is told.
const STATUS: Duration = Duration::from_secs(1);

/// A scenario that has been started.
pub(crate) struct Running {
    pub(crate) threads: Vec<JoinHandle<()>>,
    /// Waits for what is outstanding, and looks whether all came back. Once all threads have ended.
    pub(crate) finish: Box<dyn FnOnce() + Send>,
    /// What the thing under test counts.
    pub(crate) own: Box<dyn Fn() -> Value>,
    /// Something that moves as long as all is well.
    pub(crate) progress: Box<dyn Fn() -> u64>,
}

fn main() {
    let done = args::parse(std::env::args().skip(1)).and_then(|args| {
        let Some(args) = args else {
            report::list(&scenarios::list());
            return Ok(());
        };
        let scenario = scenarios::find(&args.scenario)
            .ok_or_else(|| format!("no scenario is called {}", args.scenario))?;
        let stage = Stage::new(args.seed, args.seconds, args.patience);
        run(scenario, Box::leak(Box::new(stage)))
    });
    // Whoever hangs, hangs until here.
    std::process::exit(match done {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("torture: {message}");
            2
        }
    });
}

fn run(scenario: &'static Scenario, stage: &'static Stage) -> Result<(), String> {
    book_panics(stage);
    let Running {
        threads,
        finish,
        own,
        progress,
    } = (scenario.start)(stage)?;
    watch(scenario, stage, &own, &progress);
    stage.end();
    let found = scenario.is_broken && stage.books.nr_faults() > 0;
    // Before anything is taken down; but what hangs may hang here, too.
    let own = if found { Value::Null } else { own() };
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        for thread in threads {
            // A panic is booked by the hook.
            let _ = thread.join();
        }
        finish();
        let _ = done.send(());
    });
    // What is broken may never end.
    let patience = if found { LOOK } else { stage.patience * 3 };
    if !is_over_within(patience, stage, &ended) && !found {
        let what = || "the scenario does not come to its end".to_owned();
        stage.books.fault(Fault::Progress, what);
    }
    report::result(stage, &own);
    Ok(())
}

/// Whether the last word is said while the process has run for `patience`.
fn is_over_within(patience: Duration, stage: &Stage, ended: &Receiver<()>) -> bool {
    let begun = stage.now();
    while stage.now() - begun < patience {
        let looked = Instant::now();
        if ended.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
            return true;
        }
        stage.tick(looked.elapsed());
    }
    false
}

/// Tells the status, and sees to it that something moves.
fn watch(scenario: &Scenario, stage: &Stage, own: &dyn Fn() -> Value, progress: &dyn Fn() -> u64) {
    let books = &stage.books;
    let mut told = Instant::now();
    let mut last = (progress(), stage.now());
    while books.elapsed() < stage.seconds
        && !stage.is_over()
        && !(scenario.is_broken && books.nr_faults() > 0)
    {
        let looked = Instant::now();
        thread::sleep(LOOK);
        stage.tick(looked.elapsed());
        if told.elapsed() >= STATUS {
            told = Instant::now();
            report::status(stage, &own());
        }
        let now = progress();
        if now != last.0 {
            last = (now, stage.now());
        } else if stage.now() - last.1 > stage.patience {
            books.fault(Fault::Progress, || {
                let updates = books.count(Count::Updates);
                let seconds = stage.patience.as_secs_f64();
                format!("nothing has moved for {seconds:.1} s: at {now}, {updates} updates")
            });
            return;
        }
    }
}

/// A panic of any thread is a fault.
fn book_panics(stage: &'static Stage) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        stage
            .books
            .fault(Fault::Panic, || info.to_string().replace('\n', " "));
        print(info);
    }));
}
