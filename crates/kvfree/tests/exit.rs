//! The default stack before `main`, at exit, and under a library and its application: each in a process of its own.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

use kvfree::{GlobalBox, RcuBox, RcuCell, read_lock};
use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

static DROPPED: AtomicUsize = AtomicUsize::new(0);
static CELL: RcuCell<Counts> = RcuCell::empty();
const DROPS: usize = 4;

struct Counts(u64);

impl Drop for Counts {
    fn drop(&mut self) {
        check(self.0 == 0xa11e);
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends the process: where nobody may panic.
#[track_caller]
fn check(so: bool) {
    if !so {
        let line = std::panic::Location::caller().line();
        // SAFETY: ends the process.
        unsafe { libc::_exit(line as i32 & 0xff) };
    }
}

/// One of everything: publish, read, replace, retire, wait.
fn use_it_all() {
    let counts = || Counts(0xa11e);
    // What a thread-local's cell held was retired after its destructor had run.
    kvfree::barrier();
    let before = DROPPED.load(Ordering::Relaxed);
    let empty = CELL.is_none();
    CELL.store(Some(RcuBox::new(counts())));
    let guard = read_lock();
    let seen = CELL.load(&guard);
    CELL.store(Some(RcuBox::new(counts())));
    check(seen.is_some_and(|seen| seen.0 == 0xa11e));
    drop(guard);
    drop(GlobalBox::new(counts()));
    let object = NonNull::from(Box::leak(Box::new(counts())));
    // SAFETY: a box's, seen by nobody.
    unsafe { kvfree::retire_box(object) };
    CELL.store(None);
    kvfree::synchronize();
    kvfree::barrier();
    check(DROPPED.load(Ordering::Relaxed) == before + DROPS + usize::from(!empty));
    check(
        kvfree::stats()
            .front
            .is_some_and(|front| front.objects_waiting == 0),
    );
}

fn says(mode: &[u8]) -> bool {
    // SAFETY: a string with an end; nobody changes the environment.
    let found = unsafe { libc::getenv(c"KVFREE_TEST_MODE".as_ptr()) };
    // SAFETY: a string with an end, which stays.
    !found.is_null() && unsafe { std::ffi::CStr::from_ptr(found) }.to_bytes() == mode
}

fn say(what: &str) {
    // SAFETY: so many bytes are readable.
    unsafe { libc::write(1, what.as_ptr().cast(), what.len()) };
}

extern "C" fn before_main() {
    if says(b"early") {
        use_it_all();
        // And some for whoever comes later.
        CELL.store(Some(RcuBox::new(Counts(0xa11e))));
        say("[before main]");
    }
}

extern "C" fn at_exit() {
    use_it_all();
    say("[at exit]");
}

extern "C" fn static_destructor() {
    if says(b"late") || says(b"early") {
        use_it_all();
        say("[after exit handlers]");
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = before_main;

#[used]
#[unsafe(link_section = ".fini_array")]
static FINI: extern "C" fn() = static_destructor;

/// Runs one test of this file in a process of its own, where it finds the mode; gives back what it wrote.
fn run(mode: &str, test: &str) -> String {
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("KVFREE_TEST_MODE", mode)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{mode}: {:?} {text}",
        output.status
    );
    text
}

/// What the processes of the others run.
#[test]
fn child() {
    struct Late(RcuCell<Counts>);
    impl Drop for Late {
        fn drop(&mut self) {
            self.0.store(Some(RcuBox::new(Counts(0xa11e))));
            use_it_all();
            say("[thread-local]");
        }
    }
    thread_local! { static LATE: Late = const { Late(RcuCell::empty()) }; }
    if says(b"early") {
        let guard = read_lock();
        assert!(CELL.load(&guard).is_some(), "stored before main");
        drop(guard);
        use_it_all();
    }
    if says(b"late") || says(b"unused") {
        // SAFETY: a function that stays.
        assert_eq!(unsafe { libc::atexit(at_exit) }, 0);
    }
    if says(b"late") {
        drop(RcuBox::new(1_u8));
        LATE.with(|_| ());
    }
}

/// K13: objects are retired before anything is set up, before `main` even, and freed.
#[test]
fn k13_it_works_before_the_first_line_of_main() {
    let text = run("early", "child");
    assert!(
        text.contains("[before main]") && text.contains("[after exit handlers]"),
        "{text}"
    );
}

#[test]
fn it_works_at_exit() {
    let text = run("late", "child");
    let order = ["[thread-local]", "[at exit]", "[after exit handlers]"].map(|s| text.find(s));
    assert!(
        order.iter().all(Option::is_some) && order.is_sorted(),
        "{text}"
    );
}

/// Even if that is the first use of all.
#[test]
fn it_is_made_at_exit() {
    assert!(run("unused", "child").contains("[at exit]"));
}

mod library {
    //! Knows nothing of who uses it.
    use kvfree::{RcuBox, RcuCell, read_lock};

    static NAMES: RcuCell<Vec<String>> = RcuCell::empty();

    pub(crate) fn add(name: &str) {
        let guard = read_lock();
        let with = |old: &Vec<String>| old.iter().cloned().chain([name.into()]).collect();
        if NAMES.load(&guard).is_none() {
            NAMES.store(Some(RcuBox::new(vec![name.into()])));
        } else {
            NAMES.update(&guard, |old| RcuBox::new(with(old)));
        }
    }

    pub(crate) fn count() -> usize {
        NAMES.load(&read_lock()).map_or(0, Vec::len)
    }

    pub(crate) fn wishes() -> Result<(), kvfree::InUse> {
        kvfree::Builder::new().install()
    }
}

/// The application says how the stack is to be, the library's wishes come too late, and a guard of one is good for both.
#[test]
fn a_library_and_its_application_share_the_stack() {
    if !says(b"shared") {
        run("shared", "a_library_and_its_application_share_the_stack");
        return;
    }
    let limit = 32 << 20;
    let config = kvfree::Config::new().hard_limit(limit);
    kvfree::Builder::new().config(config).install().unwrap();
    assert!(library::wishes().is_err());
    library::add("first");
    let guard = read_lock();
    CELL.store(Some(RcuBox::new(Counts(0xa11e))));
    library::add("second");
    assert!(CELL.load(&guard).is_some());
    drop(guard);
    assert_eq!(library::count(), 2);
    use_it_all();
    assert_eq!(kvfree::stats().front.unwrap().bytes_limit, limit);
}
