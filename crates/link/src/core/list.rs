//! What there is: every channel, for owners who adopt and for people who look.

use throughline_ring::{Corrupt, Kind, Phase, RecordWord};
use throughline_shmem::Words;

use super::channel::Channel;
use super::rolled_back::RolledBack;
use super::{Bell, Core};

/// One use of one channel, in one timeline. The same numbers in another timeline name other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId {
    /// The timeline.
    pub timeline: u128,
    /// Number of the slot.
    pub slot: usize,
    /// Which use of the slot.
    pub generation: u32,
}

/// A channel that this side has not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Its name for [`adopt`](crate::Link::adopt).
    pub id: ChannelId,
    /// The port it was opened to.
    pub port: u32,
    /// What it carries.
    pub kind: Kind,
    /// Whether this side opened it.
    pub opened_here: bool,
    /// Whether somebody in this process has it.
    pub held: bool,
    /// Bytes of each ring.
    pub ring_bytes: u64,
    /// What its owner called it.
    pub label: String,
    /// Position at which this side's bytes of this use began.
    pub sent_from: u64,
    /// End of this side's bytes.
    pub sent: u64,
    /// Of those, bytes that the peer has not freed yet (unread, or not scrubbed yet).
    pub sent_unread: u64,
    /// Position at which the peer's bytes of this use began.
    pub received_from: u64,
    /// End of the peer's bytes that were handed to the reader.
    pub received: u64,
    /// The peer's bytes that wait to be read.
    pub unread: u64,
    /// Why it was given up.
    pub corrupt: Option<Corrupt>,
    /// How far it went back with its VM, until somebody adopts it.
    pub rolled_back: Option<RolledBack>,
}

impl<W: Words, B: Bell> Core<W, B> {
    /// Every channel that this side has open, or had to give up.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        (0..self.slots.len()).filter_map(|slot| self.channel(slot)).collect()
    }

    /// One of them.
    pub fn channel(&self, slot: usize) -> Option<ChannelInfo> {
        let view = self.view(slot);
        let mut entry = self.slots[slot].entry.lock();
        let mine = entry.channel.mine;
        // One that waits for the thaw to be closed is closed to its owner.
        let open = mine.phase == Phase::Live && entry.closing.is_none();
        if !open && entry.channel.corrupt.is_none() {
            return None;
        }
        // What a corrupt peer says is left out, not repaired.
        let unread = entry.channel.rx.refresh(&view).unwrap_or(0);
        let freed = entry.channel.tx.refresh(&view).unwrap_or_else(|_| entry.channel.tx.produced());
        let (sent_from, received_from) = Channel::began(&view);
        let label: Vec<u8> = (0..4).flat_map(|word| view.kept_at(RecordWord::Label, word).to_le_bytes()).collect();
        let label = String::from_utf8_lossy(&label);
        Some(ChannelInfo {
            id: ChannelId { timeline: self.timeline, slot, generation: mine.generation.number() },
            port: mine.port,
            kind: mine.kind,
            opened_here: entry.channel.i_open,
            held: entry.held,
            ring_bytes: view.capacity(),
            label: label.trim_end_matches('\0').to_owned(),
            sent_from: sent_from.0,
            sent: entry.channel.tx.produced().0,
            sent_unread: entry.channel.tx.produced().since(freed),
            received_from: received_from.0,
            received: entry.channel.rx.taken().0,
            unread,
            corrupt: entry.channel.corrupt,
            rolled_back: RolledBack::of(&view),
        })
    }
}
