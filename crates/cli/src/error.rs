//! What can go wrong, for people and for programs.

use std::io;

use throughline_sandbox::{PlaceError, SandboxError};
use throughline_shim::ShimError;
use throughline_shim::api::Kind;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The sandbox, or its shim.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The arguments contradict each other, or what is there.
    #[error("{0}")]
    Usage(String),
    /// A command that was followed is gone with its timeline.
    #[error(
        "the machine died, and is back at its last checkpoint; this command was begun after it, and is gone: run it again"
    )]
    RolledBack,
    /// A command's events ended before its end.
    #[error("the connection to the command ended before the command did: `throughline ps` tells whether it still runs")]
    Untold,
    /// The system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl From<SandboxError> for CliError {
    fn from(error: SandboxError) -> Self {
        Self::Shim(error.into())
    }
}

impl CliError {
    /// An error of the system.
    pub fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// For programs: one word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Io { .. } => "io",
            Self::RolledBack => "rolled-back",
            Self::Shim(ShimError::Failure(failure)) => match failure.kind {
                Kind::Version => "version",
                Kind::Missing => "missing",
                Kind::Taken => "taken",
                Kind::Held => "held",
                Kind::Misuse => "usage",
                Kind::Ended => "ended",
                Kind::Lost => "lost",
                Kind::RolledBack => "rolled-back",
                Kind::Failed => "failed",
            },
            Self::Shim(ShimError::Sandbox(error)) => match error {
                SandboxError::Ended(_) | SandboxError::Dead(_) => "ended",
                SandboxError::Record(_) => "version",
                SandboxError::Place(PlaceError::Missing(_)) => "missing",
                SandboxError::Place(PlaceError::Taken(_) | PlaceError::Busy { .. }) => "taken",
                SandboxError::Place(PlaceError::Name(_)) => "usage",
                SandboxError::Command(_) => "command",
                _ => "failed",
            },
            Self::Shim(ShimError::Version { .. }) => "version",
            Self::Shim(_) | Self::Untold => "failed",
        }
    }

    /// What to do about it, where that is known and the message does not say it.
    pub fn hint(&self) -> Option<&'static str> {
        match self.kind() {
            "missing" => Some(
                "`throughline ls` lists the sandboxes, `throughline ps NAME` the commands of one, `throughline pool ls` the pools",
            ),
            "ended" => Some(
                "`throughline logs NAME` shows its console, `throughline rm NAME` removes it, unless it went with its machine (`--rm`)",
            ),
            _ => None,
        }
    }

    /// The exit code: 126 and 127 for commands that cannot be run, as usual; else 125.
    pub fn code(&self) -> u8 {
        match self {
            Self::Shim(ShimError::Sandbox(SandboxError::Command(failure))) => {
                u8::try_from(failure.kind.exit_code()).unwrap_or(super::OWN_FAILURE)
            }
            _ => super::OWN_FAILURE,
        }
    }
}
