//! A configuration that is replaced while requests are served from it.
//!
//! ```sh
//! cargo run -p kvfree --example hot_config
//! ```
//!
//! Who serves a request enters a section, loads the configuration once, and has that one until the request is done: no
//! lock, no count, no copy, and never half of the old and half of the new. Who replaces it waits for nobody, and the old one
//! goes when its last reader has gone. Where it matters that nobody acts by the old one *any more*, `synchronize` says so.

use kvfree::{RcuBox, RcuCell, read_lock};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// What may be set.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Config {
    /// Counts reloads.
    generation: u64,
    max_body_bytes: usize,
    blocked: Vec<Ipv4Addr>,
}

/// How many configurations are there: they own memory, and none may be lost.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// A configuration that counts itself.
#[derive(Debug)]
struct Counted(Config);

impl Counted {
    fn new(config: Config) -> RcuBox<Self> {
        // ORDERING: Relaxed: a number.
        LIVE.fetch_add(1, Ordering::Relaxed);
        RcuBox::new(Self(config))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // ORDERING: Relaxed: a number; `barrier` orders it before what comes after (P4).
        LIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

static CURRENT: RcuCell<Counted> = RcuCell::empty();

/// What is wrong with a configuration's text.
#[derive(Debug, PartialEq, Eq)]
enum ConfigError {
    NoValue { line: usize },
    UnknownKey { line: usize },
    BadValue { line: usize },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoValue { line } => write!(f, "line {line}: write `key = value`"),
            Self::UnknownKey { line } => write!(f, "line {line}: no such key"),
            Self::BadValue { line } => write!(f, "line {line}: the key does not take this value"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut config = Self {
            generation: 0,
            max_body_bytes: 1 << 20,
            blocked: Vec::new(),
        };
        for (line, words) in (1..).zip(text.lines()) {
            let (key, value) = words.split_once('=').ok_or(ConfigError::NoValue { line })?;
            let (value, bad) = (value.trim(), ConfigError::BadValue { line });
            match key.trim() {
                "generation" => config.generation = value.parse().map_err(|_| bad)?,
                "max_body_bytes" => config.max_body_bytes = value.parse().map_err(|_| bad)?,
                "blocked" => config.blocked.push(value.parse().map_err(|_| bad)?),
                _ => return Err(ConfigError::UnknownKey { line }),
            }
        }
        Ok(config)
    }
}

/// Replaces the configuration, or leaves it alone if the text is no good.
fn reload(text: &str) -> Result<(), ConfigError> {
    let config = text.parse()?;
    CURRENT.store(Some(Counted::new(config)));
    Ok(())
}

/// Blocks an address beside other writers: what they change meanwhile is not lost. When this returns, no request is being
/// served that was let in without knowing.
fn block(address: Ipv4Addr) {
    let guard = read_lock();
    let replaced = CURRENT.update(&guard, |current| {
        let mut config = current.0.clone();
        config.blocked.push(address);
        Counted::new(config)
    });
    drop(replaced);
    // Not while reading oneself.
    drop(guard);
    kvfree::synchronize();
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Served { by_generation: u64 },
    Blocked,
    TooLarge,
}

/// Serves one request by one configuration, whatever is published meanwhile.
fn serve(from: Ipv4Addr, body_bytes: usize) -> Answer {
    let guard = read_lock();
    let config = &CURRENT.load(&guard).expect("loaded at start").0;
    if config.blocked.contains(&from) {
        return Answer::Blocked;
    }
    thread::yield_now(); // the work
    if body_bytes > config.max_body_bytes {
        return Answer::TooLarge;
    }
    // The limit is the generation's: a reader never sees parts of two configurations.
    assert_eq!(config.max_body_bytes as u64, 1000 + config.generation);
    Answer::Served {
        by_generation: config.generation,
    }
}

/// Serves on three threads while the configuration is replaced a hundred times.
///
/// # Panics
/// If a request is served by anything but one whole configuration, or a configuration is lost.
pub(crate) fn run() -> u64 {
    const RELOADS: u64 = 100;
    let text = |generation| {
        let limit = 1000 + generation;
        format!("generation = {generation}\nmax_body_bytes = {limit}\nblocked = 192.0.2.1")
    };
    let (client, evil) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 66));
    reload(&text(0)).expect("a good text");
    let (started, stop) = (Barrier::new(4), AtomicBool::new(false));
    let served = thread::scope(|s| {
        let server = || {
            let (mut served, mut newest) = (0, 0);
            started.wait();
            // ORDERING: Relaxed: a flag that nothing is published by.
            while served == 0 || !stop.load(Ordering::Relaxed) {
                if let Answer::Served { by_generation } = serve(client, 500) {
                    assert!(by_generation >= newest, "the old one came back");
                    newest = by_generation;
                    served += 1;
                }
            }
            served
        };
        let servers = [s.spawn(server), s.spawn(server), s.spawn(server)];
        started.wait();
        for generation in 1..=RELOADS {
            thread::yield_now(); // until somebody edits the file
            reload(&text(generation)).expect("a good text");
            // Bad text changes nothing.
            let refused = reload("max_body_bytes = lots");
            assert_eq!(refused, Err(ConfigError::BadValue { line: 1 }));
        }
        assert_eq!(serve(client, 5000), Answer::TooLarge);
        block(evil);
        assert_eq!(serve(evil, 1), Answer::Blocked);
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
        servers.map(|server| server.join().expect("no server panics"))
    });
    let guard = read_lock();
    let last = &CURRENT.load(&guard).expect("still there").0;
    assert_eq!((last.generation, last.blocked.len()), (RELOADS, 2));
    drop(guard);
    // Everything that was replaced is dropped and free; the current one is there.
    kvfree::barrier();
    // ORDERING: Relaxed: the destructors have returned before the barrier did (P4).
    assert_eq!(LIVE.load(Ordering::Relaxed), 1);
    served.iter().sum()
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("{} requests, each by one whole configuration", run());
}
