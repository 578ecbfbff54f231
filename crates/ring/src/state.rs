//! A side's state of one channel, in one word.
//!
//! ```text
//! bits 0..2   phase      0 free, 1 live, 2 closed
//! bit  2      kind       0 stream, 1 message
//! bit  3      tx_shut    my `produced` is final
//! bits 4..8   reason     of a close
//! bits 8..32  generation
//! bits 32..64 port
//! ```
//!
//! A fresh region is all zeros, and zero is `Free` of generation 0.

use crate::{Corrupt, Fault, PeerWord};

/// How often a slot has been used, modulo 2^24. Positions go on across generations, so that a
/// generation that comes round again still names other bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Generation(u32);

impl Generation {
    const BITS: u32 = 24;

    /// The number itself.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self((self.0 + 1) & ((1 << Self::BITS) - 1))
    }
}

/// What a channel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes, like `SOCK_STREAM`.
    Stream,
    /// Whole frames, like `SOCK_SEQPACKET`.
    Message,
}

/// Where a side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not in use; the generation is the last one that was.
    Free,
    /// In use.
    Live,
    /// My `produced` is final and I read no more.
    Closed,
}

/// Why a side closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The owner had finished: what it wrote is to be read.
    Normal,
    /// The owner gave up: what it wrote is to be dropped.
    Reset,
    /// Nobody listens on the port.
    Refused,
    /// The peer's words were corrupt.
    Corrupt,
    /// Nobody adopted the channel in time.
    Expired,
}

/// The state word, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Where the side stands.
    pub phase: Phase,
    /// Which use of the slot this is.
    pub generation: Generation,
    /// What the channel carries.
    pub kind: Kind,
    /// The port it was opened to.
    pub port: u32,
    /// Whether the side has ended its direction.
    pub tx_shut: bool,
    /// Why it closed; `Normal` before.
    pub reason: Reason,
}

impl State {
    /// A slot that is not in use.
    pub fn free(generation: Generation) -> Self {
        Self { phase: Phase::Free, generation, kind: Kind::Stream, port: 0, tx_shut: false, reason: Reason::Normal }
    }

    /// A channel that has just been opened or accepted.
    pub fn live(generation: Generation, kind: Kind, port: u32) -> Self {
        Self { phase: Phase::Live, kind, port, ..Self::free(generation) }
    }

    /// This channel, closed.
    #[must_use]
    pub fn closed(self, reason: Reason) -> Self {
        Self { phase: Phase::Closed, reason, ..self }
    }

    /// This channel, with its sending direction ended.
    #[must_use]
    pub fn shut(self) -> Self {
        Self { tx_shut: true, ..self }
    }

    /// Whether nothing more will be produced.
    pub fn final_position(self) -> bool {
        self.tx_shut || self.phase != Phase::Live
    }

    /// Whether what was sent is to be dropped.
    pub fn is_reset(self) -> bool {
        self.phase == Phase::Closed && matches!(self.reason, Reason::Reset | Reason::Corrupt | Reason::Expired)
    }

    /// As a word.
    pub fn encode(self) -> u64 {
        self.phase as u64
            | (self.kind as u64) << 2
            | u64::from(self.tx_shut) << 3
            | (self.reason as u64) << 4
            | u64::from(self.generation.0) << 8
            | u64::from(self.port) << 32
    }

    /// From a word that the peer wrote: every bit pattern is either a state or an error.
    pub fn decode(word: u64) -> Result<Self, Corrupt> {
        let malformed = Corrupt { word: PeerWord::State, fault: Fault::Malformed, value: word };
        let phase = match word & 3 {
            0 => Phase::Free,
            1 => Phase::Live,
            2 => Phase::Closed,
            _ => return Err(malformed),
        };
        let reason = match word >> 4 & 15 {
            0 => Reason::Normal,
            1 => Reason::Reset,
            2 => Reason::Refused,
            3 => Reason::Corrupt,
            4 => Reason::Expired,
            _ => return Err(malformed),
        };
        let state = Self {
            phase,
            generation: Generation((word >> 8) as u32 & ((1 << Generation::BITS) - 1)),
            kind: if word & 4 == 0 { Kind::Stream } else { Kind::Message },
            port: (word >> 32) as u32,
            tx_shut: word & 8 != 0,
            reason,
        };
        let stray = match phase {
            Phase::Free => state != Self::free(state.generation),
            Phase::Live => reason != Reason::Normal,
            Phase::Closed => false,
        };
        if stray { Err(malformed) } else { Ok(state) }
    }

    /// Judges what the peer says, given my own state, who opens the slot, and what the peer said before
    /// (`None` right after an attach).
    ///
    /// The peer's generation is mine, or one beside it while an open is being answered; within a use it
    /// goes live → closed → free only, never changes kind or port, and never takes back an end.
    pub fn check_peer(self, i_open: bool, seen: Option<Self>, peer: Self) -> Result<(), Corrupt> {
        let corrupt = |fault| Corrupt { word: PeerWord::State, fault, value: peer.encode() };
        let same = peer.generation == self.generation;
        let answers = i_open && self.generation == peer.generation.next();
        let opens = !i_open && peer.generation == self.generation.next();
        let fits = match (self.phase, peer.phase) {
            // My close is what lets it be free, and its close is what lets me be.
            (Phase::Free, Phase::Live) => opens,
            (Phase::Free, Phase::Closed) => same || opens,
            (Phase::Live, Phase::Free) => answers,
            (Phase::Closed, Phase::Free) => same || answers,
            (Phase::Free, Phase::Free) | (_, Phase::Live | Phase::Closed) => same,
        };
        if !fits {
            return Err(corrupt(Fault::Generation));
        }
        if same
            && self.phase != Phase::Free
            && peer.phase != Phase::Free
            && (self.kind, self.port) != (peer.kind, peer.port)
        {
            return Err(corrupt(Fault::Transition));
        }
        match seen {
            Some(seen) if seen != peer && seen.generation == peer.generation && !seen.may_become(peer) => {
                Err(corrupt(Fault::Transition))
            }
            _ => Ok(()),
        }
    }

    /// Whether another state of the same use may follow; steps in between may have been missed.
    fn may_become(self, later: Self) -> bool {
        match (self.phase, later.phase) {
            (Phase::Live | Phase::Closed, Phase::Free) => true,
            (Phase::Live, _) => (self.kind, self.port) == (later.kind, later.port) && (later.tx_shut || !self.tx_shut),
            (Phase::Free | Phase::Closed, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_zero_is_free() {
        assert_eq!(State::decode(0), Ok(State::free(Generation(0))));
    }

    /// Every pair of states of one use: what may follow may never be followed by what it came from.
    #[test]
    fn state_never_goes_back_within_a_use() {
        let states = || (0..=0xffu64).filter_map(|word| State::decode(word).ok());
        for from in states() {
            for to in states().filter(|to| *to != from) {
                assert!(!(from.may_become(to) && to.may_become(from)), "{from:?} {to:?}");
            }
        }
    }

    #[test]
    fn generation_comes_round() {
        assert_eq!(Generation((1 << 24) - 1).next(), Generation(0));
    }
}
