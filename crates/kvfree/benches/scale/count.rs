//! Counting without sharing: a word a thread, summed by whoever asks.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[repr(align(128))]
struct Word(AtomicUsize);

/// A counter that each thread adds to in a word of its own.
pub(crate) struct Counter {
    words: Mutex<Vec<&'static Word>>,
}

impl Counter {
    pub(crate) const fn new() -> Self {
        Self {
            words: Mutex::new(Vec::new()),
        }
    }

    fn word(&self) -> &'static Word {
        let word: &'static Word = Box::leak(Box::new(Word(AtomicUsize::new(0))));
        self.words.lock().unwrap().push(word);
        word
    }

    pub(crate) fn sum(&self) -> usize {
        self.words
            .lock()
            .unwrap()
            .iter()
            .map(|w| w.0.load(Ordering::Acquire))
            .sum()
    }
}

/// What peers have freed.
pub(crate) static FREED: Counter = Counter::new();

thread_local! {
    static MINE: Cell<Option<&'static Word>> = const { Cell::new(None) };
}

/// Counts one object that was really freed.
#[inline]
pub(crate) fn freed() {
    let word = MINE.get().unwrap_or_else(|| {
        let word = FREED.word();
        MINE.set(Some(word));
        word
    });
    word.0
        .store(word.0.load(Ordering::Relaxed) + 1, Ordering::Release);
}
