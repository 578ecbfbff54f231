//! What of a connection a child of a fork does not inherit.

use throughline_ring::{Phase, Reason, RecordWord, Side};
use throughline_shmem::{WORD, Words};

use super::open::{OnFork, Policy};
use super::{Bell, Core};

impl<W: Words, B: Bell> Core<W, B> {
    /// Resets the channels whose opener wanted that of a fork, and wipes both of their rings: nobody reads
    /// there any more. The peer must stand still, having run nothing of this timeline. Returns how many there were.
    pub fn reset_forked(&self) -> usize {
        let mut count = 0;
        for slot in 0..self.slots.len() {
            let view = self.view(slot);
            let mut entry = self.slots[slot].entry.lock();
            let policy = Policy::decode(view.kept(RecordWord::Policy));
            if policy.on_fork != OnFork::Reset || entry.channel.mine.phase != Phase::Live {
                continue;
            }
            self.close_entry(slot, &mut entry, Reason::Reset);
            let place = self.layout.slots()[slot];
            self.ledger.region().zero(place.ring_at(Side::Host), 2 * place.ring_bytes as usize / WORD);
            count += 1;
        }
        count
    }
}
