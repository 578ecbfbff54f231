//! Descriptors that the reactor watches.

use std::io;

use rustix::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the reactor watch a descriptor for being readable.
#[expect(unsafe_code, reason = "the reactor must be promised that the descriptor stays open")]
pub(super) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor until it is dropped, and nothing but the
    // `AsyncFd`, which deregisters it first, owns it now.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    watched.map_err(|error| error.into_parts().1)
}
