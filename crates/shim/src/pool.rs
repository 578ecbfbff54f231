//! Warm pools behind a process of their own, the *keeper*, and what others say to it.
//!
//! ```text
//!   pool create ──► keeper ──standard input──► K shims, each with one child that waits, paused
//!   pool take ──lines of JSON──► keeper ──a line──► one of them, which becomes the shim of a sandbox
//! ```
//!
//! The keeper owns the zygote. However it dies, the shims in waiting read the end of their input, and end with their
//! children; those that were taken read no more, and go on.

mod client;
mod folder;
mod given;
mod keeper;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::api::{self, Failure};
use crate::start::Keeping;

pub use client::{Listed, Standing, create, list, remove, remove_dead, take};
pub use folder::check;
pub use keeper::Keeper;

/// Version of everything here.
pub const VERSION: u32 = 1;

/// The socket's name in a pool's folder.
const SOCKET: &str = "api";

/// How a keeper comes to its pool. It reads this as a line of JSON from its standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Create {
    /// The pool's name.
    pub pool: String,
    /// What its children are children of.
    pub source: Source,
    /// How many wait.
    pub size: usize,
}

/// What the children of a pool are children of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// This moment of a sandbox, which goes on.
    Sandbox(String),
    /// A snapshot, by its folder. It must stay for as long as the pool is there.
    Snapshot(PathBuf),
}

/// What somebody wants of a keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// The first call of a connection.
    Hello {
        /// The caller's [`VERSION`].
        api: u32,
    },
    /// Takes a child. What its guest is given comes with it, as a descriptor: a file in memory with a
    /// [`Given`](throughline_sandbox::Given).
    Take {
        /// Its name; a random one without.
        name: Option<String>,
        /// What is done with it.
        #[serde(flatten)]
        keeping: Keeping,
    },
    /// How the pool stands.
    State,
    /// Ends the pool.
    Remove,
}

/// An answer that fits its call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello {
        /// The keeper's [`VERSION`].
        api: u32,
        /// Its process id.
        pid: u32,
        /// Its release.
        release: String,
    },
    /// To [`Call::Take`].
    Taken {
        /// The sandbox's name.
        name: String,
    },
    /// To [`Call::State`].
    State {
        /// What the children are children of.
        source: Source,
        /// How many are to wait.
        size: usize,
        /// How many do.
        waiting: usize,
        /// How many tries in a row to make one have come to nothing.
        #[serde(default)]
        failures: u32,
        /// Why the last of these did.
        #[serde(default)]
        last_error: Option<String>,
    },
    /// It is done.
    Done,
}

/// To a keeper: a line.
pub type Request = api::Request<Call>;

/// From a keeper: a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// A request was carried out.
    Answer(u64, Answer),
    /// A request failed.
    Failure(u64, Failure),
}
