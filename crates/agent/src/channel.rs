//! What the handlers need of a message channel, so that they can be tried without a link.
#![expect(async_fn_in_trait, reason = "the agent has one thread, so nobody needs Send futures")]

use std::io;

use throughline::{MessageReceiver, MessageSender};

/// Receives whole messages.
pub trait Inbox {
    /// The next message; `None` once the peer has finished. Cancel-safe: a message that was not returned is
    /// still there.
    async fn recv(&mut self) -> io::Result<Option<Vec<u8>>>;
}

/// Sends whole messages.
pub trait Outbox {
    /// Sends one message, waiting for space. Cancel-safe: it is sent whole or not at all.
    async fn send(&mut self, message: &[u8]) -> io::Result<()>;

    /// Ends this direction, after what was sent.
    async fn finish(&mut self) -> io::Result<()>;
}

impl Inbox for MessageReceiver {
    async fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(Self::recv(self).await?)
    }
}

impl Outbox for MessageSender {
    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        Ok(Self::send(self, message).await?)
    }

    async fn finish(&mut self) -> io::Result<()> {
        Ok(self.shutdown().await?)
    }
}
