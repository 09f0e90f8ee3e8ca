use super::*;

/// For who puts sequences into a state (`machine::explorer`).
impl Sequences {
    fn all(&self) -> [&AtomicUsize; 7] {
        let [normal, expedited] = &self.lanes;
        [
            &self.polled.seq,
            &self.polled.needed.0,
            &normal.seq,
            &normal.needed.0,
            &expedited.seq,
            &expedited.needed.0,
            &self.quick.0,
        ]
    }

    pub(crate) fn words(&self) -> [usize; 7] {
        self.all().map(|word| word.load(Ordering::Relaxed))
    }

    pub(crate) fn set_words(&self, words: [usize; 7]) {
        for (word, raw) in self.all().into_iter().zip(words) {
            word.store(raw, Ordering::Relaxed);
        }
    }
}

/// One whole grace period of `lane`.
fn grace_period(gp: &Sequences, lane: Lane) {
    let stake = gp.begin(lane);
    gp.finish(lane, stake);
}

#[test]
fn r7_either_lane_makes_a_small_cookie_done() {
    for lane in Lane::ALL {
        let gp = Sequences::new();
        let cookie = gp.polled().snapshot();
        let stake = gp.begin(lane);
        assert!(!gp.polled().poll(cookie));
        gp.finish(lane, stake);
        assert!(gp.polled().poll(cookie));
    }
}

#[test]
fn r7_a_small_cookie_may_miss_where_the_lanes_overlap_but_the_second_one_does_it() {
    let gp = Sequences::new();
    let normal = gp.begin(Lane::Normal);
    let (small, full) = (gp.polled().snapshot(), gp.snapshot_full());
    grace_period(&gp, Lane::Expedited);
    assert!(gp.poll_full(full), "R8: a whole grace period has run");
    assert!(!gp.polled().poll(small), "it joined the one in progress");
    grace_period(&gp, Lane::Expedited);
    assert!(gp.polled().poll(small));
    gp.finish(Lane::Normal, normal);
}

#[test]
fn r7_who_ends_second_does_not_end_what_started_since() {
    let gp = Sequences::new();
    let (normal, expedited) = (gp.begin(Lane::Normal), gp.begin(Lane::Expedited));
    assert_eq!(normal, expedited, "joined");
    gp.finish(Lane::Expedited, expedited);
    let again = gp.begin(Lane::Expedited);
    let cookie = gp.polled().snapshot();
    gp.finish(Lane::Normal, normal);
    assert!(gp.polled().load().in_progress() && !gp.polled().poll(cookie));
    gp.finish(Lane::Expedited, again);
    assert!(!gp.polled().load().in_progress());
}

#[test]
fn r8_full_cookies_never_miss_in_any_order_of_two_lanes() {
    // Every walk of 8 steps; a step begins or finishes the grace period of a lane.
    for walk in 0..1usize << 8 {
        let gp = Sequences::new();
        let mut stakes = [None; 2];
        let mut begun: Vec<(Lane, usize)> = Vec::new();
        let mut cookies = Vec::new();
        for step in 0..8 {
            cookies.push((step, gp.snapshot_full(), gp.polled().snapshot()));
            let lane = Lane::ALL[walk >> step & 1];
            match stakes[lane.index()].take() {
                None => {
                    stakes[lane.index()] = Some((step, gp.begin(lane)));
                }
                Some((since, stake)) => {
                    gp.finish(lane, stake);
                    begun.push((lane, since));
                }
            }
            for &(taken, full, small) in &cookies {
                let whole = begun.iter().any(|&(_, since)| since >= taken);
                assert_eq!(
                    gp.poll_full(full),
                    whole,
                    "walk {walk:#x}, step {step}, {taken}"
                );
                assert!(whole || !gp.polled().poll(small), "R7: never early");
            }
        }
    }
}

#[test]
fn r9_the_completed_marks_are_always_done() {
    let gp = Sequences::new();
    assert!(gp.polled().poll(Cookie::COMPLETED) && gp.poll_full(FullCookie::COMPLETED));
}

#[test]
fn r11_a_cookie_half_the_space_old_is_done_and_one_of_just_now_is_not() {
    let old = Sequences::starting_at(Seq::from_raw(8)).polled().snapshot();
    let gp = Sequences::starting_at(Seq::from_raw(((usize::MAX / 2) & !3) + 64));
    assert!(gp.polled().poll(old));
    assert!(!gp.polled().poll(gp.polled().snapshot()));
}

/// G20: only expedited grace periods for a quarter of the number space and more.
#[test]
fn g20_what_was_asked_for_long_ago_is_dragged_along() {
    const QUARTER: usize = (usize::MAX / 4) & !3;
    let gp = Sequences::starting_at(Seq::from_raw(0));
    let at = |raw: usize| {
        for seq in [&gp.polled, &gp.lanes[0], &gp.lanes[1]] {
            seq.seq.store(raw, Ordering::Relaxed);
        }
    };
    for leap in 1..12 {
        at(QUARTER.wrapping_mul(leap));
        grace_period(&gp, Lane::Expedited);
        assert!(!gp.is_needed(Lane::Normal), "leap {leap}: nobody asked");
        assert!(!gp.is_needed(Lane::Expedited), "leap {leap}: nobody asked");
        let cookie = gp.polled().snapshot();
        assert!(
            gp.request(Lane::Normal, cookie),
            "leap {leap}: a new need is seen"
        );
        assert!(gp.is_needed(Lane::Normal) && !gp.is_needed(Lane::Expedited));
        grace_period(&gp, Lane::Normal);
        assert!(!gp.is_needed(Lane::Normal));
    }
}

#[test]
fn t36_a_request_during_a_grace_period_asks_for_another_one() {
    let gp = Sequences::new();
    let stake = gp.begin(Lane::Normal);
    assert!(gp.request(Lane::Normal, gp.polled().snapshot()));
    gp.finish(Lane::Normal, stake);
    assert!(gp.is_needed(Lane::Normal));
    grace_period(&gp, Lane::Normal);
    assert!(!gp.is_needed(Lane::Normal));
}
