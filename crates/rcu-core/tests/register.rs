//! Registering: who is told why there is no slot, and who is on one.

#![cfg(all(feature = "std", not(loom)))]

use rcu_core::cpu::{Cpus, OneCpu, RegisterError, Slot, Threads};
use std::cell::RefCell;
use std::fmt;

#[test]
fn a_thread_past_its_slots_destructor_is_told_that_it_is_ending() {
    struct Late;
    impl Drop for Late {
        fn drop(&mut self) {
            assert_eq!(Threads.try_register(), Err(RegisterError::Ending));
            assert_eq!(Threads.current(), None);
        }
    }
    thread_local! {
        static LATE: RefCell<Option<Late>> = const { RefCell::new(None) };
    }
    for _ in 0..10 {
        let ran = std::thread::spawn(|| {
            // Noted for destruction before the slot is, so destroyed after it.
            LATE.with_borrow_mut(|late| *late = Some(Late));
            Threads.try_register().is_ok()
        });
        assert!(ran.join().unwrap());
    }
}

struct Who<C>(C, Slot);

impl<C: Cpus> fmt::Display for Who<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(self.1, f)
    }
}

#[test]
fn a_slot_is_described_by_the_name_of_its_thread() {
    let named = std::thread::Builder::new().name("routes-7".into());
    let told = named
        .spawn(|| {
            let slot = Threads.try_register().unwrap();
            let (number, tell) = (format!("slot {}", slot.index()), || {
                Who(&Threads, slot).to_string()
            });
            // The number alone is told, too, while another test's thread has the table locked.
            let mut told = (0..1000).map(|_| {
                std::thread::yield_now();
                tell()
            });
            let told = told.find(|told| *told != number).unwrap_or(number);
            (told, slot.index())
        })
        .unwrap();
    let (told, index) = told.join().unwrap();
    if cfg!(all(target_os = "linux", not(miri))) {
        assert_eq!(told, format!("thread \"routes-7\" (slot {index})"));
    } else {
        assert_eq!(told, format!("slot {index}"));
    }
    assert_eq!(Who(Threads, Slot::new(1023)).to_string(), "slot 1023");
}

#[test]
fn whoever_always_has_a_slot_registers_always() {
    // SAFETY: this value is used here only.
    let cpus = unsafe { OneCpu::new() };
    let by_reference = <&OneCpu as Cpus>::try_register(&&cpus);
    assert_eq!(by_reference, Ok(Slot::new(0)));
    assert_eq!(Who(cpus, Slot::new(0)).to_string(), "slot 0");
}

#[test]
fn errors_say_what_to_do() {
    let all: [RegisterError; 3] = [
        RegisterError::AllTaken { nr_slots: 4 },
        RegisterError::Ending,
        RegisterError::Busy,
    ];
    let texts = all.map(|e| {
        let e: Box<dyn std::error::Error> = Box::new(e);
        e.to_string()
    });
    assert!(texts[0].contains("all 4 slots") && texts[0].contains("fewer threads"));
    assert!(texts[1].contains("before thread-locals are destroyed"));
    assert!(texts[2].contains("signal"));
}
