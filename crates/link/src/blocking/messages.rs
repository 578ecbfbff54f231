//! A channel of whole messages, for threads.

use std::time::Duration;

use super::{Link, Patience};
use crate::{ChannelId, ChannelInfo, Error, TryRecv};

/// A channel of whole messages. Dropping it closes both directions, after what was sent.
#[derive(Debug)]
pub struct Messages {
    sender: MessageSender,
    receiver: MessageReceiver,
}

/// The receiving half.
#[derive(Debug)]
pub struct MessageReceiver {
    inner: crate::MessageReceiver,
    patience: Patience,
}

/// The sending half. Dropping it does not end the direction; `shutdown` does.
#[derive(Debug)]
pub struct MessageSender {
    inner: crate::MessageSender,
    patience: Patience,
}

impl Messages {
    pub(super) fn new(messages: crate::Messages, link: &Link) -> Self {
        let (sender, receiver) = messages.into_split();
        let patience = Patience::new(link);
        let sender = MessageSender { inner: sender, patience: patience.clone() };
        Self { sender, receiver: MessageReceiver { inner: receiver, patience } }
    }

    /// Two halves for two threads. The channel closes with the last of them.
    pub fn into_split(self) -> (MessageSender, MessageReceiver) {
        (self.sender, self.receiver)
    }

    /// How long each call waits, in either direction; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.sender.set_timeout(timeout);
        self.receiver.set_timeout(timeout);
    }

    /// The channel's name, for a successor that adopts it.
    pub fn id(&self) -> ChannelId {
        self.sender.inner.0.id()
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.sender.info()
    }

    /// See [`MessageSender::max_len`].
    pub fn max_len(&self) -> usize {
        self.sender.max_len()
    }

    /// See [`MessageSender::send`].
    pub fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        self.sender.send(payload)
    }

    /// See [`MessageReceiver::recv`].
    pub fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.receiver.recv()
    }

    /// See [`MessageReceiver::recv_into`].
    pub fn recv_into(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        self.receiver.recv_into(out)
    }

    /// See [`MessageReceiver::peek`].
    pub fn peek(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        self.receiver.peek(out)
    }

    /// See [`MessageReceiver::commit`].
    pub fn commit(&mut self) -> Result<(), Error> {
        self.receiver.commit()
    }

    /// See [`MessageSender::shutdown`].
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.sender.shutdown()
    }

    /// Closes both directions and drops what the peer has not read.
    pub fn abort(self) {
        self.whole().abort();
    }

    /// Lets go of the channel without closing it; it can be adopted by its id.
    pub fn release(self) -> ChannelId {
        self.whole().release()
    }

    fn whole(self) -> crate::Messages {
        crate::Messages::from_split(self.sender.inner, self.receiver.inner)
    }
}

impl MessageReceiver {
    /// How long each call waits; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// Receives the next message; `None` when the peer has finished.
    pub fn recv(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.patience.wait(self.inner.recv())
    }

    /// Receives the next message into `out`, which gets its length; `false` when the peer has finished.
    pub fn recv_into(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        self.patience.wait(self.inner.recv_into(out))
    }

    /// Receives without waiting.
    pub fn try_recv(&mut self, out: &mut Vec<u8>) -> Result<TryRecv, Error> {
        self.inner.try_recv(out)
    }

    /// Copies the next message without consuming it; `false` when the peer has finished.
    pub fn peek(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        self.patience.wait(self.inner.peek(out))
    }

    /// Consumes the message that was peeked at. Waits only for a freeze to end.
    pub fn commit(&mut self) -> Result<(), Error> {
        self.patience.wait(self.inner.commit())
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.inner.info()
    }
}

impl MessageSender {
    /// How long each call waits; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// The longest message that fits, in bytes.
    pub fn max_len(&self) -> usize {
        self.inner.max_len()
    }

    /// Sends one message; it is published when this returns. Waits while the ring is full.
    pub fn send(&mut self, payload: &[u8]) -> Result<(), Error> {
        self.patience.wait(self.inner.send(payload))
    }

    /// Sends without waiting; `false` while the ring is full.
    pub fn try_send(&mut self, payload: &[u8]) -> Result<bool, Error> {
        self.inner.try_send(payload)
    }

    /// As [`send`](Self::send), but published only with a [`flush`](Self::flush), a wait on the channel, or
    /// 16 KiB. What is not published is the caller's own, and is lost with it.
    pub fn feed(&mut self, payload: &[u8]) -> Result<(), Error> {
        self.patience.wait(self.inner.feed(payload))
    }

    /// Publishes what was fed. Waits only for a freeze to end.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.patience.wait(self.inner.flush())
    }

    /// Ends this direction: the peer receives what was sent, and then the end.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.patience.wait(self.inner.shutdown())
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.inner.info()
    }
}
