//! Accepting channels.

use std::future::poll_fn;

use crate::Error;
use crate::link::{Channel, Link};

/// Listens on a port; dropping it refuses what waits and what comes.
#[derive(Debug)]
pub struct Listener {
    link: Link,
    port: u32,
}

impl Listener {
    pub(crate) fn new(link: Link, port: u32) -> Self {
        Self { link, port }
    }

    /// The port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Accepts the next channel. Cancel-safe. Waits for as long as nobody opens one.
    pub async fn accept(&mut self) -> Result<Channel, Error> {
        let accepted = poll_fn(|cx| {
            let result = self.link.core().poll_accept(self.port, cx);
            if result.is_pending() {
                self.link.arm_backstop();
            }
            result
        });
        let (this, kind) = accepted.await?;
        Ok(Channel::new(self.link.clone(), this, kind))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.link.core().unlisten(self.port);
        self.link.kick();
    }
}
