//! Absolute positions in a ring, and the checks that the peer's must pass.

use throughline_shmem::WORD;

use crate::{Corrupt, Fault, PeerWord};

/// A `want` that nobody waits for.
pub const NEVER: u64 = u64::MAX;

/// A byte's absolute position in one direction of a channel, within a timeline. It never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl Position {
    /// The word's boundary at or below.
    #[must_use]
    pub fn floor(self) -> Self {
        Self(self.0 & !(WORD as u64 - 1))
    }

    /// The word's boundary at or above. Positions stay below 2^63, which the checks of the peer's
    /// cursors uphold.
    #[must_use]
    pub fn ceil(self) -> Self {
        Self((self.0 + (WORD as u64 - 1)) & !(WORD as u64 - 1))
    }

    /// Bytes beyond the word's boundary.
    pub fn in_word(self) -> usize {
        self.0 as usize % WORD
    }

    /// The position `bytes` further.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// Bytes from `earlier` to here; zero where it is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Judges the peer's `produced`: `seen ≤ produced ≤ freed + capacity`.
///
/// `seen` is the last value that passed (never below `freed`).
pub fn check_produced(alleged: u64, seen: Position, freed: Position, capacity: u64) -> Result<Position, Corrupt> {
    let corrupt = |fault| Corrupt { word: PeerWord::Produced, fault, value: alleged };
    if alleged < seen.0 {
        return Err(corrupt(Fault::WentBack));
    }
    // No overflow: `freed` passed this check itself, and grows from zero by at most a ring at a time.
    if alleged - freed.0.min(alleged) > capacity {
        return Err(corrupt(Fault::Beyond));
    }
    Ok(Position(alleged))
}

/// Judges the peer's `freed`: `seen ≤ freed ≤ produced`, on a word's boundary. Only whole words are
/// freed; the last, partial one is freed when the channel has closed, rounded up.
pub fn check_freed(alleged: u64, seen: Position, produced: Position) -> Result<Position, Corrupt> {
    let corrupt = |fault| Corrupt { word: PeerWord::Freed, fault, value: alleged };
    if alleged < seen.0 {
        return Err(corrupt(Fault::WentBack));
    }
    if alleged > produced.ceil().0 {
        return Err(corrupt(Fault::Beyond));
    }
    if !alleged.is_multiple_of(WORD as u64) {
        return Err(corrupt(Fault::Unaligned));
    }
    Ok(Position(alleged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_at_the_end_of_their_range_do_not_overflow() {
        for alleged in [u64::MAX, u64::MAX - 7, 1 << 63] {
            assert!(check_produced(alleged, Position(0), Position(0), 1 << 30).is_err());
            assert!(check_freed(alleged, Position(0), Position(1 << 20)).is_err());
        }
    }
}
