//! Looking at the peer's words on behalf of everybody who waits, and going to sleep.

use std::time::{Duration, Instant};

use throughline_ring::{Cause, Reason, State, View};
use throughline_shmem::Words;

use super::open::Backlog;
use super::watch::Want;
use super::{Bell, Core, Entry, Use};

/// How long a channel that is due to be closed waits during a freeze before it is looked at again.
const AFTER_FREEZE: Duration = Duration::from_millis(100);

impl<W: Words, B: Bell> Core<W, B> {
    /// Looks at every want and every state once, wakes whom it concerns, and returns how many. Bounded
    /// by the number of slots, whatever the peer does. While frozen it looks at the link's words only:
    /// the end of a freeze may come that way.
    pub fn serve(&self) -> usize {
        let mut served = self.serve_link();
        if self.is_frozen() {
            return served;
        }
        for slot in self.active.iter() {
            if self.slots[slot].watch.has_changed(&self.view(slot)) {
                self.serve_state(slot);
                served += 1;
            }
        }
        for slot in self.starved.iter() {
            served += usize::from(self.serve_starved(slot));
        }
        for slot in self.waiting.iter() {
            let view = self.view(slot);
            if self.slots[slot].watch.is_reached(&view) {
                self.wake_waiters(slot, &mut self.slots[slot].entry.lock(), &view);
                served += 1;
            }
        }
        served
    }

    /// Whether [`serve`](Self::serve) would find something: what a spinning driver asks. While frozen it would
    /// not, and a driver that were told otherwise would never let anybody thaw.
    pub fn is_ready(&self) -> bool {
        !self.is_frozen()
            && self.waiting.iter().any(|slot| {
                let (view, watch) = (self.view(slot), &self.slots[slot].watch);
                watch.is_reached(&view) || watch.has_changed(&view)
            })
    }

    /// Whether somebody waits for the peer: the backstop runs only then.
    pub fn has_waiters(&self) -> bool {
        !self.waiting.is_empty()
            || self.link.has_waiters()
            || !self.vacancies.lock().is_empty()
            || self.listeners.lock().values().any(Backlog::has_waiter)
    }

    /// Shows that this side sleeps and looks again. `true` means: nothing was there, wait for the
    /// doorbell, then call [`wake_up`](Self::wake_up). `false` means: something was, and this side is awake.
    pub fn fall_asleep(&self) -> bool {
        self.sleeper.lock().fall_asleep(&self.ledger);
        // Everything that was registered before the fence is looked at; what is registered after it
        // is looked at by who registers it.
        let found = self.serve() > 0;
        if found {
            self.wake_up();
        } else {
            self.counting.slept();
        }
        !found
    }

    /// Shows that this side is awake.
    pub fn wake_up(&self) {
        self.sleeper.lock().wake_up(&self.ledger);
    }

    fn serve_state(&self, slot: usize) {
        let view = self.view(slot);
        let mut entry = self.slots[slot].entry.lock();
        if self.is_frozen() || entry.channel.corrupt.is_some() {
            return;
        }
        let followed = entry.channel.look(&view).and_then(|peer| {
            // What was judged is what is noted: the word is read once, and a later change is another one.
            self.slots[slot].watch.note_state(peer.encode());
            self.follow(slot, &mut entry, &view, peer)
        });
        if let Err(corrupt) = followed {
            self.give_up(slot, &mut entry, &view, corrupt);
        }
        self.wake_waiters(slot, &mut entry, &view);
    }

    /// Tries again to settle a slot whose rings had no memory; whether they have some now.
    fn serve_starved(&self, slot: usize) -> bool {
        let mut entry = self.slots[slot].entry.lock();
        if self.is_frozen() || self.allocate(slot, &mut entry).is_err() {
            return false;
        }
        self.starved.clear(slot);
        self.slots[slot].watch.forget_state();
        true
    }

    /// Does what the peer's new state asks for.
    fn follow(
        &self,
        slot: usize,
        entry: &mut Entry,
        view: &View<'_, W>,
        peer: State,
    ) -> Result<(), throughline_ring::Corrupt> {
        // Refused before it is settled: whatever came with it is to be dropped then, and looked at once.
        if entry.channel.is_incoming(peer) && !entry.held && !self.listens(peer.port) {
            entry.channel.refuse(view, peer);
            self.notify(view, Cause::State);
        }
        self.settle(slot, entry, view, peer)?;
        if entry.channel.is_incoming(peer) && !entry.held {
            entry.held = self.offer(peer.port, Use { slot, generation: peer.generation });
            if !entry.held {
                // Nobody listens any more: the next look refuses it.
                self.slots[slot].watch.forget_state();
            }
        }
        Ok(())
    }

    pub(super) fn wake_waiters(&self, slot: usize, entry: &mut Entry, view: &View<'_, W>) {
        self.waiting.clear(slot);
        for want in [Want::Data(0), Want::Space(0)] {
            self.slots[slot].watch.withdraw(view, want);
        }
        entry.wake();
    }

    /// Closes the channels that nobody adopted in time. Returns when to call again.
    pub fn expire(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for (slot, place) in self.slots.iter().enumerate() {
            let mut entry = place.entry.lock();
            let Some(due) = entry.expires.filter(|_| !entry.held) else { continue };
            // The thaw is nobody's deadline: until it comes, a look now and then will do.
            let due = if self.is_frozen() { due.max(now + AFTER_FREEZE) } else { due };
            if due > now {
                next = Some(next.map_or(due, |next| next.min(due)));
                continue;
            }
            entry.expires = None;
            self.close_entry(slot, &mut entry, Reason::Expired);
        }
        next
    }
}
