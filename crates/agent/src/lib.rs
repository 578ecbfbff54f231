//! The agent: process 1 of a Throughline guest.
//!
//! ```text
//!   boot      mounts, modules, the user's file system, the region at its address, the doorbell
//!   control   identity before anything else; quiesce and lift
//!   services  one task a channel: exec, files, echo, sequence, report, ticker, info, power
//!   reaper    the only one that waits for children
//!   rehearsal what a guest that waits to be taken executes ahead
//! ```
//!
//! It moves all bytes itself, in one thread (only file systems are touched in others, a transfer each), and so
//! cannot be killed apart from the guest. Nothing that a request says makes it panic: a panic of process 1 is
//! the end of the guest. What belongs to the user runs in one control group, which is frozen for a snapshot, with
//! whatever has left it; nothing of it is started while the gate is closed: at boot and after a restore until the identity is repaired.

pub mod accounts;
pub mod agent;
pub mod boot;
pub mod cgroup;
pub mod channel;
pub mod cmdline;
pub mod console;
pub mod control;
pub mod exec;
pub mod gate;
pub mod identity;
mod outside;
pub mod reaper;
mod rehearsal;
pub mod secrets;
mod services;
pub mod spawn;
mod sys;
mod terminal;
