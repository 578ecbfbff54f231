//! One side's hands on the words of one channel.

use throughline_shmem::sync::Ordering;
use throughline_shmem::{WORD, Words};

use crate::{Layout, Position, RecordWord, Side};

/// The memories that a side writes: the region, and the host's sidecar.
///
/// Three kinds of own words, by what a successor needs:
/// - *published*: kept first, then shown (cursors, states, identity);
/// - *kept*: in the sidecar only, or in the guest's own page, for a successor alone;
/// - *shown*: in the region only (sleep, wants): meaningless after a restart.
#[derive(Clone, Copy, Debug)]
pub struct Ledger<W> {
    region: W,
    sidecar: Option<W>,
}

impl<W: Words> Ledger<W> {
    /// The host gives a sidecar, whose words lie at the region's offsets; the guest has none.
    #[inline]
    pub fn new(region: W, sidecar: Option<W>) -> Self {
        Self { region, sidecar }
    }

    /// The region.
    pub fn region(&self) -> &W {
        &self.region
    }

    /// The sidecar.
    pub fn sidecar(&self) -> Option<&W> {
        self.sidecar.as_ref()
    }

    /// Keeps, then shows. Each store is a release: what was written before it is seen with it.
    #[inline]
    pub fn publish(&self, at: usize, value: u64) {
        // Sidecar first: a successor republishes from it, so it must never lag behind the region.
        if let Some(sidecar) = &self.sidecar {
            sidecar.store(at, value, Ordering::Release);
        }
        self.region.store(at, value, Ordering::Release);
    }

    /// Remembers for a successor.
    #[inline]
    pub fn keep(&self, at: usize, value: u64) {
        self.sidecar.as_ref().unwrap_or(&self.region).store(at, value, Ordering::Release);
    }

    /// Tells the peer; nobody needs it later.
    #[inline]
    pub fn show(&self, at: usize, value: u64) {
        self.region.store(at, value, Ordering::Release);
    }

    /// What a predecessor published or kept. Used at attach only: who runs has its own copy.
    pub fn kept(&self, at: usize) -> u64 {
        self.sidecar.as_ref().unwrap_or(&self.region).load(at, Ordering::Acquire)
    }

    /// A word of the peer: an allegation. Pairs with the release of [`publish`](Self::publish).
    #[inline]
    pub fn alleged(&self, at: usize) -> u64 {
        self.region.load(at, Ordering::Acquire)
    }
}

/// A channel as one side sees it. Cheap to make, holds no state.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, W> {
    ledger: &'a Ledger<W>,
    mine: usize,
    theirs: usize,
    sending: usize,
    receiving: usize,
    capacity: u64,
}

impl<'a, W: Words> View<'a, W> {
    /// The view of `side` on `channel`.
    ///
    /// # Panics
    /// When there is no such channel.
    #[inline]
    pub fn new(ledger: &'a Ledger<W>, layout: &Layout, side: Side, channel: usize) -> Self {
        let slot = layout.slots()[channel];
        Self {
            ledger,
            mine: layout.record(side, channel),
            theirs: layout.record(side.peer(), channel),
            sending: slot.ring_at(side),
            receiving: slot.ring_at(side.peer()),
            capacity: slot.ring_bytes,
        }
    }

    /// Bytes of each ring.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Keeps, then shows, a word of mine.
    #[inline]
    pub fn publish(&self, word: RecordWord, value: u64) {
        self.ledger.publish(self.mine + word as usize, value);
    }

    /// Remembers a word of mine for a successor.
    #[inline]
    pub fn keep(&self, word: RecordWord, value: u64) {
        self.ledger.keep(self.mine + word as usize, value);
    }

    /// Remembers one of the words that follow `word`.
    pub fn keep_at(&self, word: RecordWord, index: usize, value: u64) {
        self.ledger.keep(self.mine + word as usize + index, value);
    }

    /// Shows a word of mine.
    #[inline]
    pub fn show(&self, word: RecordWord, value: u64) {
        self.ledger.show(self.mine + word as usize, value);
    }

    /// A word of mine as a predecessor left it.
    pub fn kept(&self, word: RecordWord) -> u64 {
        self.kept_at(word, 0)
    }

    /// One of the words that follow `word`, as a predecessor left it.
    pub fn kept_at(&self, word: RecordWord, index: usize) -> u64 {
        self.ledger.kept(self.mine + word as usize + index)
    }

    /// A word of the peer.
    #[inline]
    pub fn alleged(&self, word: RecordWord) -> u64 {
        self.ledger.alleged(self.theirs + word as usize)
    }

    pub(crate) fn sending(&self) -> Bytes<'a, W> {
        Bytes { memory: &self.ledger.region, at: self.sending, capacity: self.capacity }
    }

    pub(crate) fn receiving(&self) -> Bytes<'a, W> {
        Bytes { memory: &self.ledger.region, at: self.receiving, capacity: self.capacity }
    }
}

/// The data words of one ring, addressed by position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes<'a, W> {
    memory: &'a W,
    at: usize,
    capacity: u64,
}

impl<W: Words> Bytes<'_, W> {
    #[inline]
    fn word(&self, at: Position) -> usize {
        self.at + ((at.0 & (self.capacity - 1)) as usize) / WORD
    }

    /// Bytes from `at` to the ring's end.
    #[inline]
    fn to_end(&self, at: Position) -> usize {
        (self.capacity - (at.0 & (self.capacity - 1))) as usize
    }

    #[inline]
    pub(crate) fn load(&self, at: Position) -> u64 {
        self.memory.load(self.word(at), Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn store(&self, at: Position, value: u64) {
        self.memory.store(self.word(at), value, Ordering::Relaxed);
    }

    /// Writes whole words from the word's boundary `at`.
    #[inline]
    pub(crate) fn copy_in(&self, at: Position, bytes: &[u8]) {
        let (first, rest) = bytes.split_at(bytes.len().min(self.to_end(at)));
        self.memory.copy_in(self.word(at), first);
        if !rest.is_empty() {
            self.memory.copy_in(self.at, rest);
        }
    }

    /// Reads bytes from any position.
    #[inline]
    pub(crate) fn copy_out(&self, mut at: Position, mut out: &mut [u8]) {
        if at.in_word() != 0 && !out.is_empty() {
            let from = at.in_word();
            let count = out.len().min(WORD - from);
            let word = self.load(at.floor()).to_le_bytes();
            let (head, rest) = out.split_at_mut(count);
            head.copy_from_slice(&word[from..from + count]);
            (at, out) = (at.plus(count as u64), rest);
        }
        let whole = out.len() / WORD * WORD;
        let (words, tail) = out.split_at_mut(whole);
        let (first, rest) = words.split_at_mut(whole.min(self.to_end(at)));
        if !first.is_empty() {
            self.memory.copy_out(self.word(at), first);
        }
        if !rest.is_empty() {
            self.memory.copy_out(self.at, rest);
        }
        if !tail.is_empty() {
            let word = self.load(at.plus(whole as u64)).to_le_bytes();
            tail.copy_from_slice(&word[..tail.len()]);
        }
    }

    /// Zeroes the whole words of `[from, to)`, both on words' boundaries, at most a ring.
    #[inline]
    pub(crate) fn scrub(&self, from: Position, to: Position) {
        let bytes = to.since(from).min(self.capacity) as usize;
        let first = bytes.min(self.to_end(from));
        self.memory.zero(self.word(from), first / WORD);
        self.memory.zero(self.at, (bytes - first) / WORD);
    }
}
