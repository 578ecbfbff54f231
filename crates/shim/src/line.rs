//! Lines over a Unix socket, some with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::api::MAX_LINE;

/// Descriptors that one line may carry.
pub const MOST_DESCRIPTORS: usize = 3;

/// The receiving half.
#[derive(Debug)]
pub struct Incoming {
    socket: Arc<UnixStream>,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// The sending half; each line goes out whole.
#[derive(Clone, Debug)]
pub struct Outgoing {
    socket: Arc<UnixStream>,
    turn: Arc<Mutex<()>>,
}

/// Both halves of a connection.
pub fn split(socket: UnixStream) -> (Incoming, Outgoing) {
    let socket = Arc::new(socket);
    let incoming = Incoming { socket: socket.clone(), buffer: Vec::new(), descriptors: Vec::new() };
    (incoming, Outgoing { socket, turn: Arc::default() })
}

impl Incoming {
    /// The next line; `None` at the end. Cancel-safe.
    pub async fn line<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(Into::into);
            }
            if self.buffer.len() >= MAX_LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is longer than any that is sent"));
            }
            if self.receive().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits until the other side has gone. What it says until then is kept, and waits for its turn. Cancel-safe.
    pub async fn gone(&mut self) {
        while self.buffer.len() < MAX_LINE {
            if !self.receive().await.is_ok_and(|count| count > 0) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// The descriptors that came with the lines so far.
    pub fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let mut bytes = [0; 4096];
        let (count, descriptors) =
            self.socket.async_io(Interest::READABLE, || receive(&self.socket, &mut bytes)).await?;
        self.buffer.extend_from_slice(&bytes[..count]);
        // Nobody sends more; who does loses them.
        let room = MOST_DESCRIPTORS.saturating_sub(self.descriptors.len());
        self.descriptors.extend(descriptors.into_iter().take(room));
        Ok(count)
    }
}

fn receive(socket: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket.as_fd(), &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, rights.flatten().collect()))
}

impl Outgoing {
    /// Sends a line. Not cancel-safe: who gives up in the middle must close the connection.
    pub async fn send(&self, line: &impl Serialize) -> io::Result<()> {
        self.send_with(line, &[]).await
    }

    /// Whether the other side has gone.
    pub fn has_gone(&self) -> bool {
        let mut sockets = [PollFd::new(&*self.socket, PollFlags::RDHUP)];
        let looked = poll(&mut sockets, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        looked.is_err() || sockets[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    /// Sends a line with descriptors, at most [`MOST_DESCRIPTORS`].
    ///
    /// # Errors
    /// [`ArgumentListTooLong`](io::ErrorKind::ArgumentListTooLong) where it is longer than [`MAX_LINE`]: nothing of it
    /// was sent.
    pub async fn send_with(&self, line: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        if bytes.len() > MAX_LINE {
            // Nobody would read it, and its connection would end with it.
            let message = format!("it takes {} bytes to say, and a line may have {MAX_LINE}", bytes.len());
            return Err(io::Error::new(io::ErrorKind::ArgumentListTooLong, message));
        }
        let _turn = self.turn.lock().await;
        let mut rest = bytes.as_slice();
        let mut descriptors = descriptors;
        while !rest.is_empty() {
            let count = self.socket.async_io(Interest::WRITABLE, || send(&self.socket, rest, descriptors)).await?;
            (rest, descriptors) = (&rest[count..], &[]);
        }
        Ok(())
    }
}

fn send(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one line"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, flags)?)
}
