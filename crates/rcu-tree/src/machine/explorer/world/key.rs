//! What two states have in common whose numbers differ.
//!
//! Sequences and counts of sections only grow, and code looks at differences alone: of a cookie and its sequence, of a
//! sequence and its other lane's bank, of a word and how it was first seen. So these differences are the state.

use super::{Before, State};
use crate::machine::Phase;
use crate::reader::Seen;
use crate::trace::Lane;

/// How far `cookie` is ahead of `seq`, in grace periods; zero if it is reached.
fn ahead(seq: usize, cookie: usize) -> u8 {
    let distance = cookie.wrapping_sub(seq & !3);
    if distance > usize::MAX / 2 {
        0
    } else {
        (distance >> 2).min(15) as u8
    }
}

/// The bank of a sequence, as the shared readers have it.
fn bank(seq: usize) -> usize {
    (seq.wrapping_add(3) >> 2) & 1
}

/// Everything, numbers taken relative to each other.
pub(super) fn of(state: &State) -> Vec<u8> {
    let mut key = Vec::with_capacity(96);
    let [
        polled,
        needed,
        normal,
        its_needed,
        expedited,
        other_needed,
        quick,
    ] = state.gp;
    key.push((polled & 3 | (normal & 3) << 2 | (expedited & 3) << 4) as u8);
    key.push(ahead(polled, needed) << 4 | ahead(polled, quick));
    key.push(ahead(normal, its_needed) << 4 | ahead(expedited, other_needed));
    for (phase, stake) in state.machines {
        let holds = phase != Phase::Idle && stake.raw() == polled;
        key.push((phase as u8) << 1 | u8::from(holds));
    }
    for words in state.nodes {
        key.extend(words.map(|word| word as u8));
    }
    for (s, &word) in state.words.iter().enumerate() {
        let now = Seen::from_raw(word);
        key.push(now.nesting() as u8 | u8::from(now.is_online()) << 4);
        for lane in Lane::ALL {
            let is_looked_at = state.machines[lane.index()].0 == Phase::Scanning;
            let first = Seen::from_raw(state.first_seen[s][lane.index()]);
            key.push(u8::from(is_looked_at && now.passed_since(first)));
        }
    }
    let current = bank(normal) | bank(expedited) << 1;
    for inside in state.shared.0 {
        key.extend((0..inside.len()).map(|i| inside[i ^ current] as u8));
    }
    key.push(state.shared.1 as u8);
    key.extend(state.list.lengths.map(|n| n as u8));
    key.extend(
        state
            .list
            .cookies
            .map(|c| c.map_or(0, |c| ahead(polled, c.raw()))),
    );
    let ghost = &state.ghost;
    for (s, guards) in ghost.guards.iter().enumerate() {
        // Whether leaving will find the word as it was after entering.
        let youngest = guards.iter().flatten().last();
        let equal = youngest.is_some_and(|e| e.is_of(Seen::from_raw(state.words[s])));
        key.push(guards.iter().flatten().count() as u8 | u8::from(equal) << 4);
        key.push(ghost.moving[s].map_or(0, |i| i as u8 + 1));
    }
    for place in ghost.shared {
        key.push(place.map_or(0, |place| (place.raw() ^ current) as u8 + 1));
    }
    let mut before = |b: &Option<Before>, waits_for: &dyn Fn(&Before) -> u8| {
        let Some(b) = b else {
            key.push(u8::MAX);
            return;
        };
        key.extend([b.inside, waits_for(b)]);
        let seen = |l: usize| u8::from(b.began[l]) | b.ended[l] << 1;
        key.push(seen(0) | seen(1) << 3);
        key.push(b.asked.map_or(0, |lane| lane as u8 + 1));
    };
    let small = |b: &Before| ahead(polled, b.small.raw());
    let full = |b: &Before| {
        ahead(normal, b.full.normal().raw()) << 4 | ahead(expedited, b.full.expedited().raw())
    };
    before(&ghost.small, &small);
    before(&ghost.full, &full);
    for call in &ghost.calls {
        // Nothing is asked of what a callback has seen begin and end.
        let call = call.map(|b| Before {
            began: [false; 2],
            ended: [0; 2],
            ..b
        });
        before(&call, &small);
    }
    key.push(u8::from(ghost.full_first));
    key
}
