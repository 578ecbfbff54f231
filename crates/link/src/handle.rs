//! One owner's hold on a channel.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use throughline_ring::Reason;

use crate::core::Use;
use crate::link::{Link, LinkCore};
use crate::{ChannelId, ChannelInfo, Error};

/// Holds a channel; closes it when dropped.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) link: Link,
    pub(crate) this: Use,
    released: AtomicBool,
}

impl Handle {
    pub(crate) fn new(link: Link, this: Use) -> Self {
        Self { link, this, released: AtomicBool::new(false) }
    }

    /// Polls the core; who waits makes sure that the backstop runs.
    pub(crate) fn poll<T>(&self, poll: impl FnOnce(&LinkCore) -> Poll<T>) -> Poll<T> {
        let result = poll(self.link.core());
        if result.is_pending() {
            self.link.arm_backstop();
        }
        result
    }

    /// The same as a future.
    pub(crate) async fn wait<T>(&self, mut poll: impl FnMut(&LinkCore, &mut Context<'_>) -> Poll<T>) -> T {
        poll_fn(|cx| self.poll(|core| poll(core, cx))).await
    }

    pub(crate) fn id(&self) -> ChannelId {
        ChannelId { timeline: self.link.timeline(), slot: self.this.slot, generation: self.this.generation.number() }
    }

    pub(crate) fn info(&self) -> Result<ChannelInfo, Error> {
        let info = self.link.core().channel(self.this.slot);
        info.filter(|info| info.id == self.id()).ok_or(Error::Ended)
    }

    /// Lets go without closing.
    pub(crate) fn release(self) -> ChannelId {
        self.released.store(true, Ordering::Relaxed);
        self.link.core().release(self.this);
        self.id()
    }

    pub(crate) fn close(&self, reason: Reason) {
        if !self.released.swap(true, Ordering::Relaxed) {
            self.link.core().close(self.this, reason);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close(Reason::Normal);
    }
}
