//! The link without its waiting: what both drivers, the tests and the models call.
//!
//! The core does no input or output of its own, and reads no clock. Memory comes in as [`Words`], the
//! doorbell as [`Bell`]; whoever has to wait leaves a [`Waker`]. A driver's loop is:
//! [serve](Core::serve), [fall asleep](Core::fall_asleep), wait for the doorbell, [wake up](Core::wake_up).
//!
//! For drivers other than the one in this crate: a monitor that puts the doorbell's descriptor into an epoll
//! of its own, a simulator. Programs use [`Link`](crate::Link).

mod ahead;
mod attach;
mod channel;
mod control;
mod copy;
mod fork;
mod freeze;
mod list;
mod open;
pub(crate) mod rolled_back;
mod serve;
#[cfg(test)]
mod tests;
mod transfer;
mod watch;

use std::collections::HashMap;
use std::task::Waker;

use throughline_ring::{Cause, Corrupt, Generation, Layout, Ledger, Phase, Ringer, Side, Sleeper, State, View};
use throughline_shmem::Words;

pub use attach::AttachCoreError;
pub use attach::AttachOptions;
pub use copy::Carried;
pub use list::{ChannelId, ChannelInfo};
pub use open::{LABEL_BYTES, OnFork, OpenOptions, Policy};
pub use rolled_back::{RolledBack, Undone};
pub use transfer::{Publish, Take};

use crate::counters::Counting;
use crate::error::Error;
use crate::event::{Event, EventQueue};
use crate::sync::{AtomicBool, Mutex, Ordering};
use channel::Channel;
use open::Backlog;
use watch::{Bitmap, Watch};

/// What became of a bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a lost bell must be rung again"]
pub enum Rung {
    /// It is on its way.
    Accepted,
    /// The way is full of bells that the peer has not taken yet: it wakes anyway.
    Pending,
    /// Nobody is at the other end. The peer looks at everything when it attaches.
    Lost,
}

/// The way to wake the peer. It carries no information.
pub trait Bell {
    /// Rings; never blocks.
    fn ring(&self) -> Rung;
}

/// One use of a channel: what a handle holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Use {
    /// The channel's slot.
    pub slot: usize,
    /// Which of the slot's connections, one after another, it is.
    pub generation: Generation,
}

/// One side's attachment to a region.
#[derive(Debug)]
pub struct Core<W, B> {
    side: Side,
    layout: Layout,
    ledger: Ledger<W>,
    bell: B,
    timeline: u128,
    ringer: Ringer,
    sleeper: Mutex<Sleeper>,
    slots: Box<[Slot]>,
    /// Slots in which somebody waits for a position.
    waiting: Bitmap,
    /// Slots whose peer's state may change: those in use, and those that the peer opens.
    active: Bitmap,
    /// Slots that wait for memory before they can be settled.
    starved: Bitmap,
    frozen: AtomicBool,
    listeners: Mutex<HashMap<u32, Backlog>>,
    /// Tasks that wait for a slot to become free.
    vacancies: Mutex<Vec<Waker>>,
    link: control::LinkWatch,
    events: Mutex<EventQueue>,
    pub(crate) counting: Counting,
}

#[derive(Debug)]
struct Slot {
    entry: Mutex<Entry>,
    watch: Watch,
}

/// A channel, and who holds it.
#[derive(Debug)]
struct Entry {
    channel: Channel,
    /// A handle, or a listener's backlog, has it.
    held: bool,
    /// The rings' memory exists.
    allocated: bool,
    /// A close that waits for the thaw.
    closing: Option<throughline_ring::Reason>,
    /// Bytes of the message that was peeked at last.
    peeked: Option<u64>,
    /// When nobody has adopted it by then, it is closed.
    expires: Option<std::time::Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    observer: Option<Waker>,
}

impl Entry {
    /// Wakes whoever waits on the channel.
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take(), self.observer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    #[inline]
    fn in_use(&self, this: Use) -> Result<(), Error> {
        if let Some(corrupt) = self.channel.corrupt {
            return Err(corrupt.into());
        }
        let mine = self.channel.mine;
        if mine.generation != this.generation || mine.phase != Phase::Live || self.closing.is_some() {
            return Err(Error::Ended);
        }
        Ok(())
    }
}

impl<W: Words, B: Bell> Core<W, B> {
    /// The timeline that the bytes belong to.
    pub fn timeline(&self) -> u128 {
        self.timeline
    }

    /// Totals since the attach.
    pub fn counters(&self) -> crate::Counters {
        self.counting.totals()
    }

    /// The doorbell.
    pub fn bell(&self) -> &B {
        &self.bell
    }

    /// Bytes of each ring of a slot.
    pub fn ring_bytes(&self, slot: usize) -> u64 {
        self.layout.slots()[slot].ring_bytes
    }

    #[inline]
    fn view(&self, slot: usize) -> View<'_, W> {
        View::new(&self.ledger, &self.layout, self.side, slot)
    }

    /// Relaxed: who must not miss a freeze or a thaw asks under a lock that each of them takes after its store.
    fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    /// After a publishing store: rings if the peer sleeps and wants it.
    #[inline]
    fn notify(&self, view: &View<'_, W>, cause: Cause) {
        match self.ringer.claim(&self.ledger, view, cause) {
            Some(episode) => self.ring_for(episode),
            None => self.counting.suppressed(),
        }
    }

    fn ring_for(&self, episode: throughline_ring::Episode) {
        if self.ring() == Rung::Lost {
            self.ringer.refused(episode);
        }
    }

    /// Rings whatever the peer's sleep word says: after an attach and a thaw, and while an
    /// acknowledgement is due.
    pub fn ring(&self) -> Rung {
        let rung = self.bell.ring();
        self.counting.rung(rung);
        rung
    }

    /// Gives a channel up for ever, tells the owner, and lets everybody who waits see it.
    fn give_up(&self, slot: usize, entry: &mut Entry, view: &View<'_, W>, corrupt: Corrupt) {
        tracing::warn!(channel = slot, %corrupt, "channel given up");
        entry.channel.give_up(view, corrupt);
        // No want of it is left: a driver that polls would find it ready for ever, and nothing to serve.
        self.wake_waiters(slot, entry, view);
        self.active.clear(slot);
        self.events.lock().push(Event::Corrupt { channel: slot, why: corrupt });
        self.notify(view, Cause::State);
    }

    /// Makes the rings' memory exist, so that touching it cannot fault.
    fn allocate(&self, slot: usize, entry: &mut Entry) -> Result<(), Error> {
        if !entry.allocated {
            let place = self.layout.slots()[slot];
            let words = 2 * place.ring_bytes as usize / throughline_shmem::WORD;
            self.ledger.region().allocate(place.ring_at(Side::Host), words)?;
            entry.allocated = true;
        }
        Ok(())
    }

    /// Settles a channel that both sides have closed, and tells who waits for a free slot once the
    /// peer has settled it too.
    fn settle(&self, slot: usize, entry: &mut Entry, view: &View<'_, W>, peer: State) -> Result<(), Corrupt> {
        // A peer may have written without an answer, or to who refused it for want of memory: its ring
        // must exist before it is scrubbed.
        let scrubs = entry.channel.is_incoming(peer) || entry.channel.mine.phase == Phase::Closed;
        if scrubs && self.allocate(slot, entry).is_err() {
            self.starved.set(slot);
            return Ok(());
        }
        if entry.channel.settle(view, peer)? {
            entry.held = false;
            self.notify(view, Cause::State);
        }
        if entry.channel.can_open(peer) {
            self.active.clear(slot);
            for waker in self.vacancies.lock().drain(..) {
                waker.wake();
            }
        }
        Ok(())
    }
}
