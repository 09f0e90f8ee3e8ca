//! What the worker is asked to do.

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) scenario: String,
    pub(crate) seconds: Duration,
    pub(crate) seed: u64,
    /// How long nothing may move before that is a fault.
    pub(crate) patience: Duration,
}

/// The arguments; `None` if only the list of scenarios is asked for.
pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
    let (mut scenario, mut seconds, mut seed, mut patience) = (None, 10.0, 1, 15.0);
    let mut is_bench = false;
    while let Some(option) = args.next() {
        match option.as_str() {
            "--list" => return Ok(None),
            // `cargo bench` passes the one to every bench, and its caller perhaps the other.
            "--bench" | "--test" => {
                is_bench = true;
                continue;
            }
            _ => {}
        }
        let value = args
            .next()
            .ok_or_else(|| format!("{option} needs a value"))?;
        let bad = |_| format!("{option}: {value} is no number");
        match option.as_str() {
            "--scenario" => scenario = Some(value),
            "--seconds" => seconds = value.parse().map_err(|_| bad(()))?,
            "--seed" => seed = value.parse().map_err(|_| bad(()))?,
            "--patience" => patience = value.parse().map_err(|_| bad(()))?,
            _ => return Err(format!("no option is called {option}")),
        }
    }
    // Nothing is measured here: all benches of the crate at once get the list.
    if is_bench && scenario.is_none() {
        return Ok(None);
    }
    let time = |seconds: f64, option: &str| {
        Duration::try_from_secs_f64(seconds).map_err(|error| format!("{option}: {error}"))
    };
    Ok(Some(Args {
        scenario: scenario.ok_or("--scenario NAME is missing; --list lists them")?,
        seconds: time(seconds, "--seconds")?,
        seed,
        patience: time(patience, "--patience")?,
    }))
}
