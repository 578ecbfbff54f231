//! The link's own words: identity, quiesce, and their acknowledgements.

use std::task::{Context, Poll, Waker};

use throughline_ring::{Identity, Layout, LinkWord, Side, erase_entropy, last_identity, read_identity, write_identity};
use throughline_shmem::Words;

use super::{Bell, Core};
use crate::event::Event;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Words of the peer's link page that somebody may wait for.
const WATCHED: [LinkWord; 3] = [LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent];

/// Who waits for the peer's link words, and what they said last.
#[derive(Debug)]
pub(super) struct LinkWatch {
    at: [usize; 3],
    seen: [AtomicU64; 3],
    wakers: Mutex<Vec<Waker>>,
}

impl LinkWatch {
    pub(super) fn new(layout: &Layout, side: Side) -> Self {
        Self {
            at: WATCHED.map(|word| layout.link_word(side.peer(), word)),
            seen: WATCHED.map(|_| AtomicU64::new(0)),
            wakers: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn wake(&self) {
        for waker in self.wakers.lock().drain(..) {
            waker.wake();
        }
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.wakers.lock().is_empty()
    }
}

impl<W: Words, B: Bell> Core<W, B> {
    /// Wakes who waits for link words if one has changed. Returns 1 if so.
    pub(super) fn serve_link(&self) -> usize {
        let mut changed = 0;
        for (at, seen) in self.link.at.iter().zip(&self.link.seen) {
            let word = self.ledger.alleged(*at);
            if seen.swap(word, Ordering::Relaxed) != word {
                changed = 1;
            }
        }
        if changed > 0 {
            self.link.wake();
        }
        changed
    }

    /// Waits until `check` finds something in the peer's link words.
    pub fn poll_link<T>(&self, cx: &mut Context<'_>, mut check: impl FnMut(&Self) -> Option<T>) -> Poll<T> {
        if let Some(found) = check(self) {
            return Poll::Ready(found);
        }
        {
            let mut wakers = self.link.wakers.lock();
            wakers.retain(|waker| !waker.will_wake(cx.waker()));
            wakers.push(cx.waker().clone());
        }
        check(self).map_or(Poll::Pending, Poll::Ready)
    }

    /// A link word of mine.
    pub fn my_word(&self, word: LinkWord) -> u64 {
        self.ledger.kept(self.layout.link_word(self.side, word))
    }

    /// A link word of the peer.
    pub fn peer_word(&self, word: LinkWord) -> u64 {
        self.ledger.alleged(self.layout.link_word(self.side.peer(), word))
    }

    /// Publishes a link word, and rings if the peer sleeps. Link words are written during a freeze too:
    /// they are how a freeze is agreed upon.
    pub fn publish_link(&self, word: LinkWord, value: u64) {
        self.ledger.publish(self.layout.link_word(self.side, word), value);
        if let Some(episode) = self.ringer.claim_link(&self.ledger) {
            self.ring_for(episode);
        }
    }

    /// Host: gives the guest an identity.
    pub fn write_identity(&self, identity: &Identity) {
        write_identity(&self.ledger, &self.layout, identity);
        if let Some(episode) = self.ringer.claim_link(&self.ledger) {
            self.ring_for(episode);
        }
    }

    /// Host: number of the last identity that was given, or begun to be given: it is not free again.
    pub fn last_identity(&self) -> u64 {
        last_identity(&self.ledger, &self.layout)
    }

    /// Host: the guest has mixed the entropy in.
    pub fn erase_entropy(&self) {
        erase_entropy(&self.ledger, &self.layout);
    }

    /// Guest: the identity that the host gave.
    pub fn read_identity(&self) -> Option<Identity> {
        read_identity(&self.ledger, &self.layout)
    }

    /// The next event.
    pub fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Event> {
        self.events.lock().poll(cx)
    }

    /// Tells the owner something that the driver noticed.
    pub fn tell(&self, event: Event) {
        self.events.lock().push(event);
    }
}
