//! What a model is about, and how far it goes.

use throughline_ring::{Kind, Side};

use crate::action::Op;

/// Bytes of each ring: the smallest there are.
pub const RING: u64 = 4096;

/// How often something may happen in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// An operation in the middle of which the peer does something.
    pub meets: u8,
    /// A death between two operations.
    pub deaths: u8,
    /// A death between two stores of one.
    pub deaths_inside: u8,
    /// A bell that is lost without notice.
    pub losses: u8,
    /// A bell that finds nobody.
    pub hang_ups: u8,
    /// A bell that nobody rang.
    pub spurious: u8,
    /// A freeze.
    pub freezes: u8,
    /// A snapshot that is restored.
    pub restores: u8,
}

/// A model: what both sides may do, and how often.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Who opens the slot.
    pub opener: Side,
    /// What the channels carry.
    pub kind: Kind,
    /// How often the slot is used.
    pub uses: u8,
    /// Messages, or pieces of a stream, that host and guest send in a use at most.
    pub sends: [u8; 2],
    /// Their lengths in bytes, round and round.
    pub lengths: &'static [u16],
    /// Bytes that are read from a stream at a time.
    pub read: u8,
    /// Where both cursors of both directions begin.
    pub begin: u64,
    /// What the host's process may do, besides what budgets allow.
    pub host: &'static [Op],
    /// What the guest's may.
    pub guest: &'static [Op],
    /// What may come into an operation of the peer; anything, where it is empty.
    pub between: &'static [Op],
    /// How often the rest may happen.
    pub budget: Budget,
}

impl Scenario {
    pub(crate) fn may(&self, side: Side, op: Op) -> bool {
        let ops = if side == Side::Host { self.host } else { self.guest };
        ops.contains(&op)
    }

    /// Length of message, or of piece, so much.
    pub(crate) fn length(&self, index: u8) -> u16 {
        self.lengths[usize::from(index) % self.lengths.len()]
    }

    /// What is counted: messages, or bytes of a stream. So many of them does a side send in a use at most.
    pub(crate) fn most(&self, side: Side) -> u8 {
        let sends = self.sends[side as usize];
        match self.kind {
            Kind::Message => sends,
            Kind::Stream => (0..sends).map(|piece| self.length(piece)).sum::<u16>() as u8,
        }
    }

    /// How many units come next, after so many.
    pub(crate) fn next_piece(&self, after: u8) -> u8 {
        if self.kind == Kind::Message {
            return 1;
        }
        let ends = (0..).scan(0, |end, piece| {
            *end += self.length(piece) as u8;
            Some(*end)
        });
        ends.into_iter().find(|end| *end > after).map_or(0, |end| end - after)
    }

    /// How many units end at a position, counted from where a use began; `None` in the middle of one.
    pub(crate) fn units(&self, at: u64) -> Option<u8> {
        if self.kind == Kind::Stream {
            return u8::try_from(at).ok();
        }
        let mut sum = 0;
        (0..=self.sends[0].max(self.sends[1])).find(|index| {
            let found = sum == at;
            sum += self.span(*index);
            found
        })
    }

    /// Position at which so many units end, counted from where a use began.
    pub(crate) fn position(&self, units: u8) -> u64 {
        match self.kind {
            Kind::Stream => units.into(),
            Kind::Message => (0..units).map(|index| self.span(index)).sum(),
        }
    }

    fn span(&self, index: u8) -> u64 {
        8 + u64::from(self.length(index)).next_multiple_of(8)
    }
}
