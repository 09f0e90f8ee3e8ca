//! Single steps of [`SegList`]; whole runs against a model are in `tests/prop.rs`.

mod explorer;

use super::*;

fn cookie(nr: usize) -> Cookie {
    Cookie::from_raw(nr * 4)
}

/// Pushes leaked heads, so that addresses are stable; the list is a few heads long.
fn enqueue(list: &mut SegList, heads: &[Head]) {
    for head in heads {
        // SAFETY: the heads outlive the list in every test, are on no list, and stay on this thread.
        unsafe { list.enqueue(NonNull::from(head)) };
    }
}

fn drain(mut list: CbList) -> Vec<NonNull<Head>> {
    core::iter::from_fn(|| list.pop_front()).collect()
}

#[test]
fn a_zeroed_list_is_empty() {
    let zeroed = core::mem::MaybeUninit::<SegList>::zeroed();
    // SAFETY: `SegList` is `ZeroInit`.
    let mut list = unsafe { zeroed.assume_init() };
    assert!(list.is_empty() && !list.has_ready() && list.pending_cookie().is_none());
    list.advance(Seq::from_raw(usize::MAX & !3));
    assert!(!list.accelerate(cookie(1)));
    assert!(list.extract_done().is_empty());
    let heads = [Head::new()];
    enqueue(&mut list, &heads);
    assert_eq!(list.seglens(), [0, 0, 0, 1]);
}

#[test]
fn s2_queueing_counts_before_it_links_and_gives_no_number() {
    let heads: [Head; 3] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    for (i, head) in heads.iter().enumerate() {
        enqueue(&mut list, core::slice::from_ref(head));
        assert_eq!((list.len(), list.nr_unnumbered()), (i + 1, i + 1));
        assert!(list.pending_cookie().is_none());
        list.advance(Seq::from_raw(4 * i));
    }
    assert_eq!(
        list.seglens(),
        [0, 0, 0, 3],
        "time alone makes nothing ready"
    );
    assert!(list.accelerate(cookie(7)));
    let more: [Head; 1] = [Head::new()];
    enqueue(&mut list, &more);
    assert_eq!(list.seglens(), [0, 3, 0, 1], "behind those with a number");
}

#[test]
fn t38_an_empty_list_takes_no_snapshot() {
    let mut list = SegList::new();
    let refuse = || unreachable!("there is nothing to number");
    assert_eq!(list.number(refuse, || unreachable!("nor to read")), None);
    let heads: [Head; 1] = [Head::new()];
    enqueue(&mut list, &heads);
    let got = list.number(|| cookie(2), || Seq::from_raw(5));
    assert_eq!(got, Some(cookie(2)));
    let done = list.number(|| cookie(3), || Seq::from_raw(8));
    assert_eq!((done, list.seglens()), (None, [1, 0, 0, 0]));
}

#[test]
fn s4_accelerate_fills_the_earliest_segment_that_will_do() {
    let heads: [Head; 5] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    enqueue(&mut list, &heads[..1]);
    assert!(list.accelerate(cookie(1)));
    assert!(list.accelerate(cookie(1)), "idempotent");
    assert_eq!(list.seglens(), [0, 1, 0, 0]);
    assert!(!list.accelerate(cookie(2)), "nothing waits for 2");
    enqueue(&mut list, &heads[1..2]);
    assert!(list.accelerate(cookie(2)));
    assert_eq!(list.seglens(), [0, 1, 1, 0]);
    enqueue(&mut list, &heads[2..3]);
    assert!(
        !list.accelerate(cookie(3)),
        "both occupied by earlier numbers"
    );
    assert_eq!(list.seglens(), [0, 1, 1, 1]);
    assert!(list.accelerate(cookie(2)));
    assert_eq!(list.seglens(), [0, 1, 2, 0]);
    enqueue(&mut list, &heads[3..4]);
    assert!(list.accelerate(cookie(1)), "merges later numbers too");
    assert_eq!(list.seglens(), [0, 4, 0, 0]);
    assert_eq!(list.pending_cookie(), Some(cookie(1)));
    assert_eq!(list.last_cookie(), Some(cookie(1)));
}

#[test]
fn s3_advance_moves_leading_segments_and_compacts() {
    let heads: [Head; 3] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    enqueue(&mut list, &heads[..1]);
    list.accelerate(cookie(1));
    enqueue(&mut list, &heads[1..2]);
    list.accelerate(cookie(2));
    enqueue(&mut list, &heads[2..]);
    for _ in 0..2 {
        list.advance(Seq::from_raw(4));
        assert_eq!(list.seglens(), [1, 1, 0, 1]);
        assert_eq!(list.pending_cookie(), Some(cookie(2)));
    }
    list.advance(Seq::from_raw(8));
    assert_eq!(list.seglens(), [2, 0, 0, 1]);
    assert_eq!(
        drain(list.extract_done()),
        [NonNull::from(&heads[0]), NonNull::from(&heads[1])]
    );
}

#[test]
fn s5_entrain_follows_the_last_callback_even_one_in_flight() {
    let heads: [Head; 4] = core::array::from_fn(|_| Head::new());
    let entrain = |list: &mut SegList, head: &Head| {
        // SAFETY: the heads outlive the list, are on no list, and stay on this thread.
        unsafe { list.entrain(NonNull::from(head)) }
    };
    let mut list = SegList::new();
    assert!(!entrain(&mut list, &heads[0]));
    assert_eq!(list.len(), 0);
    enqueue(&mut list, &heads[..1]);
    list.accelerate(cookie(1));
    assert!(entrain(&mut list, &heads[1]));
    assert_eq!(list.seglens(), [0, 2, 0, 0], "no grace period of its own");
    list.advance(Seq::from_raw(4));
    let batch = list.extract_done();
    assert_eq!((list.len(), list.in_flight(), batch.len()), (2, 2, 2));
    assert!(entrain(&mut list, &heads[2]), "t39: only a batch in flight");
    assert_eq!(list.seglens(), [1, 0, 0, 0]);
    list.finished(2);
    assert_eq!((list.len(), list.in_flight()), (1, 0));
}

#[test]
fn s6_the_rest_of_a_batch_returns_to_the_front() {
    let heads: [Head; 3] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    enqueue(&mut list, &heads[..2]);
    list.accelerate(cookie(1));
    list.advance(Seq::from_raw(4));
    let mut batch = list.extract_done();
    enqueue(&mut list, &heads[2..]);
    list.accelerate(cookie(2));
    list.advance(Seq::from_raw(8));
    assert_eq!(batch.pop_front(), Some(NonNull::from(&heads[0])));
    list.finished(1);
    assert_eq!(list.len(), 2);
    list.insert_done(batch);
    assert_eq!((list.len(), list.in_flight()), (2, 0));
    assert_eq!(
        drain(list.extract_done()),
        [NonNull::from(&heads[1]), NonNull::from(&heads[2])]
    );
}

#[test]
fn s7_merge_starts_over_and_leaves_the_batch_in_flight() {
    let heads: [Head; 8] = core::array::from_fn(|_| Head::new());
    let fill = |list: &mut SegList, heads: &[Head]| {
        enqueue(list, &heads[..1]);
        list.accelerate(cookie(1));
        list.advance(Seq::from_raw(4));
        enqueue(list, &heads[1..2]);
        list.accelerate(cookie(2));
        enqueue(list, &heads[2..3]);
        list.accelerate(cookie(3));
        enqueue(list, &heads[3..4]);
    };
    let (mut survivor, mut dead) = (SegList::new(), SegList::new());
    fill(&mut survivor, &heads[..4]);
    fill(&mut dead, &heads[4..]);
    survivor.merge(&mut dead);
    assert_eq!(survivor.seglens(), [2, 1, 1, 4]);
    assert_eq!(survivor.len(), 8);
    assert!(dead.is_empty());
    survivor.advance(Seq::from_raw(12));
    survivor.accelerate(cookie(5));
    survivor.advance(Seq::from_raw(20));
    let order = [4, 0, 1, 2, 3, 5, 6, 7].map(|i: usize| NonNull::from(&heads[i]));
    assert_eq!(drain(survivor.extract_done()), order);

    let more: [Head; 1] = [Head::new()];
    enqueue(&mut dead, &more);
    dead.accelerate(cookie(6));
    dead.advance(Seq::from_raw(24));
    let batch = dead.extract_done();
    survivor.merge(&mut dead);
    assert_eq!((dead.len(), survivor.in_flight()), (1, 8));
    dead.finished(drain(batch).len());
    assert!(dead.is_empty());
}

#[test]
fn s9_either_kind_of_grace_period_makes_a_segment_ready() {
    let pair = |normal: usize, expedited: usize| FullCookie::new(cookie(normal), cookie(expedited));
    let done_at = |normal: usize, expedited: usize| {
        let [normal, expedited] = [normal, expedited].map(|n| Seq::from_raw(4 * n));
        move |c: FullCookie| normal.is_done(c.normal()) || expedited.is_done(c.expedited())
    };
    let heads: [Head; 4] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    let queue = |list: &mut SegList, i: usize, number: FullCookie| {
        enqueue(list, &heads[i..=i]);
        list.number_full(|| number, done_at(0, 0))
    };
    assert_eq!(queue(&mut list, 0, pair(1, 1)), Some(pair(1, 1)));
    assert_eq!(queue(&mut list, 1, pair(2, 1)), Some(pair(2, 1)));
    // The same normal number: one segment, which waits for the later expedited one.
    assert_eq!(queue(&mut list, 2, pair(2, 3)), Some(pair(2, 3)));
    assert_eq!(list.seglens(), [0, 1, 2, 0]);
    // Nothing new: the number that comes sooner stays.
    assert!(list.accelerate_full(pair(2, 9)));
    list.advance_full(done_at(0, 2));
    assert_eq!(
        list.seglens(),
        [1, 2, 0, 0],
        "an expedited one, the first segment's"
    );
    list.advance_full(done_at(0, 3));
    assert_eq!(list.seglens(), [3, 0, 0, 0]);
    assert_eq!(queue(&mut list, 3, pair(5, 9)), Some(pair(5, 9)));
    assert_eq!(
        (list.pending_cookie(), list.last_cookie()),
        (Some(cookie(5)), Some(cookie(5)))
    );
    list.advance_full(done_at(5, 3));
    assert_eq!(list.seglens(), [4, 0, 0, 0], "a normal one");
}

#[test]
fn r17_what_was_kept_aside_comes_behind_everything_without_a_number() {
    let heads: [Head; 4] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    enqueue(&mut list, &heads[..2]);
    let mut aside = CbList::new();
    for head in &heads[2..] {
        // SAFETY: the heads outlive the list, are on no list, and stay on this thread.
        unsafe { aside.push_back(NonNull::from(head)) };
    }
    list.accelerate(cookie(1));
    list.insert_pending(aside);
    assert_eq!((list.seglens(), list.len()), ([0, 2, 0, 2], 4));
    list.insert_pending(CbList::new());
    list.accelerate(cookie(2));
    list.advance(Seq::from_raw(8));
    let order = [0, 1, 2, 3].map(|i: usize| NonNull::from(&heads[i]));
    assert_eq!(drain(list.extract_done()), order);
}

#[test]
fn s7_the_rest_of_a_batch_comes_in_front_of_what_was_merged_behind_it() {
    let heads: [Head; 3] = core::array::from_fn(|_| Head::new());
    let (mut survivor, mut dead) = (SegList::new(), SegList::new());
    enqueue(&mut dead, &heads[..2]);
    dead.accelerate(cookie(1));
    dead.advance(Seq::from_raw(4));
    let rest = dead.extract_done();
    // SAFETY: the heads outlive the lists, are on no other, and stay on this thread.
    assert!(unsafe { dead.entrain(NonNull::from(&heads[2])) });
    survivor.merge(&mut dead);
    assert_eq!((dead.len(), survivor.seglens()), (2, [1, 0, 0, 0]));
    dead.finished(rest.len());
    survivor.adopt_done(rest);
    assert_eq!((dead.len(), survivor.len()), (0, 3));
    let order = [0, 1, 2].map(|i: usize| NonNull::from(&heads[i]));
    assert_eq!(drain(survivor.extract_done()), order);
}

#[test]
fn removing_some_keeps_the_order_and_the_numbers_of_the_rest() {
    let heads: [Head; 12] = core::array::from_fn(|_| Head::new());
    let mut list = SegList::new();
    enqueue(&mut list, &heads[..3]);
    list.accelerate(cookie(1));
    list.advance(Seq::from_raw(4));
    enqueue(&mut list, &heads[3..6]);
    list.accelerate(cookie(2));
    enqueue(&mut list, &heads[6..9]);
    list.accelerate(cookie(3));
    enqueue(&mut list, &heads[9..]);
    assert_eq!(list.seglens(), [3, 3, 3, 3]);
    // All of the segment that waits for the earliest, and one of each of the others.
    let gone: [NonNull<Head>; 6] = [1, 3, 4, 5, 7, 10].map(|i: usize| NonNull::from(&heads[i]));
    assert_eq!(list.remove_if(|head| gone.contains(&head)), 6);
    assert_eq!(list.seglens(), [2, 2, 0, 2], "I2: no gap");
    assert_eq!((list.len(), list.in_flight()), (6, 0));
    assert_eq!(list.pending_cookie(), Some(cookie(3)));
    list.advance(Seq::from_raw(8));
    assert_eq!(list.seglens()[DONE], 2, "the number went along");
    list.advance(Seq::from_raw(12));
    list.accelerate(cookie(4));
    list.advance(Seq::from_raw(16));
    let order = [0, 2, 6, 8, 9, 11].map(|i: usize| NonNull::from(&heads[i]));
    assert_eq!(drain(list.extract_done()), order);
}
