//! A reader that is held across `.await`, and goes with its task from thread to thread.
//!
//! ```sh
//! cargo run -p kvfree --example held_across_await
//! ```
//!
//! A `Guard` stays on its thread, so a future that holds one over an `.await` is not `Send`, and no executor with several
//! threads takes it. A `SendGuard` is a section that belongs to no thread: it costs a lock on the way in and out, and what it
//! protects stays as long as the task keeps it. Keep it for as short as you would keep a lock you may await under: all that is
//! retired meanwhile waits.

use kvfree::{Global, RcuBox, RcuCell, SendGuard};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread::{self, ThreadId};

/// What tasks read, a piece at a time.
struct Page {
    version: usize,
    lines: Vec<String>,
}

static PAGE: RcuCell<Page> = RcuCell::empty();

fn publish(version: usize) {
    let lines = (0..8).map(|line| format!("{version}.{line}")).collect();
    PAGE.store(Some(RcuBox::new(Page { version, lines })));
}

/// Where a task was, and what it sent.
#[derive(Debug, Default)]
struct Sent {
    threads: Vec<ThreadId>,
    lines: Vec<String>,
}

/// Lets others run.
async fn pause() {
    let mut paused = false;
    poll_fn(|_| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        Poll::Pending
    })
    .await;
}

/// Sends a page line by line, waiting for the network after each: the page as it was when the request came, though newer
/// ones are published meanwhile.
async fn send_page(done: Sender<Sent>) {
    let mut sent = Sent::default();
    let guard = SendGuard::new(Global);
    let page = PAGE.load(&guard).expect("there is always a page");
    for line in &page.lines {
        sent.threads.push(thread::current().id());
        sent.lines.push(line.clone());
        pause().await;
        assert!(line.starts_with(&format!("{}.", page.version)));
    }
    // Who asked may have gone.
    let _ = done.send(sent);
}

/// A task as an executor with several threads wants it.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Eight tasks move between two threads at every `.await` while pages are replaced.
///
/// # Panics
/// If a task sends lines of two pages, or something is freed that a task reads.
pub(crate) fn run() -> usize {
    const TASKS: usize = 8;
    publish(0);
    let (done, results) = channel();
    let running = AtomicUsize::new(TASKS);
    // Each thread polls what it gets and passes it on to the other: an executor that always steals.
    let (to_first, first) = channel::<Task>();
    let (to_second, second) = channel::<Task>();
    for _ in 0..TASKS {
        let task: Task = Box::pin(send_page(done.clone()));
        to_first.send(task).expect("received below");
    }
    drop(done);
    let mut pages = 0;
    thread::scope(|s| {
        for (from, to) in [(first, to_second), (second, to_first)] {
            let running = &running;
            s.spawn(move || {
                let mut context = Context::from_waker(Waker::noop());
                // ORDERING: Relaxed, here and below: a number that nothing is published by; what tasks found goes through `done`.
                while running.load(Ordering::Relaxed) > 0 {
                    let Ok(mut task) = from.try_recv() else {
                        thread::yield_now();
                        continue;
                    };
                    if task.as_mut().poll(&mut context).is_ready() {
                        // ORDERING: Relaxed: as above.
                        running.fetch_sub(1, Ordering::Relaxed);
                    } else {
                        // Full or gone only if the other thread has panicked, which ends the test anyway.
                        let _ = to.send(task);
                    }
                }
            });
        }
        // ORDERING: Relaxed: as above.
        while running.load(Ordering::Relaxed) > 0 {
            pages += 1;
            publish(pages);
            thread::yield_now();
        }
    });
    let mut moved = 0;
    for sent in results {
        let version = sent.lines[0].trim_end_matches(".0").to_owned();
        let whole: Vec<String> = (0..8).map(|line| format!("{version}.{line}")).collect();
        assert_eq!(sent.lines, whole, "one page, whole");
        moved += sent.threads.windows(2).filter(|w| w[0] != w[1]).count();
    }
    assert_eq!(moved, TASKS * 7, "each task changed threads at each pause");
    // The sections have ended with their tasks.
    kvfree::synchronize();
    pages
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    println!("{} pages were published while eight were sent", run());
}
