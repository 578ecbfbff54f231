//! From a channel's position to the record that comes next.

use super::params::{PARAMS_LEN, Params};
use super::record::{Direction, HEADER_LEN, record_len};

/// How much of a ring each part takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Stream: bytes follow each other.
    Stream,
    /// Messages: each is preceded by `header` bytes, and the whole padded to `align` bytes.
    Messages {
        /// Bytes of a message's header in the ring.
        header: u64,
        /// Alignment of messages in the ring, in bytes.
        align: u64,
    },
}

impl Framing {
    /// Bytes that a part of `len` bytes takes.
    fn taken(self, len: usize) -> u64 {
        match self {
            Self::Stream => len as u64,
            Self::Messages { header, align } => (header + len as u64).next_multiple_of(align.max(1)),
        }
    }
}

/// A place in a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Within the parameters (host to guest only), after this many bytes of them.
    Params {
        /// Bytes that are through.
        within: usize,
    },
    /// Within record `number`, after this many bytes of it; 0 = just before it.
    Record {
        /// The record that comes next, or is under way.
        number: u64,
        /// Bytes of it that are through.
        within: usize,
    },
    /// Within the end record, after this many bytes of it.
    End {
        /// Bytes that are through; [`HEADER_LEN`] = everything is.
        within: usize,
    },
}

/// A position that no channel with these parameters can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocateError {
    /// In the middle of a message.
    #[error(
        "position {0} lies inside a message; is it counted from the channel's start, and are the parameters right?"
    )]
    InsideMessage(u64),
    /// Behind the end record.
    #[error("position {0} lies behind the end of the sequence; are the parameters those of this channel?")]
    BehindEnd(u64),
    /// So far that looking for it would take for ever.
    #[error("position {0} is more than {MAX} bytes from the channel's start, too far to be searched")]
    TooFar(u64),
}

/// Farthest position in bytes that [`locate`] searches: seconds of work.
const MAX: u64 = 1 << 38;

/// The place at `offset` bytes of ring from the channel's start (its position now less its position when it
/// was opened). Takes time in proportion to the number of records before it.
pub fn locate(params: &Params, direction: Direction, framing: Framing, offset: u64) -> Result<Place, LocateError> {
    if offset > MAX {
        return Err(LocateError::TooFar(offset));
    }
    let mut left = offset;
    if direction == Direction::ToGuest
        && let Some(within) = step(framing, PARAMS_LEN, offset, &mut left)?
    {
        return Ok(Place::Params { within });
    }
    let total = direction.total(params);
    let mut number = 0;
    while total != Some(number) {
        let len = record_len(params, direction, number);
        if let Some(within) = step(framing, len, offset, &mut left)? {
            return Ok(Place::Record { number, within });
        }
        number += 1;
    }
    match step(framing, HEADER_LEN, offset, &mut left)? {
        Some(within) => Ok(Place::End { within }),
        None if left == 0 => Ok(Place::End { within: HEADER_LEN }),
        None => Err(LocateError::BehindEnd(offset)),
    }
}

/// Goes past a part of `len` bytes (`None`), or says how far into it the position lies.
fn step(framing: Framing, len: usize, offset: u64, left: &mut u64) -> Result<Option<usize>, LocateError> {
    let taken = framing.taken(len);
    if *left >= taken {
        *left -= taken;
        return Ok(None);
    }
    if *left > 0 && framing != Framing::Stream {
        return Err(LocateError::InsideMessage(offset));
    }
    Ok(Some(*left as usize))
}
