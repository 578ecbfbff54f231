//! Why there is no image.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No package manager.
    #[error(
        "{program} was not found: images are made from Debian's kernel package; run this on Debian or a derivative, or install apt"
    )]
    PackageManagerMissing {
        /// The program.
        program: String,
    },
    /// The package's servers cannot be reached.
    #[error("{package} could not be downloaded: {reason}; check the network, then try again")]
    Offline {
        /// The package.
        package: String,
        /// The package manager's words.
        reason: String,
    },
    /// The package manager does not know the package.
    #[error("the package manager does not know {package}; run `apt-get update` as root, then try again")]
    UnknownPackage {
        /// The package.
        package: String,
    },
    /// A program failed in another way.
    #[error("{program} failed on {package}: {reason}")]
    Failed {
        /// The program.
        program: String,
        /// The package.
        package: String,
        /// Its words.
        reason: String,
    },
    /// A program took too long.
    #[error("{program} did not finish within {deadline:?} on {package}; check the network, then try again")]
    Deadline {
        /// The program.
        program: String,
        /// The package.
        package: String,
        /// How long it had.
        deadline: Duration,
    },
    /// A package lacks what images are made from.
    #[error("{package} has no {file}; this version of the package is not supported")]
    Incomplete {
        /// The package.
        package: String,
        /// What is missing.
        file: String,
    },
    /// The disk is full.
    #[error(
        "no space to {doing} {path}; an image needs some 200 MiB while it is built, make room there or choose another folder"
    )]
    NoSpace {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl ImageError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing, path },
            _ => Self::Io { doing, path, source },
        }
    }
}
