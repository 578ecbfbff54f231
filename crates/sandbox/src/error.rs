//! What can go wrong with a sandbox.

use std::io;

use crate::bundle::BundleError;
use crate::engine::{EngineError, Exit};
use crate::image::ImageError;
use crate::places::PlaceError;

/// Why a sandbox did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Its image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image that a snapshot needs.
    #[error(
        "the snapshot needs the image {image}, whose root file system was made of {source_name:?}, and {} has none with the same; build it there of the same userland, or copy it there",
        folder.display()
    )]
    ImageMissing {
        /// The image's id.
        image: String,
        /// What its root file system was made of.
        source_name: String,
        /// Where it was looked for.
        folder: std::path::PathBuf,
    },
    /// Its name or folders.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The virtual machine monitor.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A snapshot on disk.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The shared memory.
    #[error(transparent)]
    Region(#[from] throughline::RegionError),
    /// The host's copy of its words.
    #[error(transparent)]
    Sidecar(#[from] throughline::SidecarError),
    /// The link.
    #[error(transparent)]
    Attach(#[from] throughline::AttachError),
    /// A channel.
    #[error(transparent)]
    Channel(#[from] throughline::Error),
    /// A channel that cannot be taken over.
    #[error(transparent)]
    Adopt(#[from] throughline::AdoptError),
    /// The guest's agent did not answer.
    #[error("{0}; its console ends with:\n{1}")]
    Unanswered(throughline::Unanswered, String),
    /// The guest could not take on its identity: a hook of its image failed, or another repair.
    #[error("{0}; its console ends with:\n{1}")]
    Refused(throughline::NotTaken, String),
    /// Its secrets.
    #[error(transparent)]
    Secret(#[from] crate::SecretError),
    /// A guest that waits for its secrets cannot become quiet.
    #[error("the guest has not taken its secrets since it was quiet last; its console ends with:\n{0}")]
    SecretsPending(String),
    /// A guest that has secrets did not become quiet: they would be in the snapshot.
    #[error(
        "{0}; a guest that has secrets takes them away as it becomes quiet, so there is no snapshot of it without; its console ends with:\n{1}"
    )]
    SecretsNotQuiet(throughline::Unanswered, String),
    /// Not a host name.
    #[error(transparent)]
    Hostname(#[from] throughline::HostnameError),
    /// The guest did not become quiet for a snapshot, and goes on.
    #[error(
        "{0}; `Snapshot::allow_unquiesced` takes one all the same, in the middle of what the guest does; its console ends with:\n{1}"
    )]
    NotQuiet(throughline::Unanswered, String),
    /// The agent in the guest speaks another version.
    #[error(
        "the guest's agent speaks protocol {found}, and this program speaks {expected}; use the release that built the image, or build it anew"
    )]
    Agent {
        /// The agent's.
        found: u32,
        /// This program's.
        expected: u32,
    },
    /// The machine has ended.
    #[error("the sandbox has ended: {0}")]
    Ended(Box<Exit>),
    /// A command did not start.
    #[error("the command did not start: {}", .0.message)]
    Command(throughline_wire::exec::Failure),
    /// Something was not copied. What was copied before stays.
    #[error("cannot copy {failure}{}", already(.before))]
    Files {
        /// Why not.
        failure: throughline_wire::files::Failure,
        /// What was copied before.
        before: throughline_wire::files::Summary,
    },
    /// The guest's answer makes no sense.
    #[error("the guest's agent answered nonsense: {0}")]
    Nonsense(String),
    /// A request that cannot be sent.
    #[error(transparent)]
    Encode(#[from] throughline_wire::EncodeError),
    /// `sandbox.json` cannot be used.
    #[error("cannot use sandbox.json: {0}")]
    Record(String),
    /// It is still being created.
    #[error("sandbox {0:?} is just being created; wait until it is ready")]
    Unfinished(String),
    /// Its machine is gone.
    #[error(
        "the machine of sandbox {0:?} is gone, and nobody saw it end: it was killed together with its shim, or the host was restarted; remove the sandbox, and run another one or restore a snapshot"
    )]
    Dead(String),
    /// There is nothing to go back to.
    #[error("sandbox {0:?} has no checkpoint to go back to, or was ended: remove it, and run or restore another one")]
    NoCheckpoint(String),
    /// It could go back, and that failed.
    #[error("the machine has died, and the sandbox does not come back from its last checkpoint: {0}")]
    NotBack(Box<SandboxError>),
    /// A child without a number.
    #[error("the children of a fork are counted from 1; 0 says that there was no fork")]
    ChildZero,
    /// It stands still.
    #[error("sandbox {0:?} is paused; resume it first")]
    Paused(String),
    /// The way to the guest, through another process.
    #[error(transparent)]
    Way(Box<dyn std::error::Error + Send + Sync>),
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl SandboxError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// What a copy that failed leaves.
fn already(before: &throughline_wire::files::Summary) -> String {
    match (before.entries, before.bytes) {
        (0, 0) => String::new(),
        (entries, bytes) => format!("; {entries} files and folders, {bytes} bytes, were copied before, and stay"),
    }
}
