//! Readers of every kind.

use super::element::Element;
use super::subject::{Parcel, Subject};
use super::world::World;
use crate::books::{Books, Count, Fault, Tally};
use crate::random::Random;
use crate::stage::{Play, Role};
use rcu_core::{Callback, Cookie, FullCookie, Guard, Head, Online};
use std::hint;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

/// Callbacks that readers may have queued at a time.
const OUTSTANDING: usize = 2_000;

/// What a reader has seen so far in its section.
pub(crate) struct Look<R: Subject> {
    element: &'static Element<R>,
    life: usize,
    ended: usize,
    small: Cookie,
    full: FullCookie,
}

impl<R: Subject> Look<R> {
    /// Inside a section: finds an element, and takes cookies.
    pub(crate) fn begin(world: &'static World<R>, random: &mut Random) -> Self {
        let rcu = world.rcu;
        let element = world.load(random);
        let look = Self {
            element,
            life: element.life.load(Ordering::Relaxed),
            ended: rcu.grace_periods(),
            small: rcu.snapshot(),
            full: rcu.snapshot_full(),
        };
        look.check_alive(&world.stage.books);
        if random.one_in(8) {
            let (who, rounds) = world.order.look(random);
            element.note.write(who, || rounds);
        }
        look
    }

    fn check_alive(&self, books: &Books) {
        let now = self.element.life.load(Ordering::Relaxed);
        let alive = self.element.is_alive() && now == self.life;
        books.check(alive, Fault::Recycled, || {
            format!("life {} of the element, now {now}", self.life)
        });
    }

    /// Still inside the section: nothing that must not have happened has.
    pub(crate) fn end(self, world: &'static World<R>, tally: &mut Tally) {
        let books = &world.stage.books;
        let rcu = world.rcu;
        let stage = self.element.stage();
        books.check(stage <= 1, Fault::TooShort, || {
            format!("a reader holds an element at stage {stage}")
        });
        self.check_alive(books);
        let done = rcu.poll(self.small);
        books.check(!done, Fault::Cookie1, || format!("{:?}", self.small));
        let done = rcu.poll_full(self.full);
        books.check(!done, Fault::Cookie2, || format!("{:?}", self.full));
        tally.add(Count::CookieChecks, 2);
        match stage {
            0 => tally.one(Count::Published),
            1 => tally.one(Count::Removed),
            _ => books.held_too_long(stage),
        }
        // A grace period that was in progress at the beginning may have ended since; two are a close call.
        if rcu.grace_periods().wrapping_sub(self.ended) > 1 {
            tally.one(Count::Batches);
        }
        tally.one(Count::Reads);
    }
}

/// A section that was sent to another thread, with what its reader has seen.
pub(crate) struct Letter<R: Subject> {
    look: Look<R>,
    section: Parcel,
}

/// Does inside a section what takes time, and what may be done there.
fn dawdle<R: Subject>(world: &'static World<R>, random: &mut Random, tally: &mut Tally) {
    match random.below(4_096) {
        0 => thread::sleep(Duration::from_millis(1 + random.below(4) as u64)),
        1..16 => thread::sleep(Duration::from_micros(random.below(200) as u64)),
        16..400 => thread::yield_now(),
        400..3_000 => (0..random.below(400)).for_each(|_| hint::spin_loop()),
        _ => {}
    }
    let rcu = world.rcu;
    match random.below(256) {
        0..4 => {
            let ran = call_one(world, random.one_in(4), tally);
            let early = ran.is_some_and(|ran| ran.load(Ordering::Relaxed));
            world.stage.books.check(!early, Fault::TooShort, || {
                "a callback ran inside the section that queued it".into()
            });
        }
        4..10 => {
            rcu.start();
        }
        10..14 => {
            rcu.start_expedited();
        }
        14..20 => {
            rcu.drive();
        }
        20..22 => {
            rcu.start_full();
        }
        _ => {}
    }
}

/// Queues a callback that only counts, and says that it ran; unless too many are queued.
pub(crate) fn call_one<R: Subject>(
    world: &'static World<R>,
    lazily: bool,
    tally: &mut Tally,
) -> Option<Arc<AtomicBool>> {
    #[repr(C)]
    struct Counted<R: Subject> {
        head: Head,
        world: &'static World<R>,
        ran: Arc<AtomicBool>,
    }

    /// # Safety
    /// 1. `head` is of a `Counted<R>` made by a box, whose time has come.
    unsafe fn count<R: Subject>(head: NonNull<Head>) {
        // SAFETY: 1, and the head is the first field.
        let counted = unsafe { Box::from_raw(head.cast::<Counted<R>>().as_ptr()) };
        counted.ran.store(true, Ordering::Relaxed);
        // A callback may read, too.
        let mut random = Random::of(0, "callback", 0, 0);
        let _guard = counted.world.rcu.read_lock();
        counted.world.load(&mut random);
        counted.world.outstanding.fetch_sub(1, Ordering::Release);
    }

    if world.outstanding.fetch_add(1, Ordering::Relaxed) >= OUTSTANDING {
        world.outstanding.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let ran = Arc::new(AtomicBool::new(false));
    let counted = Counted {
        head: Head::new(),
        world,
        ran: ran.clone(),
    };
    let head = NonNull::from(Box::leak(Box::new(counted))).cast();
    let callback = Callback::Run(count::<R>);
    if lazily {
        tally.one(Count::LazyCalls);
        // SAFETY: nobody else knows the box, which the callback takes back, on whatever thread.
        unsafe { world.rcu.call_lazy(head, callback) };
    } else {
        tally.one(Count::Calls);
        // SAFETY: as above.
        unsafe { world.rcu.call(head, callback) };
    }
    Some(ran)
}

/// One section, or a few that overlap.
pub(crate) fn read<R: Subject>(
    world: &'static World<R>,
    random: &mut Random,
    tally: &mut Tally,
    post: Option<&SyncSender<Letter<R>>>,
) {
    match random.below(64) {
        0..24 => plain(world, random, tally),
        24..36 => nested(world, random, tally),
        36..50 => chain(world, random, tally),
        50..54 => online(world, random, tally),
        54..58 => send(world, random, tally, post),
        _ => {
            // As short as can be.
            for _ in 0..8 {
                let _guard = Guard::new(world.rcu);
                Look::begin(world, random).end(world, tally);
            }
        }
    }
}

/// One section.
fn plain<R: Subject>(world: &'static World<R>, random: &mut Random, tally: &mut Tally) {
    let _guard = Guard::new(world.rcu);
    let look = Look::begin(world, random);
    dawdle(world, random, tally);
    look.end(world, tally);
}

/// A section that is longer than most grace periods, one of which is asked for.
pub(crate) fn long<R: Subject>(world: &'static World<R>, random: &mut Random, tally: &mut Tally) {
    let _guard = Guard::new(world.rcu);
    let look = Look::begin(world, random);
    world.rcu.start();
    thread::sleep(Duration::from_micros(500 + random.below(2_000) as u64));
    look.end(world, tally);
}

/// Sections inside sections; the element is the outermost one's.
fn nested<R: Subject>(world: &'static World<R>, random: &mut Random, tally: &mut Tally) {
    let _outermost = Guard::new(world.rcu);
    let look = Look::begin(world, random);
    let depth = 1 + random.below(7);
    let mut guards: Vec<_> = (0..depth).map(|_| Guard::new(world.rcu)).collect();
    dawdle(world, random, tally);
    while !guards.is_empty() {
        // In whatever order.
        drop(guards.swap_remove(random.below(guards.len())));
        dawdle(world, random, tally);
    }
    look.end(world, tally);
}

/// Sections that overlap so that protection never lapses, though none lasts from beginning to end.
fn chain<R: Subject>(world: &'static World<R>, random: &mut Random, tally: &mut Tally) {
    let mut guard = Guard::new(world.rcu);
    let look = Look::begin(world, random);
    for _ in 0..1 + random.below(8) {
        let next = if random.one_in(4) {
            // A quiescent state of a thread that is inside by another guard is none.
            let mut online = Online::new(world.rcu);
            online.quiescent();
            let next = Guard::new(world.rcu);
            drop(online);
            next
        } else {
            Guard::new(world.rcu)
        };
        dawdle(world, random, tally);
        guard = next;
        dawdle(world, random, tally);
    }
    look.end(world, tally);
    drop(guard);
}

/// A thread that is always inside but for its quiescent states.
fn online<R: Subject>(world: &'static World<R>, random: &mut Random, tally: &mut Tally) {
    let mut online = Online::new(world.rcu);
    for _ in 0..1 + random.below(16) {
        let look = Look::begin(world, random);
        dawdle(world, random, tally);
        look.end(world, tally);
        tally.one(Count::Online);
        match random.below(64) {
            0 => online.offline(|| thread::sleep(Duration::from_micros(100))),
            1 => online.synchronize(),
            2 => {
                online.offline(|| world.rcu.synchronize_expedited());
            }
            _ => online.quiescent(),
        }
    }
}

/// A section that ends on another thread, if there are such.
fn send<R: Subject>(
    world: &'static World<R>,
    random: &mut Random,
    tally: &mut Tally,
    post: Option<&SyncSender<Letter<R>>>,
) {
    let moves = random.one_in(2);
    let guard = moves.then(|| Guard::new(world.rcu));
    let (look, section) = match guard {
        Some(guard) => {
            let look = Look::begin(world, random);
            dawdle(world, random, tally);
            (Some(look), R::move_off(guard))
        }
        None => {
            let section = world.rcu.enter_send();
            let look = section.as_ref().map(|_| Look::begin(world, random));
            (look, section)
        }
    };
    let (Some(look), Some(section)) = (look, section) else {
        return;
    };
    tally.one(Count::Sends);
    let letter = Letter { look, section };
    let left = match post {
        // Should nobody take it, it ends here.
        Some(post) => match post.try_send(letter) {
            Ok(()) => return,
            Err(TrySendError::Full(letter) | TrySendError::Disconnected(letter)) => letter,
        },
        None => letter,
    };
    left.look.end(world, tally);
    drop(left.section);
}

/// Takes sections of others out of the post, and ends them.
pub(crate) struct Receiver<R: Subject> {
    world: &'static World<R>,
    post: mpsc::Receiver<Letter<R>>,
}

impl<R: Subject> Receiver<R> {
    pub(crate) const fn new(world: &'static World<R>, post: mpsc::Receiver<Letter<R>>) -> Self {
        Self { world, post }
    }
}

impl<R: Subject> Play for Receiver<R> {
    fn round(&mut self, role: &mut Role, random: &mut Random) {
        match self.post.recv_timeout(Duration::from_millis(5)) {
            Ok(Letter { look, section }) => {
                if random.one_in(4) {
                    // Longer than most grace periods, one of which is asked for; what lies in the post waits, too.
                    self.world.rcu.start();
                    thread::sleep(Duration::from_micros(500 + random.below(3_000) as u64));
                }
                dawdle(self.world, random, &mut role.tally);
                look.end(self.world, &mut role.tally);
                drop(section);
            }
            Err(_) => self.world.rcu.breathe(),
        }
        // Without waiting for a grace period: some wait for what lies in the post.
        plain(self.world, random, &mut role.tally);
    }

    /// Who rests holds up nobody.
    fn rest(&mut self, role: &mut Role) {
        while let Ok(Letter { look, section }) = self.post.try_recv() {
            look.end(self.world, &mut role.tally);
            drop(section);
        }
        self.world.rcu.breathe();
    }
}
