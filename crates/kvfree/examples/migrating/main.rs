//! From crossbeam-epoch, kovan and liburcu to kvfree: the same small programs before and after, side by side.
//!
//! ```sh
//! cargo run -p kvfree --example migrating
//! ```
//!
//! | you have | you write | note |
//! |---|---|---|
//! | **crossbeam-epoch** | | |
//! | `epoch::pin()` | `kvfree::read_lock()` | nothing is freed inside |
//! | `Atomic<T>`, `Owned<T>` | `RcuCell<T>`, `RcuBox<T>` | |
//! | `Shared<'g, T>`, `unsafe { s.deref() }` | `Option<&'g T>` | safe: cell and guard are of one domain by type |
//! | `unsafe { guard.defer_destroy(s) }` | nothing: what was replaced is retired when it is dropped | safe |
//! | `guard.defer(f)` | a destructor; or `Rcu::call` with a head | no closure is boxed |
//! | `guard.repin()` | `Online::quiescent` | a reference over it does not compile |
//! | `guard.flush()`, and hoping | `kvfree::barrier()` | returns when everything retired before is free |
//! | `Collector`, `LocalHandle` | `kvfree::stack! { struct Mine; }` | another type; guards do not mix |
//! | **kovan** | | |
//! | `Atom<T>`, `load()` | `RcuCell<T>`, `read_lock()` and `load(&guard)` | one guard serves many loads |
//! | `Atom::rcu(f)`, `compare_and_swap` | `update`, `compare_exchange` | |
//! | `RetiredNode` in the object | nothing, or `Head` | |
//! | `retire_node(p)` | `retire(p)` | takes objects of `kvfree::objects()` |
//! | `AtomOption` | any `RcuCell` may be empty | |
//! | *memory stays bounded beside a stalled reader* | *no such promise*: `Config::hard_limit` bounds what may wait | the one reason to stay |
//! | **liburcu** | | |
//! | `rcu_register_thread()` | nothing: at first use; `Threads.try_register()` says why not | |
//! | `rcu_read_lock()`, `rcu_read_unlock()` | `read_lock()`, the guard's end | |
//! | `rcu_dereference(p)` | `cell.load(&guard)` | |
//! | `rcu_assign_pointer`, `rcu_xchg_pointer`, `rcu_cmpxchg_pointer` | `store`, `swap`, `compare_exchange` | |
//! | `synchronize_rcu()`, `rcu_barrier()` | `synchronize()`, `barrier()` | panics inside a section instead of hanging |
//! | `call_rcu(&p->head, free_p)` | drop the box; `Rcu::call` where you need a callback | |
//! | `defer_rcu(free, p)` | drop the box; `retire_mightsleep(p)` | |
//! | `start_poll_synchronize_rcu()` | `Global.start()`, `poll(cookie)` | and `drive()`, which never waits |
//! | QSBR: `rcu_quiescent_state()`, `rcu_thread_offline()` | `Online::quiescent`, `Online::offline` | |
//! | `cds_list_add_rcu`, `cds_lfht` | `rcu_core::RcuList`; the example `hash_table` | |

#[path = "from_crossbeam.rs"]
mod from_crossbeam;
#[path = "from_kovan.rs"]
mod from_kovan;
#[path = "from_liburcu.rs"]
mod from_liburcu;

/// Each pair of programs gives the same results.
///
/// # Panics
/// If one does not.
pub(crate) fn run() {
    from_crossbeam::same_stack();
    from_kovan::same_counters();
    from_liburcu::same_route();
}

#[allow(dead_code, reason = "the tests call `run`")]
fn main() {
    run();
    println!("what crossbeam-epoch, kovan and liburcu did, kvfree does");
}
