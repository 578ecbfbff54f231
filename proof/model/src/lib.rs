//! Every state that two sides of a link can reach, within bounds.
//!
//! The model's steps call the shipped core over plain memory: there is no second description of the protocol that
//! could drift. `stateright` walks through all interleavings of what both applications, both drivers and the world
//! around them do. An operation is a step of its own, or it is cut: before one of its accesses to the region the peer
//! does something, or before one of its stores the process dies.
//!
//! A core cannot be copied, so a state is the list of steps that leads to it, and its print: a hash of all words of
//! region and sidecar, of what either core has for itself, and of what an onlooker remembers. States of one print go on
//! in the same way. The onlooker checks each step; and from each state both sides are brought to rest.

mod action;
mod memory;
mod model;
mod ops;
mod print;
mod rest;
mod scenario;
mod soft;
mod transfer;
mod world;

pub use action::{Action, Cut, Op};
pub use model::{State, walk};
pub use scenario::{Budget, RING, Scenario};
