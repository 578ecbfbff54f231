//! What can go wrong between a client and a shim.

use std::io;
use std::path::PathBuf;

use throughline_sandbox::engine::EngineError;
use throughline_sandbox::{PlaceError, SandboxError, SecretError};

use crate::api::{Failure, Kind, VERSION};

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShimError {
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The shim refused, or failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The shim is of another release.
    #[error(
        "the shim of sandbox {name:?} (process {pid}, release {release}) speaks version {found} of its interface, and this program speaks {VERSION}; `kill -9 {pid}` ends the shim alone, and the next command starts one that fits: nothing is lost"
    )]
    Version {
        /// The sandbox.
        name: String,
        /// The shim's process.
        pid: u32,
        /// Its release.
        release: String,
        /// Its version.
        found: u32,
    },
    /// It said something else than what was asked.
    #[error("the shim of sandbox {0:?} answered another question; it is of another build: end it with `kill -9`")]
    Nonsense(String),
    /// It cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// What was to be run.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It died in the middle of something that must not be repeated unasked.
    #[error("the shim of sandbox {0:?} died in the middle; look whether it was done, and repeat it if not")]
    Died(String),
    /// It ended without a word, perhaps in the middle.
    #[error("{0}")]
    Silent(&'static str),
    /// A pool's keeper ended in the middle of something that must not be repeated unasked.
    #[error("the keeper of pool {0:?} ended in the middle; look whether it was done, and repeat it if not")]
    KeeperEnded(String),
    /// Nobody answers.
    #[error("no shim of sandbox {name:?} answers, and none can be started: {why}")]
    Unreachable {
        /// The sandbox.
        name: String,
        /// What the last try came to.
        why: String,
    },
    /// The link to the shim.
    #[error("the memory for the shim: {0}")]
    Memory(String),
    /// A channel.
    #[error(transparent)]
    Channel(#[from] throughline::Error),
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl ShimError {
    /// Whether there may be what was asked for all the same: whoever was to make it has not said.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Silent(_) | Self::Start { .. } | Self::Died(_) | Self::KeeperEnded(_))
    }

    /// The same once more, for another one who asks about this sandbox.
    pub(crate) fn again(&self, name: &str) -> Self {
        match self {
            Self::Sandbox(SandboxError::Ended(exit)) => SandboxError::Ended(exit.clone()).into(),
            Self::Failure(failure) => failure.clone().into(),
            Self::Unreachable { name, why } => Self::Unreachable { name: name.clone(), why: why.clone() },
            other => Self::Unreachable { name: name.to_owned(), why: other.to_string() },
        }
    }

    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn memory(error: impl std::fmt::Display) -> Self {
        Self::Memory(error.to_string())
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        let kind = match &error {
            SandboxError::Ended(_) => Kind::Ended,
            SandboxError::NotBack(_) => Kind::Lost,
            SandboxError::Paused(_)
            | SandboxError::Hostname(_)
            | SandboxError::Secret(SecretError::Name(_) | SecretError::Long { .. } | SecretError::Many(_))
            | SandboxError::Engine(EngineError::Memory { .. } | EngineError::Processors { .. })
            | SandboxError::Place(PlaceError::Name(_)) => Kind::Misuse,
            SandboxError::Place(PlaceError::Taken(_) | PlaceError::Busy { .. }) => Kind::Taken,
            SandboxError::Place(PlaceError::Missing(_)) => Kind::Missing,
            _ => Kind::Failed,
        };
        Self { kind, message: error.to_string() }
    }
}

/// What is said of it to who asked over a line.
impl From<ShimError> for Failure {
    fn from(error: ShimError) -> Self {
        match error {
            ShimError::Failure(failure) => failure,
            ShimError::Sandbox(error) => error.into(),
            other => Self { kind: Kind::Failed, message: other.to_string() },
        }
    }
}

impl From<ShimError> for SandboxError {
    fn from(error: ShimError) -> Self {
        match error {
            ShimError::Sandbox(error) => error,
            ShimError::Channel(error) => Self::Channel(error),
            other => Self::Way(Box::new(other)),
        }
    }
}
