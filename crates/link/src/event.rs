//! What happens to a link, told to its owner.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use throughline_ring::Corrupt;

/// Something that happened to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This link continues another timeline's bytes, in a VM that was restored.
    Restored {
        /// The timeline that the snapshot was taken of.
        from: u128,
        /// The one that runs now.
        to: u128,
    },
    /// This link continues another timeline's bytes, in a VM that is one of several children of one moment.
    /// Channels that were opened with [`OnFork::Reset`](crate::OnFork::Reset) are gone.
    Forked {
        /// The timeline of the parent.
        from: u128,
        /// The one that runs now.
        to: u128,
        /// Which of the children this is, from 1.
        index: u64,
    },
    /// The VM died, and this link continues from a checkpoint of the timeline that was lost.
    /// [`ChannelInfo::rolled_back`](crate::ChannelInfo::rolled_back) says how far each channel went back.
    RolledBack {
        /// The timeline that was lost.
        from: u128,
        /// The one that runs now.
        to: u128,
    },
    /// The doorbell's other end is there (again).
    PeerAttached,
    /// The doorbell's other end has gone.
    PeerLost,
    /// A channel was given up.
    Corrupt {
        /// Number of the channel.
        channel: usize,
        /// What the peer did.
        why: Corrupt,
    },
    /// Events were dropped because nobody took them.
    Missed(u64),
}

/// A bounded queue of events.
#[derive(Debug, Default)]
pub(crate) struct EventQueue {
    queue: VecDeque<Event>,
    missed: u64,
    waker: Option<Waker>,
}

impl EventQueue {
    const MOST: usize = 256;

    pub(crate) fn push(&mut self, event: Event) {
        if self.queue.len() < Self::MOST {
            self.queue.push_back(event);
        } else {
            self.missed += 1;
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.queue.pop_front() {
            return Poll::Ready(event);
        }
        if self.missed > 0 {
            return Poll::Ready(Event::Missed(std::mem::take(&mut self.missed)));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
