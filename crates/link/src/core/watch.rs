//! What a driver looks at without taking a lock.

use crate::sync::{AtomicU64, Ordering};
use throughline_ring::{NEVER, RecordWord, View};
use throughline_shmem::Words;

/// A state word that no peer's word equals: looking for the first time always finds a change.
const UNSEEN: u64 = u64::MAX;

/// One slot's private copies of what it waits for.
#[derive(Debug)]
pub(super) struct Watch {
    data: AtomicU64,
    space: AtomicU64,
    state: AtomicU64,
}

/// What a task waits for, besides a change of the peer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// The peer's `produced` at this position.
    Data(u64),
    /// The peer's `freed` at this position.
    Space(u64),
    /// Nothing but the change.
    Change,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { data: AtomicU64::new(NEVER), space: AtomicU64::new(NEVER), state: AtomicU64::new(UNSEEN) }
    }

    fn cell(&self, want: Want) -> Option<(&AtomicU64, RecordWord, u64)> {
        match want {
            Want::Data(position) => Some((&self.data, RecordWord::WantData, position)),
            Want::Space(position) => Some((&self.space, RecordWord::WantSpace, position)),
            // A change of state wakes whoever waits at all.
            Want::Change => None,
        }
    }

    /// Notes a want and shows it to the peer. Look again afterwards.
    pub(super) fn register(&self, view: &View<'_, impl Words>, want: Want) {
        if let Some((cell, word, position)) = self.cell(want) {
            cell.store(position, Ordering::Relaxed);
            throughline_ring::register(view, word, position);
        }
    }

    /// Takes a want back, if there was one.
    pub(super) fn withdraw(&self, view: &View<'_, impl Words>, want: Want) {
        if let Some((cell, word, _)) = self.cell(want)
            && cell.load(Ordering::Relaxed) != NEVER
        {
            cell.store(NEVER, Ordering::Relaxed);
            view.show(word, NEVER);
        }
    }

    /// Whether the peer's cursors have reached a want. An unjudged look: it only wakes the task, which judges.
    pub(super) fn is_reached(&self, view: &View<'_, impl Words>) -> bool {
        let reached = |cell: &AtomicU64, word| {
            let want = cell.load(Ordering::Relaxed);
            want != NEVER && view.alleged(word) >= want
        };
        reached(&self.data, RecordWord::Produced) || reached(&self.space, RecordWord::Freed)
    }

    /// Whether the peer's state is another than the one last noted.
    pub(super) fn has_changed(&self, view: &View<'_, impl Words>) -> bool {
        view.alleged(RecordWord::State) != self.state.load(Ordering::Relaxed)
    }

    /// Notes the peer's state word.
    pub(super) fn note_state(&self, word: u64) {
        self.state.store(word, Ordering::Relaxed);
    }

    /// Makes the next look find a change.
    pub(super) fn forget_state(&self) {
        self.note_state(UNSEEN);
    }
}

/// A set of slots.
#[derive(Debug)]
pub(super) struct Bitmap(Box<[AtomicU64]>);

impl Bitmap {
    pub(super) fn new(slots: usize) -> Self {
        Self((0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn set(&self, slot: usize) {
        // Release: whoever finds the bit finds the want that was noted before it.
        self.0[slot / 64].fetch_or(1 << (slot % 64), Ordering::Release);
    }

    pub(super) fn clear(&self, slot: usize) {
        self.0[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::Release);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, word)| {
            let mut bits = word.load(Ordering::Acquire);
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(at * 64 + bit)
            })
        })
    }
}
