//! What runs in the demo: two channels of numbered records, and a command.
//!
//! All of it is a pure function of a seed, which travels in the channels' labels: whoever restores a bundle knows from
//! it alone what comes next.

use serde::{Deserialize, Serialize};
use throughline_ring::HEADER_BYTES;
use throughline_wire::sequence::{Framing, Params};

/// Framing of messages in a ring.
const MESSAGE_FRAMING: Framing = Framing::Messages { header: HEADER_BYTES, align: 8 };

/// One of the demo's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Course {
    /// Records as messages.
    Messages,
    /// Records as a stream.
    Stream,
    /// A command's events.
    Command,
}

impl Course {
    /// The two channels that carry records; all four of their rings must hold unread bytes in every snapshot.
    pub const RECORDS: [Self; 2] = [Self::Messages, Self::Stream];

    /// All channels.
    pub const ALL: [Self; 3] = [Self::Messages, Self::Stream, Self::Command];

    /// Its name for people, and the beginning of its label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Stream => "stream",
            Self::Command => "exec",
        }
    }

    /// What the channel is called: the name and the seed.
    pub fn label(self, seed: u64) -> String {
        format!("{}:{seed:016x}", self.name())
    }

    /// The inverse of [`label`](Self::label).
    pub fn from_label(label: &str) -> Option<(Self, u64)> {
        let (name, seed) = label.split_once(':')?;
        let course = Self::ALL.into_iter().find(|course| course.name() == name)?;
        Some((course, u64::from_str_radix(seed, 16).ok()?))
    }

    /// How its ring is filled.
    pub fn framing(self) -> Framing {
        if self == Self::Stream { Framing::Stream } else { MESSAGE_FRAMING }
    }

    /// Bytes of ring that `len` bytes take.
    pub fn span(self, len: usize) -> u64 {
        match self.framing() {
            Framing::Stream => len as u64,
            Framing::Messages { header, align } => (header + len as u64).next_multiple_of(align),
        }
    }

    /// What its guest is asked for. Both ends read at a pace below the other's writing, so that the rings fill.
    pub fn params(self, seed: u64) -> Params {
        Params { read_pace_us: READ_PACE_US, max_len: LONGEST, ..Params::new(seed ^ self as u64) }
    }
}

/// Longest record in bytes, header included.
pub const LONGEST: u32 = 2000;

/// Pause of each reader after each record.
pub const READ_PACE_US: u32 = 5000;

/// Exit code of the command: one that nothing else has.
pub const EXIT_CODE: i32 = 7;

/// Signal that ends the command in good order.
pub const STOP_SIGNAL: i32 = 15;

/// The command: numbered lines with bytes that are no text, until it is told to stop; then a last line with the count.
pub const SCRIPT: &str = r"trap 'stop=1' TERM; n=0
while [ -z $stop ]; do
  for i in 0 1 2 3 4 5 6 7 8 9; do printf 'line %d \000\001\200\377\n' $n; n=$((n+1)); done
  sleep 0.05
done
printf 'end after %d lines\n' $n; exit 7";

/// Line `number` of the command's output.
pub fn line(number: u64) -> Vec<u8> {
    let mut line = format!("line {number} ").into_bytes();
    line.extend_from_slice(b"\x00\x01\x80\xff\n");
    line
}

/// The last line of the command's output.
pub fn last_line(lines: u64) -> Vec<u8> {
    format!("end after {lines} lines\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_short_enough_to_be_kept_and_tells_channel_and_seed() {
        for course in Course::ALL {
            let label = course.label(u64::MAX - 1);
            assert!(label.len() <= 32, "{label}");
            assert_eq!(Course::from_label(&label), Some((course, u64::MAX - 1)));
        }
        assert_eq!(Course::from_label(""), None);
        assert_eq!(Course::from_label("other:0"), None);
    }
}
