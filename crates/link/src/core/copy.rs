//! What of a region goes into a snapshot.

use throughline_ring::{Phase, Side, State};
use throughline_shmem::{WORD, Words};

use super::{Bell, Core};

/// Words looked at, and copied, at a time: a page.
const PIECE: usize = 512;

/// Bytes in flight that a copy carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Channels in use.
    pub channels: usize,
    /// Unread bytes on their way to the guest.
    pub to_guest: u64,
    /// Unread bytes on their way to the host.
    pub to_host: u64,
}

impl<W: Words, B: Bell> Core<W, B> {
    /// Walks over the words of the region that a copy needs, while frozen and while the guest stands
    /// still: `put` gets the place of the first word, in bytes, and the bytes.
    ///
    /// Of the rings to the guest those are the bytes that were not read; what was is left behind,
    /// scrubbed or not. Of the rings to the host, whatever the guest has written: it may be in the
    /// middle of a message that it publishes later.
    pub fn copy_region<E>(&self, mut put: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<Carried, E> {
        let mut carried = Carried::default();
        self.copy_words(0, self.layout.control_words(), &mut put)?;
        for slot in 0..self.slots.len() {
            let view = self.view(slot);
            let mut entry = self.slots[slot].entry.lock();
            let peer = State::decode(view.alleged(throughline_ring::RecordWord::State));
            let idle = entry.channel.mine.phase == Phase::Free && peer.is_ok_and(|peer| peer.phase == Phase::Free);
            if !entry.allocated || idle || entry.channel.corrupt.is_some() {
                continue;
            }
            let place = self.layout.slots()[slot];
            let words = place.ring_bytes as usize / WORD;
            let end = entry.channel.tx.produced();
            // A guest that lies about what it has freed gets its whole ring back.
            let start = entry.channel.tx.refresh(&view).unwrap_or(end);
            let (mine, theirs) = (place.ring_at(self.side), place.ring_at(self.side.peer()));
            let (from, unread) = (start.floor(), end.ceil().since(start.floor()) as usize / WORD);
            let first = (from.0 % place.ring_bytes) as usize / WORD;
            let before_end = unread.min(words - first);
            self.copy_words(mine + first, before_end, &mut put)?;
            self.copy_words(mine, unread - before_end, &mut put)?;
            self.copy_words(theirs, words, &mut put)?;
            let (to_peer, from_peer) = (end.since(start), entry.channel.rx.refresh(&view).unwrap_or(0));
            let (to_guest, to_host) = if self.side == Side::Host { (to_peer, from_peer) } else { (from_peer, to_peer) };
            carried.channels += 1;
            carried.to_guest += to_guest;
            carried.to_host += to_host;
        }
        Ok(carried)
    }

    /// Walks over the kept words of the sidecar's side pages.
    pub fn copy_sidecar<E>(&self, mut put: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let Some(sidecar) = self.ledger.sidecar() else { return Ok(()) };
        copy_nonzero(sidecar, 0, sidecar.len(), &mut put)
    }

    fn copy_words<E>(
        &self,
        at: usize,
        count: usize,
        put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        copy_nonzero(self.ledger.region(), at, count, put)
    }
}

/// Copies words out piece by piece, and passes on those pieces that are not all zero.
fn copy_nonzero<E>(
    memory: &impl Words,
    at: usize,
    count: usize,
    put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes = [0; PIECE * WORD];
    let mut done = 0;
    while done < count {
        let words = (count - done).min(PIECE);
        let piece = &mut bytes[..words * WORD];
        memory.copy_out(at + done, piece);
        if piece.iter().any(|byte| *byte != 0) {
            put(((at + done) * WORD) as u64, piece)?;
        }
        done += words;
    }
    Ok(())
}
