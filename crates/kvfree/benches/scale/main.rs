//! The worker of `cargo xtask scale`: one engine, one workload, one process, so that peak memory is its own.
//!
//! `scale --engine E --workload flood|trace --threads N --objects N --size BYTES --readers R [--trace FILE]`
//! prints JSON lines: `{"progress":f}`, `{"sample":[ms, kib]}`, and last `{"result":{…}}`. `--probe` says whether the
//! kernel has `membarrier`.
//!
//! Every engine allocates, touches and retires the same objects, and is timed until the last of them is really free.
//! Peers count what they free in a word of the freeing thread's own (one add an object); ours count by sheaf and block.

mod args;
mod boxes;
mod count;
mod engines;
mod flood;
mod immediate;
mod latency;
mod memory;
mod report;
mod timing;
mod trace;

use args::{Args, Workload};
use engines::Engine;

fn main() {
    let args = match args::parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => {
            let membarrier = rcu_core::fence::probe() == rcu_core::fence::Mode::Membarrier;
            println!("{{\"membarrier\":{membarrier}}}");
            return;
        }
        Err(message) => fail(&message),
    };
    let done = match args.engine.as_str() {
        "kvfree" => run(&engines::Typed::new(args.size), &args),
        "kvfree-headless" => run(&engines::Headless::new(), &args),
        "kvfree-sized" => run(&engines::BySize::new(), &args),
        "kvfree-box" => run(&boxes::Boxes::new(), &args),
        "kvfree-unbatched" => run(&engines::NotBatched::new(), &args),
        "malloc-free" => run(&engines::Malloc, &args),
        "crossbeam-epoch" => run(&engines::Crossbeam, &args),
        "kovan" => run(&engines::Kovan, &args),
        "kmalloc" => run(&immediate::Immediate::new(kvfree::objects()), &args),
        "mimalloc" => run(&immediate::Immediate::new(&mimalloc::MiMalloc), &args),
        "rusty_alloc" => run(&immediate::Immediate::new(&immediate::Rusty), &args),
        #[cfg(bench_jemalloc)]
        "jemalloc" => run(
            &immediate::Immediate::new(&tikv_jemallocator::Jemalloc),
            &args,
        ),
        other => Err(format!("no engine is called {other}")),
    };
    if let Err(message) = done {
        fail(&message);
    }
}

fn run<E: Engine>(engine: &E, args: &Args) -> Result<(), String> {
    match &args.workload {
        Workload::Flood => flood::run(engine, args),
        Workload::Reader => flood::readers(engine, args),
        Workload::Latency => latency::run(engine, args),
        Workload::Trace(file) => trace::run(engine, &trace::load(file)?),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("scale: {message}");
    std::process::exit(1);
}
