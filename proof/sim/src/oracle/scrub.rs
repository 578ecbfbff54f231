//! Consumed bytes are gone: from the region, from the sidecar, and so from every copy.

use std::collections::HashMap;

use throughline::Side;
use throughline_ring::{Phase, RecordWord};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::Relaxed;

use super::{Judged, Oracle, ensure};
use crate::call::{RING, is_payload};
use crate::raw::Raw;

/// Words that a dead process had staged and not published: they were never sent, so that nobody consumes
/// them. Place and value.
pub(crate) type Orphans = HashMap<usize, u64>;

/// The words of a ring from the byte `from` on, with the distance from there.
fn ring_words(raw: &Raw<'_>, slot: usize, writer: Side, from: u64) -> impl Iterator<Item = (usize, u64)> {
    let ring = raw.layout.slots()[slot].ring_at(writer);
    (0..RING / 8).map(move |word| (ring + ((from / 8 + word) % (RING / 8)) as usize, word * 8))
}

/// What a dead `writer` leaves in its rings beyond what it published.
pub(crate) fn find_orphans(raw: &Raw<'_>, writer: Side, orphans: &mut Orphans) {
    for slot in 0..raw.layout.slots().len() {
        let freed = raw.shown(writer.peer(), slot, RecordWord::Freed);
        let unread = raw.kept(writer, slot, RecordWord::Produced).next_multiple_of(8).saturating_sub(freed);
        for (at, distance) in ring_words(raw, slot, writer, freed) {
            let word = raw.memories.region.load(at, Relaxed);
            if distance >= unread && word != 0 {
                orphans.insert(at, word);
            }
        }
    }
}

/// Checks a whole machine at rest between two calls. `alive` tells which sides' processes live.
pub(crate) fn check_memory(oracle: &Oracle, raw: &Raw<'_>, orphans: &Orphans, alive: [bool; 2]) -> Judged {
    for slot in (0..raw.layout.slots().len()).filter(|slot| !oracle.is_spoilt(*slot)) {
        for writer in [Side::Host, Side::Guest] {
            let staged = if alive[writer as usize] { oracle.unpublished(writer, slot) } else { 0 };
            let freed = raw.shown(writer.peer(), slot, RecordWord::Freed);
            let end = (raw.kept(writer, slot, RecordWord::Produced) + staged).next_multiple_of(8);
            let unread = end.saturating_sub(freed);
            for (at, distance) in ring_words(raw, slot, writer, freed) {
                let word = raw.memories.region.load(at, Relaxed);
                let fine = distance < unread || word == 0 || orphans.get(&at) == Some(&word);
                ensure!(
                    fine,
                    "slot {slot}: {writer:?}'s byte {} is not scrubbed ({freed} to {end} are unread): {word:#x}",
                    freed + distance
                );
            }
        }
    }
    // A hostile guest puts there what it likes.
    if oracle.is_hostile() { Ok(()) } else { check_control(raw) }
}

/// No payload lies in anybody's control words; a partial last word only while its channel is in use.
fn check_control(raw: &Raw<'_>) -> Judged {
    for (name, words, end) in [
        ("region", &raw.memories.region, raw.layout.control_words()),
        ("sidecar", &raw.memories.sidecar, raw.memories.sidecar.len()),
    ] {
        for at in 0..end {
            let word = words.load(at, Relaxed);
            ensure!(!is_payload(word), "word {at} of the {name} is payload: {word:#x}");
        }
    }
    for slot in 0..raw.layout.slots().len() {
        for side in [Side::Host, Side::Guest] {
            let free = raw.kept_state(side, slot).is_some_and(|state| state.phase == Phase::Free);
            let tail = raw.kept(side, slot, RecordWord::Tail);
            ensure!(!free || tail == 0, "slot {slot} is free, and {side:?} keeps a tail of it: {tail:#x}");
        }
    }
    Ok(())
}

impl Oracle {
    /// Bytes that a writer has staged, and may not have published.
    fn unpublished(&self, writer: Side, slot: usize) -> u64 {
        let channel = self.slots[slot].channel.as_ref().filter(|channel| channel.is_live(writer));
        channel.map_or(0, |channel| {
            let flow = &channel.flows[writer as usize];
            flow.staged - flow.published
        })
    }
}
