//! An event loop whose reads cost nothing: quiescent states by borrow.
//!
//! ```sh
//! cargo run -p kvfree --example event_loop
//! ```
//!
//! A loop that handles one event after the other has a natural moment at which it holds no reference: between two. So it is
//! *online*, which is one long section, and says at that moment that old objects may go (`quiescent`, one store). In between,
//! a guard is a borrow of no size that costs no instruction. While the loop sleeps it is *offline* and holds nobody up. That no
//! reference is kept over either is not a rule to remember: it does not compile.

use kvfree::{Global, Online, OnlineGuard, RcuBox, RcuCell};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;

/// What happens to a loop.
enum Event {
    /// A request, and where its answer goes.
    Request(u64, Sender<u64>),
    /// The configuration was replaced; nothing to do but to look.
    Look(Sender<u64>),
}

/// What answers requests, replaced while the loops run.
struct Plugin {
    version: u64,
    answer: fn(u64) -> u64,
}

static PLUGIN: RcuCell<Plugin> = RcuCell::empty();

fn plugin<'g>(guard: &'g OnlineGuard<'_, Global>) -> &'g Plugin {
    PLUGIN.load(guard).expect("there is always one")
}

fn handle(event: Event, guard: OnlineGuard<'_, Global>) {
    let plugin = plugin(&guard);
    // Who asked may have gone.
    let _ = match event {
        Event::Request(x, to) => to.send((plugin.answer)(x)),
        Event::Look(to) => to.send(plugin.version),
    };
}

/// Handles events until nobody can send any more. Returns how many there were.
fn event_loop(events: &Receiver<Event>) -> usize {
    let mut online = Online::new(Global);
    let mut handled = 0;
    loop {
        match events.try_recv() {
            Ok(event) => {
                handle(event, online.guard());
                handled += 1;
                online.quiescent();
            }
            Err(TryRecvError::Empty) => {
                // Nothing to do: sleep offline.
                let Ok(event) = online.offline(|| events.recv()) else {
                    return handled;
                };
                handle(event, online.guard());
                handled += 1;
            }
            Err(TryRecvError::Disconnected) => return handled,
        }
    }
}

/// Two loops answer requests while the plugin is replaced; after `synchronize` no loop uses the old one, whether it is busy
/// or asleep.
///
/// # Panics
/// If an answer comes from a plugin that was gone when the question was asked.
pub(crate) fn run() -> usize {
    const VERSIONS: u64 = 50;
    let publish = |version, answer| PLUGIN.store(Some(RcuBox::new(Plugin { version, answer })));
    publish(0, |x| x + 1);
    thread::scope(|s| {
        let mut senders = Vec::new();
        let mut loops = Vec::new();
        for _ in 0..2 {
            let (send, receive) = channel();
            senders.push(send);
            loops.push(s.spawn(move || event_loop(&receive)));
        }
        for version in 1..=VERSIONS {
            // Keep both busy over the change.
            let (answer, answers) = channel();
            for sender in &senders {
                for x in 0..20 {
                    let request = Event::Request(x, answer.clone());
                    sender.send(request).expect("the loop runs");
                }
            }
            if version.is_multiple_of(2) {
                publish(version, |x| x + 1);
            } else {
                publish(version, |x| x + 1000);
            }
            kvfree::synchronize();
            // From here on the old plugin could be unloaded: both have moved on.
            drop(answer);
            assert!(answers.iter().all(|answer| answer <= 20 || answer >= 1000));
            for sender in &senders {
                let (version_of, seen) = channel();
                sender.send(Event::Look(version_of)).expect("the loop runs");
                assert_eq!(seen.recv(), Ok(version));
            }
        }
        // Both loops sleep now, or will soon: that holds nobody up.
        kvfree::synchronize();
        drop(senders);
        let handled = loops.into_iter().map(|l| l.join().expect("no loop panics"));
        handled.sum()
    })
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("{} events, each by the plugin of its time", run());
}
