//! The memory that a client shares with its shim, and with each successor of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use throughline::{Class, Doorbell, Geometry, Link, Region, Side, Sidecar};

use crate::ShimError;

/// A client's link, and the descriptors to hand over: region, what wakes the client, what wakes the shim.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) link: Link,
    descriptors: [OwnedFd; 3],
}

impl Memory {
    pub(super) fn create() -> Result<Self, ShimError> {
        let class = |count, ring_bytes| Class { opener: Side::Host, count, ring_bytes };
        // The shapes of a sandbox's default geometry; rings are sparse until they are used.
        let geometry = Geometry::new(vec![class(64, 64 << 10), class(4, 4 << 20)]).map_err(ShimError::memory)?;
        let region = Region::create_memfd("throughline-client", &geometry).map_err(ShimError::memory)?;
        let (sidecar, _) = Sidecar::create_memfd("throughline-client-sidecar", &region).map_err(ShimError::memory)?;
        let shared = region.as_fd().ok_or_else(|| ShimError::memory("it is not a file"))?;
        let failed = ShimError::io("share memory with the shim");
        let shared = shared.try_clone_to_owned().map_err(failed)?;
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let descriptors = (|| Ok([shared, bell()?, bell()?]))();
        let descriptors: [OwnedFd; 3] = descriptors.map_err(|error: rustix::io::Errno| ShimError::memory(error))?;
        let [_, mine, theirs] = &descriptors;
        let doorbell = (|| Doorbell::eventfds(theirs.try_clone()?, mine.try_clone()?))();
        let doorbell = doorbell.map_err(ShimError::io("make a doorbell"))?;
        let link = Link::host(region, sidecar).doorbell(doorbell).attach().map_err(ShimError::memory)?;
        Ok(Self { link, descriptors })
    }

    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        self.descriptors.each_ref().map(AsFd::as_fd)
    }
}
