//! How far a channel went back, when its VM went back to a checkpoint.

use throughline_ring::{Layout, Ledger, Phase, RecordWord, Side, State, View};
use throughline_shmem::Words;

/// A channel is at the position of a checkpoint again, in a new timeline. Positions of the lost one mean nothing in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// The timeline that was lost.
    pub lost: u128,
    /// The host's bytes: what it sent in the lost timeline after the checkpoint, its guest of now never had.
    pub sent: Undone,
    /// The guest's bytes: what was handed to the reader after the checkpoint comes again, perhaps different.
    pub received: Undone,
}

/// Positions that are not valid any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undone {
    /// The end, in the lost timeline.
    pub from: u64,
    /// The end at the checkpoint.
    pub to: u64,
}

impl Undone {
    /// How many bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.from.saturating_sub(self.to)
    }
}

impl RolledBack {
    /// What the owner of a channel has yet to be told.
    pub(super) fn of(view: &View<'_, impl Words>) -> Option<Self> {
        let word = |index| view.kept_at(RecordWord::RolledBack, index);
        (word(0) != 0).then(|| Self {
            lost: u128::from(word(0)) | u128::from(word(1)) << 64,
            sent: Undone { from: word(2), to: view.kept(RecordWord::Produced) },
            received: Undone { from: word(3), to: view.kept(RecordWord::Taken) },
        })
    }

    /// The owner knows, or there is another use of the slot. One store, so that a killed process leaves no half of it.
    pub(super) fn told(view: &View<'_, impl Words>) {
        if view.kept(RecordWord::RolledBack) != 0 {
            view.keep(RecordWord::RolledBack, 0);
        }
    }
}

/// Marks each channel of a checkpoint's copy with how far it had come in the timeline `lost`, of which `dead` is what
/// the host kept. A mark of which the owner was not told there goes on: he knows no other positions.
pub(crate) fn mark<W: Words>(kept: &W, dead: &W, layout: &Layout, lost: u128) {
    let (kept, dead) = (Ledger::new(kept, Some(kept)), Ledger::new(dead, Some(dead)));
    for slot in 0..layout.slots().len() {
        let (now, then) = (View::new(&kept, layout, Side::Host, slot), View::new(&dead, layout, Side::Host, slot));
        let state = |view: &View<'_, _>| State::decode(view.kept(RecordWord::State)).ok();
        let goes_on = state(&now).is_some_and(|now| {
            now.phase == Phase::Live && state(&then).is_some_and(|then| then.generation == now.generation)
        });
        let untold = then.kept(RecordWord::RolledBack) != 0;
        let words = match (goes_on, untold) {
            (true, true) => [0, 1, 2, 3].map(|index| then.kept_at(RecordWord::RolledBack, index)),
            (true, false) => {
                [lost as u64, (lost >> 64) as u64, then.kept(RecordWord::Produced), then.kept(RecordWord::Taken)]
            }
            (false, _) => [0; 4],
        };
        for (index, word) in words.into_iter().enumerate() {
            now.keep_at(RecordWord::RolledBack, index, word);
        }
    }
}
