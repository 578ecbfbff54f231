//! A channel of whole messages.

use std::sync::Arc;
use std::task::Poll;

use throughline_ring::{HEADER_BYTES, Reason};

use crate::core::{Publish, Take};
use crate::handle::Handle;
use crate::{ChannelId, ChannelInfo, Error};

/// A channel of whole messages. Dropping it closes both directions, after what was sent.
#[derive(Debug)]
pub struct Messages {
    pub(crate) receiver: MessageReceiver,
    pub(crate) sender: MessageSender,
}

/// The receiving half.
#[derive(Debug)]
pub struct MessageReceiver(pub(crate) Arc<Handle>);

/// The sending half. Dropping it does not end the direction; `shutdown` does.
#[derive(Debug)]
pub struct MessageSender(pub(crate) Arc<Handle>);

/// What a call that does not wait came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecv {
    /// A message is in the buffer.
    Message,
    /// There is none now.
    Empty,
    /// The peer has finished, and there will be none.
    End,
}

impl Messages {
    pub(crate) fn new(handle: Handle) -> Self {
        let handle = Arc::new(handle);
        Self { receiver: MessageReceiver(handle.clone()), sender: MessageSender(handle) }
    }

    /// Two halves for two tasks. The channel closes with the last of them.
    pub fn into_split(self) -> (MessageSender, MessageReceiver) {
        (self.sender, self.receiver)
    }

    pub(crate) fn from_split(sender: MessageSender, receiver: MessageReceiver) -> Self {
        Self { receiver, sender }
    }

    /// The channel's name, for a successor that adopts it.
    pub fn id(&self) -> ChannelId {
        self.sender.0.id()
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.sender.0.info()
    }

    /// See [`MessageSender::max_len`].
    pub fn max_len(&self) -> usize {
        self.sender.max_len()
    }

    /// See [`MessageSender::send`].
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        self.sender.send(payload).await
    }

    /// See [`MessageReceiver::recv`].
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.receiver.recv().await
    }

    /// See [`MessageSender::try_send`].
    pub fn try_send(&mut self, payload: &[u8]) -> Result<bool, Error> {
        self.sender.try_send(payload)
    }

    /// See [`MessageReceiver::try_recv`].
    pub fn try_recv(&mut self, out: &mut Vec<u8>) -> Result<TryRecv, Error> {
        self.receiver.try_recv(out)
    }

    /// See [`MessageReceiver::peek`].
    pub async fn peek(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        self.receiver.peek(out).await
    }

    /// See [`MessageReceiver::commit`].
    pub async fn commit(&mut self) -> Result<(), Error> {
        self.receiver.commit().await
    }

    /// See [`MessageSender::shutdown`].
    pub async fn shutdown(&mut self) -> Result<(), Error> {
        self.sender.shutdown().await
    }

    /// Closes both directions and drops what the peer has not read.
    pub fn abort(self) {
        self.sender.0.close(Reason::Reset);
    }

    /// Lets go of the channel without closing it; it can be adopted by its id.
    pub fn release(self) -> ChannelId {
        let Self { receiver, sender } = self;
        let id = sender.0.id();
        drop(receiver);
        if let Some(handle) = Arc::into_inner(sender.0) {
            handle.release();
        }
        id
    }
}

impl MessageReceiver {
    /// Receives the next message; `None` when the peer has finished. Cancel-safe.
    pub async fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let mut out = Vec::new();
        Ok(self.recv_into(&mut out).await?.then_some(out))
    }

    /// Receives the next message into `out`, which gets its length; `false` when the peer has
    /// finished. Cancel-safe.
    pub async fn recv_into(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_recv(this, Take::Consume, Some(cx), out)).await
    }

    /// Receives without waiting.
    pub fn try_recv(&mut self, out: &mut Vec<u8>) -> Result<TryRecv, Error> {
        match self.0.link.core().poll_recv(self.0.this, Take::Consume, None, out) {
            Poll::Ready(Ok(true)) => Ok(TryRecv::Message),
            Poll::Ready(Ok(false)) => Ok(TryRecv::End),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(TryRecv::Empty),
        }
    }

    /// Copies the next message without consuming it; `false` when the peer has finished. Cancel-safe.
    pub async fn peek(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_recv(this, Take::Peek, Some(cx), out)).await
    }

    /// Consumes the message that was peeked at. Waits only for a freeze to end. Cancel-safe.
    pub async fn commit(&mut self) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_commit(this, None, cx)).await
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.0.info()
    }
}

impl MessageSender {
    /// The longest message that fits, in bytes.
    pub fn max_len(&self) -> usize {
        self.0.link.core().ring_bytes(self.0.this.slot) as usize - HEADER_BYTES as usize
    }

    /// Sends one message; it is published when this returns. Waits while the ring is full.
    /// Cancel-safe: a cancelled send has sent nothing.
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_send(this, Publish::Now, Some(cx), payload)).await
    }

    /// Sends without waiting; `false` while the ring is full.
    pub fn try_send(&mut self, payload: &[u8]) -> Result<bool, Error> {
        match self.0.link.core().poll_send(self.0.this, Publish::Now, None, payload) {
            Poll::Ready(result) => result.map(|()| true),
            Poll::Pending => Ok(false),
        }
    }

    /// As [`send`](Self::send), but published only with a [`flush`](Self::flush), a wait on the
    /// channel, or 16 KiB. What is not published is the caller's own, and is lost with it.
    pub async fn feed(&mut self, payload: &[u8]) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_send(this, Publish::Batch, Some(cx), payload)).await
    }

    /// As [`feed`](Self::feed), without waiting; `false` while the ring is full.
    pub fn try_feed(&mut self, payload: &[u8]) -> Result<bool, Error> {
        match self.0.link.core().poll_send(self.0.this, Publish::Batch, None, payload) {
            Poll::Ready(result) => result.map(|()| true),
            Poll::Pending => Ok(false),
        }
    }

    /// Publishes what was fed. Waits only for a freeze to end.
    pub async fn flush(&mut self) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_flush(this, cx)).await
    }

    /// Ends this direction: the peer receives what was sent, and then the end.
    pub async fn shutdown(&mut self) -> Result<(), Error> {
        let this = self.0.this;
        self.0.wait(|core, cx| core.poll_shutdown(this, cx)).await
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.0.info()
    }
}
