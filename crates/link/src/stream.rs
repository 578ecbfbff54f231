//! A channel of bytes.

use std::sync::Arc;
use std::task::Poll;

use throughline_ring::Reason;

use crate::core::{Publish, Take};
use crate::handle::Handle;
use crate::{ChannelId, ChannelInfo, Error};

/// A channel of bytes. Dropping it closes both directions, after what was written.
///
/// `AsyncRead` hands bytes over once: if the application dies with them, they are gone. Who needs more
/// peeks, processes, and commits. Every byte that `AsyncWrite` accepts is published when the call
/// returns, so flushing does nothing.
#[derive(Debug)]
pub struct Stream {
    pub(crate) reader: StreamReader,
    pub(crate) writer: StreamWriter,
}

/// The reading half.
#[derive(Debug)]
pub struct StreamReader(pub(crate) Arc<Handle>);

/// The writing half. Dropping it does not end the direction; `shutdown` does.
#[derive(Debug)]
pub struct StreamWriter(pub(crate) Arc<Handle>);

impl Stream {
    pub(crate) fn new(handle: Handle) -> Self {
        let handle = Arc::new(handle);
        Self { reader: StreamReader(handle.clone()), writer: StreamWriter(handle) }
    }

    /// Two halves for two tasks. The channel closes with the last of them.
    pub fn into_split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    pub(crate) fn from_split(reader: StreamReader, writer: StreamWriter) -> Self {
        Self { reader, writer }
    }

    /// The channel's name, for a successor that adopts it.
    pub fn id(&self) -> ChannelId {
        self.reader.0.id()
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.reader.0.info()
    }

    /// See [`StreamReader::peek`].
    pub async fn peek(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        self.reader.peek(out).await
    }

    /// See [`StreamReader::commit`].
    pub async fn commit(&mut self, bytes: usize) -> Result<(), Error> {
        self.reader.commit(bytes).await
    }

    /// Closes both directions and drops what the peer has not read.
    pub fn abort(self) {
        self.reader.0.close(Reason::Reset);
    }

    /// Lets go of the channel without closing it; it can be adopted by its id.
    pub fn release(self) -> ChannelId {
        let Self { reader, writer } = self;
        let id = reader.0.id();
        drop(writer);
        if let Some(handle) = Arc::into_inner(reader.0) {
            handle.release();
        }
        id
    }
}

impl StreamReader {
    /// Copies unread bytes without consuming them, and returns their number; zero at the end. Waits
    /// until there is at least one. Cancel-safe.
    pub async fn peek(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_read(this, Take::Peek, Some(cx), out)).await
    }

    /// Consumes bytes that were peeked at. Waits only for a freeze to end. Cancel-safe.
    pub async fn commit(&mut self, bytes: usize) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_commit(this, Some(bytes as u64), cx)).await
    }

    /// Reads bytes, and returns their number; zero at the end. Waits until there is at least one. Cancel-safe.
    pub(crate) async fn read_some(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_read(this, Take::Consume, Some(cx), out)).await
    }

    /// Reads what is there, without waiting: `None` if there is nothing now, zero bytes at the end.
    pub fn try_read(&mut self, out: &mut [u8]) -> Result<Option<usize>, Error> {
        match self.0.link.core().poll_read(self.0.this, Take::Consume, None, out) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.0.info()
    }
}

impl StreamWriter {
    /// Writes what there is space for, and returns the number of bytes. Waits until there is some. Cancel-safe.
    pub(crate) async fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_write(this, Publish::Now, Some(cx), bytes)).await
    }

    /// Ends this direction: the peer reads what was written, and then the end.
    pub(crate) async fn end(&mut self) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_shutdown(this, cx)).await
    }

    /// Writes what there is space for, without waiting: `None` if there is none now.
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<Option<usize>, Error> {
        match self.0.link.core().poll_write(self.0.this, Publish::Now, None, bytes) {
            Poll::Ready(result) => result.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.0.info()
    }
}
