//! The wake-up of the other side. It carries no information at all.

mod eventfd;
mod line;
mod port;
mod socket;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use eventfd::Eventfds;
#[cfg(feature = "tokio")]
pub(crate) use line::Edges;
pub(crate) use line::{Heard, Line};
use port::Port;
use socket::Socket;
#[cfg(feature = "tokio")]
use tokio::io::{Interest, unix::AsyncFd};

use crate::core::{Bell, Rung};

/// What came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// The peer rang, once or more often.
    pub bells: bool,
    /// Nobody is at the other end. For a socket this is final: stop waiting on it, and give the link
    /// [another](crate::Link::set_doorbell). A guest's port wakes again when the next host rings, as each
    /// does when it attaches.
    pub hung_up: bool,
    /// There may be more: this call did its share. Drain again before waiting, after other work.
    pub more: bool,
}

/// Reads per `drain`: a peer that rings without end must not hold the caller.
const READS_PER_DRAIN: usize = 16;
/// Bytes per read; each is a bell.
const READ_BYTES: usize = 4096;

/// One side's end of a doorbell: how it wakes its peer, and how its peer wakes it.
///
/// No method waits. To wait, watch [`as_fd`](AsFd::as_fd) for readability, level- or edge-triggered
/// (under tokio: [`watch`](Self::watch)), then [`drain`](Self::drain).
#[derive(Debug)]
pub struct Doorbell(Kind);

#[derive(Debug)]
enum Kind {
    Eventfds(Eventfds),
    Socket(Socket),
    Port(Port),
}

impl Doorbell {
    /// Two eventfds: `ring` wakes the peer, `wake` wakes this side. Both become non-blocking, for
    /// everybody who shares their descriptions. A dead peer cannot be told from a living one.
    pub fn eventfds(ring: OwnedFd, wake: OwnedFd) -> io::Result<Self> {
        Eventfds::new(ring, wake).map(|eventfds| Self(Kind::Eventfds(eventfds)))
    }

    /// Both ends of a new pair of eventfds.
    pub fn eventfd_pair() -> io::Result<(Self, Self)> {
        let (there, back) = (eventfd::create()?, eventfd::create()?);
        let other = Self::eventfds(back.try_clone()?, there.try_clone()?)?;
        Ok((Self::eventfds(there, back)?, other))
    }

    /// A connected Unix stream socket, such as a VMM's chardev. It becomes non-blocking.
    pub fn socket(socket: UnixStream) -> io::Result<Self> {
        Socket::new(socket).map(|socket| Self(Kind::Socket(socket)))
    }

    /// A virtio-serial port's character device, in the guest, open for reading and writing. It
    /// becomes non-blocking.
    pub fn port(device: File) -> io::Result<Self> {
        Port::new(device).map(|port| Self(Kind::Port(port)))
    }

    /// Opens the virtio-serial port of that path, in the guest. Only one process can have it open.
    pub fn open_port(path: &Path) -> io::Result<Self> {
        Port::open(path).map(|port| Self(Kind::Port(port)))
    }

    /// Registers with the current tokio runtime, for readability. Panics outside of one that has I/O
    /// enabled.
    ///
    /// A socket's hang-up stays readable for ever: leave off waiting when [`drain`](Self::drain)
    /// tells of it.
    #[cfg(feature = "tokio")]
    pub fn watch(self) -> io::Result<AsyncFd<Self>> {
        #[expect(unsafe_code, reason = "tokio cannot see that the descriptor stays the same")]
        // SAFETY: `as_raw_fd` names a descriptor that the doorbell owns, never replaces, and closes
        // only when it is dropped; the `AsyncFd` owns the doorbell.
        let watched = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        Ok(watched?)
    }

    /// Wakes the peer. Never waits, and never raises a signal.
    pub fn ring(&self) -> Rung {
        match &self.0 {
            Kind::Eventfds(eventfds) => eventfds.ring(),
            Kind::Socket(socket) => socket.ring(),
            Kind::Port(port) => port.ring(),
        }
    }

    /// Takes the bells that came in, up to a bound. Never waits.
    pub fn drain(&self) -> Drained {
        match &self.0 {
            Kind::Eventfds(eventfds) => eventfds.drain(),
            Kind::Socket(socket) => socket.drain(),
            Kind::Port(port) => port.drain(),
        }
    }
}

impl Bell for Doorbell {
    fn ring(&self) -> Rung {
        Self::ring(self)
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Kind::Eventfds(eventfds) => eventfds.as_fd(),
            Kind::Socket(socket) => socket.as_fd(),
            Kind::Port(port) => port.as_fd(),
        }
    }
}

impl AsRawFd for Doorbell {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Reads bells until there are none, the peer is gone, or the bound is reached.
fn drain_bytes(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> Drained {
    let mut drained = Drained::default();
    let mut bells = [0; READ_BYTES];
    for _ in 0..READS_PER_DRAIN {
        match read(&mut bells) {
            Ok(0) => {
                drained.hung_up = true;
                return drained;
            }
            Ok(_) => drained.bells = true,
            Err(rustix::io::Errno::AGAIN) => return drained,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => {
                drained.hung_up = true;
                return drained;
            }
        }
    }
    drained.more = true;
    drained
}
