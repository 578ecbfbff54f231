//! Fuzzing by lists of operations: what a peer, or a stranger's file, can reach of Throughline.
//!
//! | Target | What runs | What must hold |
//! |---|---|---|
//! | [`ring`] | both ends of a ring, honest, in any order, and their successors | the reader gets the writer's bytes, and what is consumed is zero |
//! | [`link`] | two cores, all that owners and drivers do, deaths, restores, and a guest that lies | what nobody lied about arrives once, in order; nobody panics or is kept busy |
//! | [`wire`] | decoding each message, and the sequence service's formats | no panic, bounded memory, and what is a message is the same after another trip |
//! | [`bundle`] | a bundle's manifest from any bytes | no panic, typed errors, and what is accepted says the same when it is written again |
//!
//! Each target is a function from bytes to nothing that panics when something does not hold. Its inputs in
//! `corpus/<target>/`, found by fuzzing and minimised, are replayed by an ordinary test. [`runner`] says how
//! `libFuzzer` and `AddressSanitizer` are put to it for longer.

pub mod bundle;
mod input;
pub mod link;
pub mod ring;
pub mod runner;
pub mod wire;

/// A target: its name, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 4] =
    [("ring", ring::run), ("link", link::run), ("wire", wire::run), ("bundle", bundle::run)];
