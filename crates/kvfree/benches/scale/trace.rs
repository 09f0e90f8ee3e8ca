//! The replay: a real program's allocations, in which every free is deferred.
//!
//! The orchestrator has checked the file; what is wrong with it here is an error all the same.

use crate::engines::Engine;
use crate::memory::Mark;
use crate::report::{self, Outcome};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::Instant;

const HEADER: usize = 24;
const RECORD: usize = 12;
/// Sizes below a kovan node or a head are rounded up for every engine alike.
const SMALLEST: u32 = 16;

/// An allocation, or a free of what an earlier event allocated. The size stands in both, so that an engine that is told it when it
/// frees pays for no look-up of the replay's that others are spared.
#[derive(Clone, Copy)]
struct Event {
    object: u32,
    size: u32,
    frees: bool,
}

pub(crate) struct Trace {
    objects: usize,
    /// The events of each thread, in order.
    threads: Vec<Vec<Event>>,
    frees: usize,
}

pub(crate) fn load(file: &Path) -> Result<Trace, String> {
    let name = file.display();
    let bytes = std::fs::read(file).map_err(|e| format!("{name}: {e}"))?;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let short = || format!("{name}: shorter than its header says");
    if bytes.get(..4) != Some(b"ATRC") || word(4) != Some(1) {
        return Err(format!("{name}: no trace of version 1"));
    }
    let objects = word(8).ok_or_else(short)? as usize;
    let nr_threads = word(12).ok_or_else(short)? as usize;
    let mut trace = Trace {
        objects,
        threads: vec![Vec::new(); nr_threads.max(1)],
        frees: 0,
    };
    let mut sizes = vec![0; objects];
    for record in bytes[HEADER..].chunks_exact(RECORD) {
        let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| record[at + i]));
        let (object, size) = (field(0), field(4));
        let thread = usize::from(u16::from_le_bytes([record[8], record[9]]));
        let known = sizes.get_mut(object as usize);
        let (Some(known), Some(events)) = (known, trace.threads.get_mut(thread)) else {
            return Err(format!(
                "{name}: an object or thread beyond the header's count"
            ));
        };
        if size == 0 {
            trace.frees += 1;
        } else {
            *known = size.max(SMALLEST);
        }
        events.push(Event {
            object,
            size: *known,
            frees: size == 0,
        });
    }
    Ok(trace)
}

/// Replays one thread's events. A free of another thread's object waits until it has been allocated.
fn replay<E: Engine>(engine: &E, events: &[Event], objects: &[AtomicPtr<u8>], done: &AtomicUsize) {
    for (i, event) in events.iter().enumerate() {
        let place = &objects[event.object as usize];
        let size = event.size as usize;
        if !event.frees {
            let object = engine.alloc(size);
            engine.touch(object, size, i);
            place.store(object.as_ptr(), Ordering::Release);
        } else {
            let object = loop {
                match NonNull::new(place.load(Ordering::Acquire)) {
                    Some(object) => break object,
                    None => std::thread::yield_now(),
                }
            };
            place.store(ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: allocated with this size, and freed once in a checked trace.
            unsafe { engine.retire(object, size) };
        }
        if i.is_multiple_of(4096) {
            done.store(i, Ordering::Relaxed);
        }
    }
}

pub(crate) fn run<E: Engine>(engine: &E, trace: &Trace) -> Result<(), String> {
    let objects: Vec<AtomicPtr<u8>> = (0..trace.objects)
        .map(|_| AtomicPtr::new(ptr::null_mut()))
        .collect();
    let done: Vec<_> = trace.threads.iter().map(|_| AtomicUsize::new(0)).collect();
    let mark = Mark::now();
    let periods = engine.grace_periods();
    let start = Barrier::new(trace.threads.len() + 1);
    let elapsed = std::thread::scope(|s| {
        let threads: Vec<_> = trace
            .threads
            .iter()
            .zip(&done)
            .map(|(events, done)| {
                let (objects, start) = (&objects, &start);
                s.spawn(move || {
                    start.wait();
                    let began = Instant::now();
                    replay(engine, events, objects, done);
                    began
                })
            })
            .collect();
        start.wait();
        // By the replaying threads' own clocks: this one may not get to run before they are done.
        let began = threads
            .into_iter()
            .map(|t| t.join().expect("a replaying thread"))
            .min();
        let began = began.expect("at least one thread");
        engine.finish(trace.frees);
        began.elapsed()
    });
    report::progress(1.0);
    let in_use: Vec<_> = objects
        .iter()
        .filter_map(|o| NonNull::new(o.load(Ordering::Relaxed)))
        .collect();
    Outcome {
        threads: trace.threads.len(),
        objects: trace.objects,
        elapsed,
        grace_periods: engine
            .grace_periods()
            .zip(periods)
            .map(|(now, then)| now - then),
        peak_extra_kib: mark.peak_extra_kib(),
        outstanding: engine.outstanding(trace.frees, &in_use),
        reads_per_second: None,
        retire_ns: None,
    }
    .print();
    Ok(())
}
