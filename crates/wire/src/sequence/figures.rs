//! What was sent and seen, in numbers.

use serde::{Deserialize, Serialize};

/// One side's account of what it sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Records handed to the channel.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Running hash over them, comparable with [`Seen::hash`] at the same count.
    pub hash: u64,
    /// Whether the end record was sent too.
    pub ended: bool,
}

/// One side's account of what it received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Different records that arrived intact.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Running hash over them in the order of arrival.
    pub hash: u64,
    /// The number expected next.
    pub next: u64,
    /// Records that others overtook and that never came.
    pub lost: u64,
    /// Records that came again.
    pub doubled: u64,
    /// Records that came after a later one.
    pub reordered: u64,
    /// Pieces that are no record of this channel.
    pub damaged: u64,
    /// Records that the sender claims to have sent, once its end record has come.
    pub total: Option<u64>,
}

impl Seen {
    /// Whether nothing was lost, doubled, reordered or damaged.
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.reordered == 0 && self.damaged == 0
    }

    /// Whether the end has come and everything before it arrived once and in order.
    pub fn is_complete(&self) -> bool {
        self.is_clean() && self.total == Some(self.records)
    }
}

/// The running hash after one more record.
pub(super) fn chain(hash: u64, checksum: u64) -> u64 {
    super::record::mix(hash.rotate_left(17) ^ checksum)
}
