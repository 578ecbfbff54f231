//! Sandboxes on microVMs: boot, exec, snapshot, restore.
//!
//! | Module | Purpose |
//! |---|---|
//! | [`image`] | what a guest boots from: kernel and initramfs, built once and cached by content |
//! | [`Sandbox`] | a running guest: boot, exec, snapshot, restore, kill |
//! | [`files`] | copying files into a guest and out of it |
//! | [`bundle`] | a snapshot on disk |
//! | [`engine`] | one trait for virtual machine monitors; QEMU is the first |

pub mod bundle;
mod command;
pub mod engine;
mod error;
pub mod files;
mod folders;
pub mod image;
mod places;
mod sandbox;
mod zeros;

pub use command::{Child, ChildEvent, ChildEvents, ChildInput, Command, Output};
pub use error::SandboxError;
pub use places::PlaceError;
pub use sandbox::{Restore, Sandbox, SandboxBuilder, Snapshot, SnapshotReport, Stage, Timings};

/// The guest's agent: a static executable, process 1 of every guest.
pub static AGENT: &[u8] = include_bytes!(env!("THROUGHLINE_AGENT_BINARY"));
