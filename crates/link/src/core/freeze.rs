//! Freezing: a gate before every publishing store.

use throughline_shmem::Words;

use super::{Bell, Core};
use crate::sync::Ordering;

impl<W: Words, B: Bell> Core<W, B> {
    /// After this returns, this side publishes nothing until the thaw. Every moment between two stores
    /// is a valid one to copy, so nothing can block this and nothing can make it fail. Waits at most for
    /// the calls that are copying bytes right now.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
        // Whoever holds a channel's lock may still publish; whoever takes it later sees the gate shut.
        for slot in &self.slots {
            drop(slot.entry.lock());
        }
        drop(self.listeners.lock());
    }

    /// Opens the gate: closes what was to be closed, lets everybody look again, and rings. Have the driver
    /// [wake up](Self::wake_up) and serve then: it looked away from what the peer did meanwhile.
    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::Relaxed);
        for (slot, place) in self.slots.iter().enumerate() {
            let mut entry = place.entry.lock();
            if let Some(reason) = entry.closing {
                self.close_entry(slot, &mut entry, reason);
            }
            entry.wake();
        }
        self.wake_everybody_else();
        let _ = self.ring();
    }

    fn wake_everybody_else(&self) {
        for waker in self.vacancies.lock().drain(..) {
            waker.wake();
        }
        for backlog in self.listeners.lock().values_mut() {
            backlog.wake();
        }
        self.link.wake();
    }
}
