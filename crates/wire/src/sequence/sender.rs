//! Producing a direction.

use super::figures::{Sent, chain};
use super::params::Params;
use super::record::{Direction, write_end, write_record};

/// Produces the records of one direction in order, and keeps account.
#[derive(Debug, Clone)]
pub struct Sender {
    params: Params,
    direction: Direction,
    sent: Sent,
}

impl Sender {
    /// From the first record on.
    pub fn new(params: Params, direction: Direction) -> Self {
        Self { params, direction, sent: Sent::default() }
    }

    /// From record `number` on, everything before having been sent. Takes time in proportion to that.
    pub fn resume(params: Params, direction: Direction, number: u64) -> Self {
        let mut sender = Self::new(params, direction);
        let mut scratch = Vec::new();
        for _ in 0..number {
            scratch.clear();
            sender.append(&mut scratch);
        }
        sender
    }

    /// What was produced so far.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Whether all records that the parameters ask for were produced; never so for an endless direction.
    pub fn is_done(&self) -> bool {
        self.direction.total(&self.params).is_some_and(|total| self.sent.records >= total)
    }

    /// Appends the next record to `out`, and counts it as sent.
    pub fn append(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        let checksum = write_record(&self.params, self.direction, self.sent.records, out);
        self.sent.records += 1;
        self.sent.bytes += (out.len() - start) as u64;
        self.sent.hash = chain(self.sent.hash, checksum);
    }

    /// Appends the end record to `out`: the last thing to send.
    pub fn append_end(&mut self, out: &mut Vec<u8>) {
        write_end(&self.params, self.direction, self.sent.records, out);
        self.sent.ended = true;
    }
}
