//! What a build tells of its course.

use std::fmt;
use std::sync::Arc;

/// A step of building an image, in their order. Not every image takes every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildStep {
    /// The kernel's package is downloaded.
    Kernel,
    /// The archive with the userland is unpacked.
    Unpack,
    /// The userland becomes a file system.
    Rootfs,
    /// The file system's digest is taken.
    Digest,
    /// The image is put together.
    Assemble,
}

impl fmt::Display for BuildStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "downloading the kernel",
            Self::Unpack => "unpacking the userland",
            Self::Rootfs => "writing the root file system",
            Self::Digest => "taking its digest",
            Self::Assemble => "putting the image together",
        })
    }
}

/// How far a build is. What is found built takes no step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: BuildStep,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in all, where that is known; an estimate that `done` does not exceed.
    pub total: Option<u64>,
}

type Observer = dyn Fn(Progress) + Send + Sync;

/// Whom to tell.
#[derive(Clone, Default)]
pub(super) struct Reporter(Option<Arc<Observer>>);

impl Reporter {
    pub(super) fn new(observer: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observer)))
    }

    pub(super) fn tell(&self, step: BuildStep, done: u64, total: Option<u64>) {
        if let Some(observer) = &self.0 {
            observer(Progress { step, done: total.map_or(done, |total| done.min(total)), total });
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Reporter(..)" } else { "Reporter(-)" })
    }
}
