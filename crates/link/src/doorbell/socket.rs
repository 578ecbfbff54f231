//! A Unix stream socket: the host's end of a VMM's chardev.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::{Drained, Rung, drain_bytes};

#[derive(Debug)]
pub(super) struct Socket(UnixStream);

impl Socket {
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    pub fn ring(&self) -> Rung {
        // DONTWAIT: whoever shares the description could make it blocking again.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::io::retry_on_intr(|| rustix::net::send(&self.0, &[1], flags)) {
            Ok(_) => Rung::Accepted,
            // The kernel tells a hung-up peer first (EPIPE), so this one is only slow.
            Err(Errno::AGAIN) => Rung::Pending,
            Err(_) => Rung::Lost,
        }
    }

    pub fn drain(&self) -> Drained {
        drain_bytes(|bells| rustix::net::recv(&self.0, bells, RecvFlags::DONTWAIT).map(|(read, _)| read))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
