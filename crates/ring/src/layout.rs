//! Where each word of a region lies. PROTOCOL.md is the same table for people.

use alloc::vec::Vec;

use throughline_shmem::WORD;

use crate::{Geometry, Side};

/// Bytes of a page: host-owned and guest-owned control words never share one.
pub const PAGE_BYTES: u64 = 4096;

const PAGE_WORDS: usize = PAGE_BYTES as usize / WORD;
/// A channel's record: four lines of 128 bytes.
const RECORD_WORDS: usize = 64;
const RECORDS_PER_PAGE: usize = PAGE_WORDS / RECORD_WORDS;
/// Region sizes are multiples of this, so that a VMM can map them with large pages.
const REGION_STEP: u64 = 2 << 20;

/// A word of a side's first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum LinkWord {
    /// Both sides: `episode << 1 | asleep`.
    Sleep = 0,
    /// Host: number of the identity; stored last. Guest: number of the identity it has taken on.
    Identity = 16,
    /// Host: timeline id (2 words), parent's id (2), index, wall clock, flags, the number again, entropy (8), host name (8).
    IdentityBlock = 17,
    /// Host: odd while the guest is asked to be quiet. Guest: the request it has followed.
    Quiesce = 48,
    /// Guest: the agent's protocol version.
    Agent = 64,
}

/// A word of a channel's record. Both sides' records have the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RecordWord {
    /// Phase, generation, kind, port: see [`State`](crate::State).
    State = 0,
    /// Kept: position of my ring at which this generation began.
    SentFrom = 1,
    /// Kept: position of the peer's ring at which this generation began.
    ReceivedFrom = 2,
    /// Kept: what happens to the channel in a fork, and when nobody adopts it.
    Policy = 3,
    /// Kept: why the channel was given up (0 = it was not).
    Corrupt = 4,
    /// Kept: the value that was found with it.
    CorruptValue = 5,
    /// Kept: 32 bytes that the owner chose (4 words).
    Label = 8,
    /// Kept: from where the channel was rolled back, until its owner was told: the lost timeline's id (2 words; 0 =
    /// it was not), the end of my bytes there, the end of the peer's bytes that were handed to the reader there.
    RolledBack = 12,
    /// Published: end of my bytes.
    Produced = 16,
    /// Kept: the partial last word of a stream.
    Tail = 17,
    /// Published: end of the peer's bytes whose space is free again (scrubbed).
    Freed = 32,
    /// Kept: end of the peer's bytes that were handed to the reader.
    Taken = 33,
    /// Shown: wake me when the peer has produced up to here.
    WantData = 48,
    /// Shown: wake me when the peer has freed up to here.
    WantSpace = 49,
}

/// A channel's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The side that opens it.
    pub opener: Side,
    /// Bytes of each ring.
    pub ring_bytes: u64,
    /// First word of the ring from host to guest; the other one follows it.
    rings_at: usize,
}

impl Slot {
    /// First word of the ring that `from` writes.
    #[must_use]
    pub fn ring_at(&self, from: Side) -> usize {
        match from {
            Side::Host => self.rings_at,
            Side::Guest => self.rings_at + self.ring_bytes as usize / WORD,
        }
    }
}

/// The places of all words of a region, derived from its geometry alone.
#[derive(Clone, Debug)]
pub struct Layout {
    slots: Vec<Slot>,
    side_words: usize,
    region_words: usize,
}

impl Layout {
    /// Lays a region out.
    pub fn new(geometry: &Geometry) -> Self {
        let side_words = PAGE_WORDS * (1 + geometry.channels().div_ceil(RECORDS_PER_PAGE));
        let mut at = PAGE_WORDS + 2 * side_words;
        let mut slots = Vec::with_capacity(geometry.channels());
        for class in geometry.classes() {
            for _ in 0..class.count {
                slots.push(Slot { opener: class.opener, ring_bytes: class.ring_bytes, rings_at: at });
                at += 2 * class.ring_bytes as usize / WORD;
            }
        }
        let bytes = ((at * WORD) as u64).next_multiple_of(REGION_STEP);
        Self { slots, side_words, region_words: bytes as usize / WORD }
    }

    /// The channels' places, by channel number.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Words of the whole region.
    pub fn region_words(&self) -> usize {
        self.region_words
    }

    /// Bytes of the whole region.
    pub fn region_bytes(&self) -> u64 {
        (self.region_words * WORD) as u64
    }

    /// Words of the header and of both sides' pages: what exists before any ring does.
    pub fn control_words(&self) -> usize {
        PAGE_WORDS + 2 * self.side_words
    }

    /// Bytes of a sidecar: its own header page, then the host pages at the region's offsets.
    pub fn sidecar_bytes(&self) -> u64 {
        ((PAGE_WORDS + self.side_words) * WORD) as u64
    }

    /// First word and number of words of a side's pages.
    pub fn side_pages(&self, side: Side) -> (usize, usize) {
        match side {
            Side::Host => (PAGE_WORDS, self.side_words),
            Side::Guest => (PAGE_WORDS + self.side_words, self.side_words),
        }
    }

    /// Place of a link word of `side`.
    pub fn link_word(&self, side: Side, word: LinkWord) -> usize {
        self.side_pages(side).0 + word as usize
    }

    /// First word of the record of `side` for `channel`.
    ///
    /// # Panics
    /// When there is no such channel.
    pub fn record(&self, side: Side, channel: usize) -> usize {
        assert!(channel < self.slots.len(), "channel {channel} of {}", self.slots.len());
        self.side_pages(side).0 + PAGE_WORDS + channel * RECORD_WORDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_keeps_the_sides_pages_and_the_rings_apart() {
        let layout = Layout::new(&Geometry::default());
        assert_eq!(layout.region_bytes(), 58 << 20);
        let (host, words) = layout.side_pages(Side::Host);
        let (guest, _) = layout.side_pages(Side::Guest);
        assert_eq!((host % PAGE_WORDS, guest % PAGE_WORDS, guest - host), (0, 0, words));
        let last = layout.slots().len() - 1;
        assert!(layout.record(Side::Host, last) + RECORD_WORDS <= guest);
        assert!(layout.record(Side::Guest, last) + RECORD_WORDS <= layout.control_words());
        let mut end = layout.control_words();
        for slot in layout.slots() {
            for from in [Side::Host, Side::Guest] {
                assert_eq!(slot.ring_at(from), end);
                assert_eq!(end % PAGE_WORDS, 0);
                end += slot.ring_bytes as usize / WORD;
            }
        }
        assert!(end <= layout.region_words());
    }

    /// What peers of this major version rely on for ever. PROTOCOL.md has the same numbers.
    #[test]
    fn offsets_are_the_published_ones() {
        use {LinkWord as L, RecordWord as R};
        let class = |opener, count, ring_bytes| crate::Class { opener, count, ring_bytes };
        let geometry = Geometry::new(alloc::vec![class(Side::Host, 9, 4096), class(Side::Guest, 1, 8192)]).unwrap();
        let layout = Layout::new(&geometry);
        assert_eq!(layout.side_pages(Side::Host), (512, 3 * 512));
        assert_eq!(layout.side_pages(Side::Guest), (4 * 512, 3 * 512));
        assert_eq!(layout.record(Side::Host, 9), 512 + 512 + 9 * 64);
        assert_eq!(layout.slots()[1].ring_at(Side::Host), 7 * 512 + 1024);
        assert_eq!(layout.slots()[9].ring_at(Side::Guest), 7 * 512 + 9 * 1024 + 1024);
        assert_eq!(
            [L::Sleep, L::Identity, L::IdentityBlock, L::Quiesce, L::Agent].map(|word| word as usize),
            [0, 16, 17, 48, 64]
        );
        let kept = [R::SentFrom, R::ReceivedFrom, R::Policy, R::Corrupt, R::CorruptValue, R::Label, R::Tail, R::Taken];
        assert_eq!(kept.map(|word| word as usize), [1, 2, 3, 4, 5, 8, 17, 33]);
        assert_eq!(R::RolledBack as usize, 12);
        let told = [R::State, R::Produced, R::Freed, R::WantData, R::WantSpace];
        assert_eq!(told.map(|word| word as usize), [0, 16, 32, 48, 49]);
    }

    #[test]
    fn hot_words_lie_on_lines_of_their_own() {
        let lines = [RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData];
        let lines = lines.map(|word| word as usize * WORD / 128);
        assert_eq!(lines, [0, 1, 2, 3]);
        assert_eq!(RECORD_WORDS * WORD % 128, 0);
    }
}
