//! The examples, run as tests.

#![cfg(all(feature = "std", target_os = "linux", not(miri), not(loom)))]

#[path = "../examples/event_loop.rs"]
mod event_loop;
#[path = "../examples/hash_table.rs"]
mod hash_table;
#[path = "../examples/held_across_await.rs"]
mod held_across_await;
#[path = "../examples/hot_config.rs"]
mod hot_config;
#[path = "../examples/migrating/main.rs"]
mod migrating;
#[path = "../examples/own_grace_period.rs"]
mod own_grace_period;
#[path = "../examples/route_table.rs"]
mod route_table;

#[test]
fn a_configuration_is_replaced_under_its_readers() {
    assert!(hot_config::run() > 0);
}

#[test]
fn a_hash_table_grows_under_its_readers() {
    assert!(hash_table::run() > 0);
    let map = hash_table::Map::new();
    (0..100).for_each(|key| assert!(map.insert(key, ())));
    assert_eq!((map.nr_buckets(), map.len()), (64, 100));
}

#[test]
fn routes_change_under_lookups() {
    assert!(route_table::run() > 0);
}

#[test]
fn event_loops_are_quiescent_between_events() {
    assert_eq!(event_loop::run(), 2 * 50 * 21);
}

#[test]
fn tasks_hold_what_they_read_across_awaits() {
    assert!(held_across_await::run() > 0);
}

#[test]
fn programs_of_the_peers_are_moved_over() {
    migrating::run();
}

#[test]
fn a_grace_period_of_ones_own() {
    assert!(own_grace_period::run() > 0);
}
