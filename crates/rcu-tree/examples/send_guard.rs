//! A reader that spans `.await`: its section goes with the task, from thread to thread.
//!
//! The executor is the smallest one that moves tasks between threads: a queue, two threads that take from it, and tasks
//! that yield by putting themselves back.

use rcu_core::{Callback, GracePeriod, Head, Rcu, SendGuard};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

rcu_tree::static_tree! {
    /// Readers of the configuration.
    pub struct Configs;
}

/// What is read, and replaced while it is read.
#[repr(C)]
struct Config {
    head: Head,
    version: usize,
}

static CURRENT: AtomicPtr<Config> = AtomicPtr::new(std::ptr::null_mut());
static FREED: AtomicUsize = AtomicUsize::new(0);

fn publish(version: usize) {
    let head = Head::new();
    let new = Box::into_raw(Box::new(Config { head, version }));
    // ORDERING: P1 (publish side); Acquire, so that the old one is whole before its head is queued.
    let old = CURRENT.swap(new, Ordering::AcqRel);
    if let Some(old) = NonNull::new(old) {
        // SAFETY: unlinked just now, queued once; `free` may run on any thread.
        unsafe { Configs.call(old.cast(), Callback::Run(free)) };
    }
}

/// # Safety
/// `head` is the first field of a leaked `Config` that nobody reads any more.
unsafe fn free(head: NonNull<Head>) {
    // SAFETY: see above.
    drop(unsafe { Box::from_raw(head.cast::<Config>().as_ptr()) });
    // ORDERING: Relaxed: a number; `barrier` orders it before what comes after (P4).
    FREED.fetch_add(1, Ordering::Relaxed);
}

/// Evidence of a section that may leave its thread, and what was loaded under it.
struct Reading {
    config: AtomicPtr<Config>,
    _section: SendGuard<Configs>,
}

impl Reading {
    fn new() -> Self {
        let section = SendGuard::new(Configs);
        Self {
            // ORDERING: P1 (load side).
            config: AtomicPtr::new(CURRENT.load(Ordering::Acquire)),
            _section: section,
        }
    }

    fn version(&self) -> usize {
        // ORDERING: Relaxed: never changed; it is atomic for the sake of `Send`.
        // SAFETY: loaded inside the section, which lasts as long as `self`.
        unsafe { &*self.config.load(Ordering::Relaxed) }.version
    }
}

/// Reads, lets everybody else run for a while, and finds what it has read as it was.
async fn read_across_awaits(hops: usize, seen: Arc<Mutex<Vec<thread::ThreadId>>>) {
    let reading = Reading::new();
    let version = reading.version();
    for _ in 0..hops {
        seen.lock().unwrap().push(thread::current().id());
        Yield(false).await;
        assert_eq!(reading.version(), version, "it stays valid across `.await`");
    }
}

/// Lets others run once.
struct Yield(bool);

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 {
            return Poll::Ready(());
        }
        self.0 = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A task, and the queue that it comes back to.
struct Task {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    ready: Mutex<(VecDeque<Arc<Task>>, usize)>,
    changed: Condvar,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let queue = self.queue.clone();
        queue.ready.lock().unwrap().0.push_back(self);
        queue.changed.notify_one();
    }
}

impl Queue {
    fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        self.ready.lock().unwrap().1 += 1;
        let task = Task {
            future: Mutex::new(Some(Box::pin(future))),
            queue: self.clone(),
        };
        Arc::new(task).wake();
    }

    /// Runs tasks until none is left.
    fn run(&self) {
        loop {
            let mut ready = self.ready.lock().unwrap();
            let task = loop {
                if ready.1 == 0 {
                    return;
                }
                match ready.0.pop_front() {
                    Some(task) => break task,
                    None => ready = self.changed.wait(ready).unwrap(),
                }
            };
            drop(ready);
            let waker = Waker::from(task.clone());
            let mut future = task.future.lock().unwrap();
            let Some(running) = future.as_mut() else {
                continue;
            };
            if running
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
            {
                *future = None;
                self.ready.lock().unwrap().1 -= 1;
                self.changed.notify_all();
            }
        }
    }
}

/// Readers that hop between two threads while a third one replaces and frees what they read.
///
/// # Panics
/// If something that is read is freed, or something that is unlinked is not.
pub(crate) fn run() {
    const TASKS: usize = 8;
    const HOPS: usize = 50;
    // ORDERING: Relaxed: nothing waits yet.
    let freed_before = FREED.load(Ordering::Relaxed);
    publish(0);
    let queue = Arc::new(Queue::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let stop = AtomicBool::new(false);

    // A section that no thread is inside of holds grace periods up.
    let held = Reading::new();
    let cookie = Configs.start();
    Configs.drive();
    assert!(!Configs.poll(cookie));

    for _ in 0..TASKS {
        queue.spawn(read_across_awaits(HOPS, seen.clone()));
    }
    let published = thread::scope(|s| {
        let writer = s.spawn(|| {
            let mut version = 0;
            // ORDERING: Relaxed: a flag that nothing is published by.
            while !stop.load(Ordering::Relaxed) || version == 0 {
                version += 1;
                publish(version);
                thread::yield_now();
            }
            version
        });
        let executors = [s.spawn(|| queue.run()), s.spawn(|| queue.run())];
        for executor in executors {
            executor
                .join()
                .expect("a task found its configuration changed");
        }
        // ORDERING: Relaxed: as above.
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")
    });
    assert_eq!(seen.lock().unwrap().len(), TASKS * HOPS);

    assert_eq!(held.version(), 0, "published first, replaced long ago");
    assert!(!Configs.poll(cookie), "still held");
    // It may end on any thread; who waits for it is let go.
    thread::spawn(move || drop(held)).join().expect("no panic");
    Configs.wait(cookie);
    Configs.barrier();
    // ORDERING: Relaxed: the callbacks have returned before the barrier did (P4).
    assert_eq!(FREED.load(Ordering::Relaxed) - freed_before, published);
    // ORDERING: as in `publish`; null publishes nothing.
    let last = CURRENT.swap(std::ptr::null_mut(), Ordering::AcqRel);
    Configs.synchronize();
    // SAFETY: unlinked, and a grace period has passed.
    assert_eq!(unsafe { Box::from_raw(last) }.version, published);
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    run();
    println!("every section saw what it had loaded, on whatever thread");
}
