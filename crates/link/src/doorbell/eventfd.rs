//! Two eventfds: between processes, and to VMMs that take them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::{Drained, Rung, set_nonblocking};

#[derive(Debug)]
pub(super) struct Eventfds {
    ring: OwnedFd,
    wake: OwnedFd,
}

pub(super) fn create() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

impl Eventfds {
    pub fn new(ring: OwnedFd, wake: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&ring)?;
        set_nonblocking(&wake)?;
        Ok(Self { ring, wake })
    }

    pub fn ring(&self) -> Rung {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.ring, &1u64.to_ne_bytes())) {
            Ok(_) => Rung::Accepted,
            // The counter is full, so it is not zero.
            Err(Errno::AGAIN) => Rung::Pending,
            Err(_) => Rung::Lost,
        }
    }

    /// One read takes all bells.
    pub fn drain(&self) -> Drained {
        let mut count = [0; 8];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.wake, &mut count));
        Drained { bells: read.is_ok(), ..Drained::default() }
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
