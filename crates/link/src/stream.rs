//! A channel of bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use throughline_ring::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    reader: StreamReader,
    writer: StreamWriter,
}

/// The reading half.
#[derive(Debug)]
pub struct StreamReader(Arc<Handle>);

/// The writing half. Dropping it does not end the direction; `shutdown` does.
#[derive(Debug)]
pub struct StreamWriter(Arc<Handle>);

impl Stream {
    pub(crate) fn new(handle: Handle) -> Self {
        let handle = Arc::new(handle);
        Self { reader: StreamReader(handle.clone()), writer: StreamWriter(handle) }
    }

    pub(crate) fn into_handle(self) -> Arc<Handle> {
        self.reader.0
    }

    /// Two halves for two tasks. The channel closes with the last of them.
    pub fn into_split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
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

impl AsyncRead for StreamReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.0.this;
        let out = buf.initialize_unfilled();
        let count = ready!(self.0.poll(|core| core.poll_read(this, Take::Consume, Some(cx), out)))?;
        buf.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.0.this;
        let result = ready!(self.0.poll(|core| core.poll_write(this, Publish::Now, Some(cx), bytes)));
        Poll::Ready(result.map_err(Into::into))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.0.this;
        Poll::Ready(ready!(self.0.poll(|core| core.poll_shutdown(this, cx))).map_err(Into::into))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
