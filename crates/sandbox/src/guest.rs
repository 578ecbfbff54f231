//! A guest as those see it who want something of it, wherever its link lives.

use std::sync::Arc;

use async_trait::async_trait;
use throughline::{Link, Messages, Stream};

use crate::SandboxError;
use crate::engine::Vm;

/// How to open a channel to a guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening<'a> {
    /// The port of the guest's listener.
    pub port: u32,
    /// The smallest ring that will do, in bytes a direction; zero for the default.
    pub ring_bytes: u64,
    /// What to call it, for whoever takes it over: the first 32 bytes are kept.
    pub label: &'a str,
}

/// The way to a guest: straight through a [`Sandbox`](crate::Sandbox) of this process, or through another process.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Opens a message channel, without waiting for the guest's answer: a refusal shows at the first receive.
    async fn messages(&self, opening: Opening<'_>) -> Result<Messages, SandboxError>;

    /// Opens a stream, without waiting for the guest's answer: a refusal shows at the first read.
    async fn stream(&self, opening: Opening<'_>) -> Result<Stream, SandboxError>;

    /// Waits until nothing can be had of the guest any more, and tells why. Cancel-safe.
    async fn ended(&self) -> SandboxError;
}

/// Does something with a guest; if the guest ends first, that is the error. As cancel-safe as what is done.
pub async fn alive<T>(guest: &dyn Guest, doing: impl Future<Output = T>) -> Result<T, SandboxError> {
    tokio::select! {
        biased;
        done = doing => Ok(done),
        error = guest.ended() => Err(error),
    }
}

/// A guest whose link and machine are supervised by this process.
pub(crate) struct Here {
    pub(crate) link: Link,
    pub(crate) vm: Arc<dyn Vm>,
}

#[async_trait]
impl Guest for Here {
    async fn messages(&self, opening: Opening<'_>) -> Result<Messages, SandboxError> {
        let connect = self.link.connect_with(opening.port).unanswered().label(opening.label);
        Ok(connect.ring_bytes(opening.ring_bytes).messages().await?)
    }

    async fn stream(&self, opening: Opening<'_>) -> Result<Stream, SandboxError> {
        let connect = self.link.connect_with(opening.port).unanswered().label(opening.label);
        Ok(connect.ring_bytes(opening.ring_bytes).stream().await?)
    }

    async fn ended(&self) -> SandboxError {
        SandboxError::Ended(Box::new(self.vm.exited().await))
    }
}
