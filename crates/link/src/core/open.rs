//! Opening, accepting, closing and adopting channels.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use throughline_ring::{Cause, Kind, Phase, Reason, RecordWord, View};
use throughline_shmem::Words;

use super::rolled_back::RolledBack;
use super::{Bell, ChannelId, Core, Entry, Use};
use crate::error::Error;

/// What happens to a channel when its VM is forked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFork {
    /// Each child has it, with its unread bytes.
    #[default]
    Inherit,
    /// Each child finds it reset.
    Reset,
}

/// What is decided when a channel is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What a fork does with it.
    pub on_fork: OnFork,
    /// When nobody adopts it after an attach, it is closed after so long; `None` keeps it.
    pub unadopted: Option<Duration>,
}

impl Policy {
    fn encode(self) -> u64 {
        let millis = self.unadopted.map_or(0, |after| after.as_millis().clamp(1, 1 << 60) as u64);
        millis << 1 | u64::from(self.on_fork == OnFork::Reset)
    }

    pub(super) fn decode(word: u64) -> Self {
        let on_fork = if word & 1 == 0 { OnFork::Inherit } else { OnFork::Reset };
        Self { on_fork, unadopted: (word > 1).then(|| Duration::from_millis(word >> 1)) }
    }
}

/// Bytes of a channel's label.
pub const LABEL_BYTES: usize = 32;

/// How to open a channel.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// The port of a listener on the other side.
    pub port: u32,
    /// Bytes or messages.
    pub kind: Kind,
    /// The smallest ring that will do, in bytes.
    pub ring_bytes: u64,
    /// For people; zeros at its end are not part of it.
    pub label: [u8; LABEL_BYTES],
    /// What happens to it later.
    pub policy: Policy,
}

/// Opens that wait to be accepted on one port. Bounded by the number of slots.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    queue: VecDeque<Use>,
    waker: Option<Waker>,
}

impl Backlog {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn has_waiter(&self) -> bool {
        self.waker.is_some()
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<W: Words, B: Bell> Core<W, B> {
    /// Opens a channel in the first free slot of the smallest shape that will do. Does not wait for the
    /// peer's answer. Pends while every such slot is in use.
    pub fn poll_open(&self, options: &OpenOptions, cx: &mut Context<'_>) -> Poll<Result<Use, Error>> {
        match self.try_open(options) {
            Err(Error::Busy) => {}
            done => return Poll::Ready(done),
        }
        {
            let mut vacancies = self.vacancies.lock();
            vacancies.retain(|waker| !waker.will_wake(cx.waker()));
            vacancies.push(cx.waker().clone());
        }
        match self.try_open(options) {
            Err(Error::Busy) => Poll::Pending,
            done => Poll::Ready(done),
        }
    }

    /// The same, but `Busy` where it would wait.
    pub fn try_open(&self, options: &OpenOptions) -> Result<Use, Error> {
        let places = self.layout.slots().iter().enumerate();
        let fits = |ring_bytes: u64| ring_bytes >= options.ring_bytes;
        let own = places.filter(|(_, place)| place.opener == self.side && fits(place.ring_bytes));
        // Wide channels are few: they are left to those who ask for them.
        let ring_bytes = own.clone().map(|(_, place)| place.ring_bytes).min().ok_or(Error::NoSuchSlot)?;
        for (slot, _) in own.filter(|(_, place)| place.ring_bytes == ring_bytes) {
            let mut entry = self.slots[slot].entry.lock();
            if self.is_frozen() {
                break;
            }
            if let Some(this) = self.open_slot(slot, &mut entry, options)? {
                return Ok(this);
            }
        }
        Err(Error::Busy)
    }

    fn open_slot(&self, slot: usize, entry: &mut Entry, options: &OpenOptions) -> Result<Option<Use>, Error> {
        let view = self.view(slot);
        if entry.channel.mine.phase != Phase::Free || entry.channel.corrupt.is_some() {
            return Ok(None);
        }
        let opened = entry.channel.look(&view).and_then(|peer| {
            if !entry.channel.can_open(peer) {
                return Ok(Ok(false));
            }
            if let Err(error) = self.allocate(slot, entry) {
                return Ok(Err(error));
            }
            view.keep(RecordWord::Policy, options.policy.encode());
            for (index, bytes) in options.label.chunks_exact(8).enumerate() {
                view.keep_at(RecordWord::Label, index, u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
            }
            entry.channel.open(&view, options.kind, options.port)?;
            // Seen and judged: what the backstop finds later is a change, of which a bell tells.
            self.slots[slot].watch.note_state(peer.encode());
            Ok(Ok(true))
        });
        match opened {
            Ok(Ok(false)) => Ok(None),
            Ok(Ok(true)) => {
                (entry.held, entry.expires, entry.peeked) = (true, None, None);
                self.active.set(slot);
                self.notify(&view, Cause::State);
                Ok(Some(Use { slot, generation: entry.channel.mine.generation }))
            }
            Ok(Err(error)) => Err(error),
            Err(corrupt) => {
                self.give_up(slot, entry, &view, corrupt);
                Ok(None)
            }
        }
    }

    /// Listens on a port.
    pub fn listen(&self, port: u32) -> Result<(), Error> {
        use std::collections::hash_map::Entry::{Occupied, Vacant};
        match self.listeners.lock().entry(port) {
            Occupied(_) => Err(Error::PortTaken(port)),
            Vacant(place) => {
                place.insert(Backlog::default());
                Ok(())
            }
        }
    }

    /// Whether somebody listens on the port.
    pub fn listens(&self, port: u32) -> bool {
        self.listeners.lock().contains_key(&port)
    }

    /// Stops listening; opens that wait are refused.
    pub fn unlisten(&self, port: u32) {
        let backlog = self.listeners.lock().remove(&port);
        for this in backlog.into_iter().flat_map(|backlog| backlog.queue) {
            let mut entry = self.slots[this.slot].entry.lock();
            if entry.channel.mine.phase != Phase::Free {
                // Another use of the slot has an owner of its own.
                continue;
            }
            entry.held = false;
            // The next look finds nobody listening.
            self.slots[this.slot].watch.forget_state();
        }
    }

    /// Puts an open into the backlog of its port; `false` where nobody listens.
    pub(super) fn offer(&self, port: u32, this: Use) -> bool {
        let mut listeners = self.listeners.lock();
        let Some(backlog) = listeners.get_mut(&port) else { return false };
        // An open that was given up, and made again, takes the place of the one that nobody came for:
        // or a peer could fill the memory by opening and closing.
        backlog.queue.retain(|earlier| earlier.slot != this.slot);
        backlog.queue.push_back(this);
        backlog.wake();
        true
    }

    /// Accepts the next open of a port.
    pub fn poll_accept(&self, port: u32, cx: &mut Context<'_>) -> Poll<Result<(Use, Kind), Error>> {
        loop {
            let this = {
                let mut listeners = self.listeners.lock();
                let Some(backlog) = listeners.get_mut(&port) else { return Poll::Ready(Err(Error::Ended)) };
                let next = if self.is_frozen() { None } else { backlog.queue.pop_front() };
                let Some(this) = next else {
                    backlog.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                };
                this
            };
            if let Some(kind) = self.accept(this, port) {
                return Poll::Ready(Ok((this, kind)));
            }
        }
    }

    /// `None` where the open has gone meanwhile, or there is no memory for it: the next one, then.
    fn accept(&self, this: Use, port: u32) -> Option<Kind> {
        let view = self.view(this.slot);
        let mut entry = self.slots[this.slot].entry.lock();
        if self.is_frozen() {
            // Frozen since it was taken from the backlog: it goes back.
            drop(entry);
            self.offer(port, this);
            return None;
        }
        if entry.channel.corrupt.is_some() {
            return None;
        }
        let accepted = entry.channel.look(&view).and_then(|peer| {
            // The open may have been given up, and another one, to another port, may stand there now.
            let this_one = (peer.generation, peer.port) == (this.generation, port);
            if !entry.channel.is_incoming(peer) || !this_one {
                return Ok(None);
            }
            if self.allocate(this.slot, &mut entry).is_err() {
                entry.channel.refuse(&view, peer);
                entry.held = false;
                self.notify(&view, Cause::State);
                return Ok(None);
            }
            entry.channel.accept(&view, peer)?;
            (entry.expires, entry.peeked) = (None, None);
            self.notify(&view, Cause::State);
            Ok(Some(peer.kind))
        });
        accepted.unwrap_or_else(|corrupt| {
            self.give_up(this.slot, &mut entry, &view, corrupt);
            None
        })
    }

    /// Closes both directions of a use; during a freeze, with the thaw.
    pub fn close(&self, this: Use, reason: Reason) {
        let mut entry = self.slots[this.slot].entry.lock();
        if entry.in_use(this).is_err() {
            return;
        }
        if self.is_frozen() {
            entry.closing = Some(reason);
        } else {
            self.close_entry(this.slot, &mut entry, reason);
        }
    }

    pub(super) fn close_entry(&self, slot: usize, entry: &mut Entry, reason: Reason) {
        let view: View<'_, W> = self.view(slot);
        (entry.held, entry.closing) = (false, None);
        entry.channel.close(&view, reason);
        self.notify(&view, Cause::State);
        // No want of it is left: the look below may find the slot free already, and nobody serves it then.
        self.wake_waiters(slot, entry, &view);
        let settled = entry.channel.look(&view).and_then(|peer| self.settle(slot, entry, &view, peer));
        if let Err(corrupt) = settled {
            self.give_up(slot, entry, &view, corrupt);
        }
    }

    /// Gives a live channel that nobody holds to a new owner.
    pub fn adopt(&self, id: ChannelId) -> Result<(Use, Kind), crate::AdoptError> {
        use crate::AdoptError;
        if id.timeline != self.timeline {
            return Err(AdoptError::OtherTimeline { asked: id.timeline, running: self.timeline });
        }
        let place = self.slots.get(id.slot).ok_or(AdoptError::Ended)?;
        let mut entry = place.entry.lock();
        let mine = entry.channel.mine;
        if let Some(corrupt) = entry.channel.corrupt {
            return Err(AdoptError::Corrupt(corrupt));
        }
        if mine.phase != Phase::Live || mine.generation.number() != id.generation || entry.closing.is_some() {
            return Err(AdoptError::Ended);
        }
        if entry.held {
            return Err(AdoptError::Held);
        }
        (entry.held, entry.expires) = (true, None);
        RolledBack::told(&self.view(id.slot));
        Ok((Use { slot: id.slot, generation: mine.generation }, mine.kind))
    }

    /// Lets go of a live channel without closing it: it can be adopted again.
    pub fn release(&self, this: Use) {
        let mut entry = self.slots[this.slot].entry.lock();
        if entry.in_use(this).is_ok() {
            entry.held = false;
        }
    }
}
