//! Barriers that are counted: so many callbacks were queued before, so many must have run after.

use super::subject::Subject;
use super::world::World;
use crate::books::{Count, Fault};
use crate::random::Random;
use crate::stage::Role;
use rcu_core::{Callback, Head};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Who posts callbacks at a time.
const POSTERS: usize = 4;

#[repr(C)]
struct Post {
    head: Head,
    ran: &'static AtomicUsize,
}

/// # Safety
/// 1. `head` is of a `Post` made by a box, whose time has come.
unsafe fn ran(head: NonNull<Head>) {
    // SAFETY: 1, and the head is the first field.
    let post = unsafe { Box::from_raw(head.cast::<Post>().as_ptr()) };
    post.ran.fetch_add(1, Ordering::Relaxed);
}

fn post<R: Subject>(rcu: R, ran_so_far: &'static AtomicUsize, lazily: bool) {
    let post = Box::new(Post {
        head: Head::new(),
        ran: ran_so_far,
    });
    let head = NonNull::from(Box::leak(post)).cast();
    if lazily {
        // SAFETY: nobody else knows the box, which the callback takes back, on whatever thread.
        unsafe { rcu.call_lazy(head, Callback::Run(ran)) };
    } else {
        // SAFETY: as above.
        unsafe { rcu.call(head, Callback::Run(ran)) };
    }
}

/// Some threads post a callback each, or a few; some of them end at once, so that their callbacks move elsewhere.
pub(crate) fn round<R: Subject>(world: &'static World<R>, role: &mut Role, random: &mut Random) {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    let rcu = world.rcu;
    let before = RAN.load(Ordering::Relaxed);
    let posters = 1 + random.below(POSTERS);
    let each = random.pick(&[1, 1, 1, 5, 40]);
    let lazily = random.one_in(4);
    let barriers = 1 + random.below(2);
    let own = random.one_in(2);
    let posted = posters * each + usize::from(own);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..posters)
            .map(|_| scope.spawn(move || (0..each).for_each(|_| post(rcu, &RAN, lazily))))
            .collect();
        for thread in threads {
            // A panic in there is booked where it happens.
            let _ = thread.join();
        }
    });
    if own {
        post(rcu, &RAN, lazily);
    }
    thread::scope(|scope| {
        for _ in 1..barriers {
            scope.spawn(move || rcu.barrier());
        }
        rcu.barrier();
        let now = RAN.load(Ordering::Relaxed).wrapping_sub(before);
        role.books().check(now == posted, Fault::Barrier, || {
            format!("{now} of {posted} callbacks had run")
        });
    });
    role.tally.add(Count::Barriers, barriers as u64);
    role.tally.add(Count::Posted, posted as u64);
    role.tally.add(Count::Threads, posters as u64);
    // What a faulty barrier left behind does not count against the next one.
    while RAN.load(Ordering::Relaxed).wrapping_sub(before) < posted && !role.stage.is_over() {
        rcu.breathe();
        thread::yield_now();
    }
}
