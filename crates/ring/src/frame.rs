//! The header of a message: `payload length | mark << 32`, the mark being odd and made of the
//! position, so that a valid header is never zero and never fits another place.

use throughline_shmem::WORD;

use crate::{Corrupt, Fault, PeerWord, Position};

/// Bytes of a message's header.
pub const HEADER_BYTES: u64 = WORD as u64;

/// A message whose header has been judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    at: Position,
    len: u32,
}

impl Frame {
    /// Bytes of the payload.
    #[expect(clippy::len_without_is_empty, reason = "an empty message is a message, not an empty container")]
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// Bytes that the message takes in the ring.
    pub fn span(self) -> u64 {
        span(u64::from(self.len))
    }

    /// Position of the payload.
    pub(crate) fn payload(self) -> Position {
        self.at.plus(HEADER_BYTES)
    }

    /// Position of the message itself.
    pub fn position(self) -> Position {
        self.at
    }

    /// Judges a header that was loaded once from `at`, where `there` bytes are unread.
    #[inline]
    pub(crate) fn decode(word: u64, at: Position, there: u64) -> Result<Self, Corrupt> {
        let corrupt = |fault| Corrupt { word: PeerWord::Frame, fault, value: word };
        if (word >> 32) as u32 != mark(at) {
            return Err(corrupt(Fault::Mark));
        }
        let len = word as u32;
        if span(u64::from(len)) > there {
            return Err(corrupt(Fault::Length));
        }
        Ok(Self { at, len })
    }
}

/// Bytes that a message of `len` bytes takes in the ring.
pub(crate) fn span(len: u64) -> u64 {
    HEADER_BYTES + len.next_multiple_of(WORD as u64)
}

/// The header of a message of `len` bytes at `at`.
pub(crate) fn encode(len: u32, at: Position) -> u64 {
    u64::from(mark(at)) << 32 | u64::from(len)
}

fn mark(at: Position) -> u32 {
    ((at.0 / WORD as u64) as u32) << 1 | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_never_zero_and_fits_only_its_place() {
        for at in (0..4096).step_by(8).map(Position) {
            for len in 0..=255 {
                let word = encode(len, at);
                assert_ne!(word, 0);
                assert_eq!(Frame::decode(word, at, 4096), Ok(Frame { at, len }));
                assert!(Frame::decode(word, at.plus(8), 4096).is_err());
                assert_eq!(Frame::decode(word, at, span(len.into()) - 1).unwrap_err().fault, Fault::Length);
            }
        }
    }

    #[test]
    fn frame_of_the_largest_length_is_refused_without_overflow() {
        let word = encode(u32::MAX, Position(8));
        assert!(Frame::decode(word, Position(8), 1 << 30).is_err());
    }
}
