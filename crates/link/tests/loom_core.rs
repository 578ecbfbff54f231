//! The core's models: `RUSTFLAGS="--cfg loom" cargo test -p throughline --release --test loom_core`.
#![cfg(loom)]

use throughline::models;

#[test]
fn no_wake_up_is_lost_for_a_message() {
    models::no_wake_up_is_lost_for_a_message();
}

#[test]
fn no_wake_up_is_lost_for_an_end() {
    models::no_wake_up_is_lost_for_an_end();
}

#[test]
fn no_wake_up_is_lost_for_space() {
    models::no_wake_up_is_lost_for_space();
}
