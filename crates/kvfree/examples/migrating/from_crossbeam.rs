//! Treiber's stack, which is what crossbeam-epoch's users know by heart.

use std::thread;

/// As one writes it with crossbeam-epoch: three blocks of `unsafe`, each with its own argument.
mod before {
    use crossbeam_epoch::{self as epoch, Atomic, Owned};
    use std::mem::ManuallyDrop;
    use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

    struct Node {
        value: ManuallyDrop<u64>,
        next: Atomic<Node>,
    }

    #[derive(Default)]
    pub(super) struct Stack {
        head: Atomic<Node>,
    }

    impl Stack {
        pub(super) fn push(&self, value: u64) {
            let guard = epoch::pin();
            let mut node = Owned::new(Node {
                value: ManuallyDrop::new(value),
                next: Atomic::null(),
            });
            loop {
                // ORDERING: Relaxed: the value only, compared again by the exchange.
                let head = self.head.load(Relaxed, &guard);
                // ORDERING: Relaxed: published by the exchange.
                node.next.store(head, Relaxed);
                // ORDERING: P1 (publish side). The head is only ever exchanged, so whoever acquires it later has this node, too.
                match (self.head).compare_exchange(head, node, Release, Relaxed, &guard) {
                    Ok(_) => return,
                    Err(error) => node = error.new,
                }
            }
        }

        pub(super) fn pop(&self) -> Option<u64> {
            let guard = epoch::pin();
            loop {
                // ORDERING: P1 (load side).
                let head = self.head.load(Acquire, &guard);
                // SAFETY: loaded from this stack, whose nodes are retired to the collector of this guard.
                let node = unsafe { head.as_ref() }?;
                // ORDERING: Relaxed: written before the node was published.
                let next = node.next.load(Relaxed, &guard);
                // ORDERING: Relaxed: `next` was published by its own push, whose release goes on through every exchange.
                if (self.head)
                    .compare_exchange(head, next, Relaxed, Relaxed, &guard)
                    .is_ok()
                {
                    // SAFETY: taken out just now, by this thread alone.
                    unsafe { guard.defer_destroy(head) };
                    return Some(ManuallyDrop::into_inner(node.value));
                }
            }
        }
    }

    impl Drop for Stack {
        fn drop(&mut self) {
            while self.pop().is_some() {}
        }
    }
}

/// With kvfree: no `unsafe`, no ordering, and no way to load under the guard of another collector. A node has two owners
/// for a moment, the node above and the head, hence `Arc`; what readers may hold is the box around it.
mod after {
    use kvfree::{RcuBox, RcuCell, read_lock};
    use std::sync::Arc;

    struct Node {
        value: u64,
        next: Option<Arc<Node>>,
    }

    #[derive(Default)]
    pub(super) struct Stack {
        head: RcuCell<Arc<Node>>,
    }

    impl Stack {
        pub(super) fn push(&self, value: u64) {
            let guard = read_lock();
            loop {
                let head = self.head.load(&guard);
                let next = head.cloned();
                let new = RcuBox::new(Arc::new(Node { value, next }));
                if let Ok(_retired) = self.head.compare_exchange(head, Some(new), &guard) {
                    return;
                }
            }
        }

        pub(super) fn pop(&self) -> Option<u64> {
            let guard = read_lock();
            loop {
                let head = self.head.load(&guard)?;
                let next = head.next.clone().map(RcuBox::new);
                if let Ok(_retired) = self.head.compare_exchange(Some(head), next, &guard) {
                    return Some(head.value);
                }
            }
        }
    }

    impl Drop for Stack {
        fn drop(&mut self) {
            // Not by the nodes' own destructors, which would call each other.
            while self.pop().is_some() {}
        }
    }
}

/// Two threads push and pop; what is popped, and what is left, is what was pushed.
pub(super) fn same_stack() {
    const EACH: u64 = 500;
    fn exercise(push: impl Fn(u64) + Sync, pop: impl Fn() -> Option<u64> + Sync) -> u64 {
        let popped: u64 = thread::scope(|s| {
            let work = |first: u64| {
                let (push, pop) = (&push, &pop);
                move || {
                    (first..first + EACH)
                        .map(|value| {
                            push(value);
                            if value.is_multiple_of(2) {
                                pop().unwrap_or(0)
                            } else {
                                0
                            }
                        })
                        .sum::<u64>()
                }
            };
            let threads = [s.spawn(work(1)), s.spawn(work(1001))];
            threads.map(|t| t.join().expect("no panic")).iter().sum()
        });
        popped + std::iter::from_fn(pop).sum::<u64>()
    }
    let expected: u64 = (1..=EACH).sum::<u64>() + (1001..1001 + EACH).sum::<u64>();
    let (old, new) = (before::Stack::default(), after::Stack::default());
    assert_eq!(exercise(|v| old.push(v), || old.pop()), expected);
    assert_eq!(exercise(|v| new.push(v), || new.pop()), expected);
    drop(new);
    // crossbeam-epoch has nothing to put here.
    kvfree::barrier();
}
