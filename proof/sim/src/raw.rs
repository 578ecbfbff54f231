//! The machine's words, as somebody sees them who belongs to neither side.

use throughline::Side;
use throughline_ring::{Layout, LinkWord, RecordWord, State};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::Relaxed;

use crate::memory::Memories;

/// A look at everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) memories: &'a Memories,
    pub(crate) layout: &'a Layout,
}

impl Raw<'_> {
    /// What a successor of `side` finds.
    pub(crate) fn kept(&self, side: Side, slot: usize, word: RecordWord) -> u64 {
        let at = self.layout.record(side, slot) + word as usize;
        match side {
            Side::Host => self.memories.sidecar.load(at, Relaxed),
            Side::Guest => self.memories.region.load(at, Relaxed),
        }
    }

    /// What the other side sees.
    pub(crate) fn shown(&self, side: Side, slot: usize, word: RecordWord) -> u64 {
        self.memories.region.load(self.layout.record(side, slot) + word as usize, Relaxed)
    }

    pub(crate) fn kept_state(&self, side: Side, slot: usize) -> Option<State> {
        State::decode(self.kept(side, slot, RecordWord::State)).ok()
    }

    /// Number of the last identity that was given, or begun to be given.
    pub(crate) fn last_identity(&self) -> u64 {
        let number = self.layout.link_word(Side::Host, LinkWord::IdentityBlock) + 7;
        self.link(Side::Host, LinkWord::Identity).max(self.memories.region.load(number, Relaxed))
    }

    pub(crate) fn link(&self, side: Side, word: LinkWord) -> u64 {
        self.memories.region.load(self.layout.link_word(side, word), Relaxed)
    }
}
