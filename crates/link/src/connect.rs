//! Opening a channel with choices.

use std::future::poll_fn;
use std::time::Duration;

use throughline_ring::Kind;

use crate::Error;
use crate::core::{LABEL_BYTES, OnFork, OpenOptions, Policy};
use crate::handle::Handle;
use crate::link::Link;
use crate::messages::Messages;
use crate::stream::Stream;

/// How to open a channel. Made by [`Link::connect_with`].
#[derive(Clone, Debug)]
#[must_use = "nothing is opened before `stream` or `messages`"]
pub struct Connect<L = Link> {
    link: L,
    options: OpenOptions,
    deadline: Duration,
    answered: bool,
}

impl Connect {
    /// How long an open waits for a free channel and for the peer's answer.
    pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
}

impl<L> Connect<L> {
    pub(crate) fn new(link: L, port: u32) -> Self {
        let options =
            OpenOptions { port, kind: Kind::Stream, ring_bytes: 0, label: [0; LABEL_BYTES], policy: Policy::default() };
        Self { link, options, deadline: Connect::DEFAULT_DEADLINE, answered: true }
    }

    /// The smallest ring that will do, in bytes a direction. Of the shapes that the region has, the
    /// smallest sufficient one is taken; the default is the smallest of all.
    pub fn ring_bytes(mut self, bytes: u64) -> Self {
        self.options.ring_bytes = bytes;
        self
    }

    /// What to call the channel, for whoever adopts it: the first 32 bytes are kept.
    pub fn label(mut self, label: &str) -> Self {
        let mut end = label.len().min(LABEL_BYTES);
        while !label.is_char_boundary(end) {
            end -= 1;
        }
        self.options.label = [0; LABEL_BYTES];
        self.options.label[..end].copy_from_slice(&label.as_bytes()[..end]);
        self
    }

    /// What happens to the channel when its VM is forked. The default is to inherit it.
    pub fn on_fork(mut self, on_fork: OnFork) -> Self {
        self.options.policy.on_fork = on_fork;
        self
    }

    /// Closes the channel when a new process attaches and nobody adopts it for so long. The default
    /// is to keep it.
    pub fn close_unadopted(mut self, after: Duration) -> Self {
        self.options.policy.unadopted = Some(after);
        self
    }

    /// How long to wait, for a free channel and for the answer together.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Does not wait for the answer: bytes may be written at once (by the host), and a refusal shows
    /// at the first read.
    pub fn unanswered(mut self) -> Self {
        self.answered = false;
        self
    }

    pub(crate) fn link(&self) -> &L {
        &self.link
    }

    /// The same on another face of the link.
    pub(crate) fn on<M>(self, link: M) -> Connect<M> {
        let Self { options, deadline, answered, .. } = self;
        Connect { link, options, deadline, answered }
    }
}

impl Connect {
    /// Opens a stream. Dropping the future closes the channel.
    pub async fn stream(mut self) -> Result<Stream, Error> {
        self.options.kind = Kind::Stream;
        Ok(Stream::new(self.open().await?))
    }

    /// Opens a message channel. Dropping the future closes the channel.
    pub async fn messages(mut self) -> Result<Messages, Error> {
        self.options.kind = Kind::Message;
        Ok(Messages::new(self.open().await?))
    }

    async fn open(self) -> Result<Handle, Error> {
        let link = &self.link;
        let deadline = link.now() + self.deadline;
        let core = link.core();
        let free = poll_fn(|cx| {
            let opened = core.poll_open(&self.options, cx);
            if opened.is_pending() {
                link.arm_backstop();
            }
            opened
        });
        let this = link.until(deadline, free).await.ok_or(Error::Busy)??;
        let handle = Handle::new(link.clone(), this);
        if self.answered {
            let answer = handle.wait(|core, cx| core.poll_answer(this, cx));
            link.until(deadline, answer).await.ok_or(Error::TimedOut)??;
        }
        Ok(handle)
    }
}
