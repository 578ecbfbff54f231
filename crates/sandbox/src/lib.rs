//! Sandboxes on microVMs: boot, exec, snapshot, restore.
//!
//! | Module | Purpose |
//! |---|---|
//! | [`image`] | what a guest boots from: kernel and initramfs, built once and cached by content |
//! | [`guest`] | the way to a guest, wherever its link lives |
//! | [`Sandbox`] | a running guest: boot, exec, snapshot, restore, kill |
//! | [`files`] | copying files into a guest and out of it |
//! | [`doctor`] | whether this host can run sandboxes, and what mends it |
//! | [`bundle`] | a snapshot on disk |
//! | [`engine`] | one trait for virtual machine monitors; QEMU is the first |

pub mod bundle;
mod claim;
mod command;
pub mod doctor;
pub mod engine;
mod error;
pub mod files;
mod folders;
mod given;
pub mod guest;
pub mod image;
mod known;
mod places;
pub mod pool;
mod sandbox;
pub mod secrets;
pub mod sockets;
pub mod steps;
pub mod stock;
mod zeros;
pub mod zygote;

pub use command::{Child, ChildEvent, ChildEvents, ChildInput, Command, Output};
pub use error::SandboxError;
pub use given::Given;
pub use known::{Known, State, sweep};
pub use places::{PlaceError, check_name, runtime};
pub use pool::Pool;
pub use sandbox::{
    Checkpoint, Checkpoints, Record, Restore, Sandbox, SandboxBuilder, Snapshot, SnapshotReport, Stage, Timings,
    Waiting, Wanted,
};
pub use secrets::{SecretError, Secrets};
pub use zygote::Zygote;

/// Where snapshots that have a name lie.
pub fn snapshots() -> std::path::PathBuf {
    folders::data().join("snapshots")
}

/// The guest's agent: a static executable, process 1 of every guest.
pub static AGENT: &[u8] = include_bytes!(env!("THROUGHLINE_AGENT_BINARY"));
