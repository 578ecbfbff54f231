//! Finding records in a stream.

use super::checker::Checker;
use super::figures::Seen;
use super::params::Params;
use super::record::{Direction, HEADER_LEN, Parsed, plausible_len, write_record};

/// Checks a stream, in whatever pieces it arrives.
///
/// Where bytes are missing or wrong it counts one damage, searches for the next intact record and goes
/// on, so that the figures say how many records the accident cost.
#[derive(Debug, Clone)]
pub struct StreamChecker {
    checker: Checker,
    pending: Vec<u8>,
    /// Bytes of `pending` that are judged.
    done: usize,
    /// In the middle of rubbish that is counted already.
    lost_sync: bool,
}

impl StreamChecker {
    /// From the first record on.
    pub fn new(params: Params, direction: Direction) -> Self {
        Self::over(Checker::new(params, direction))
    }

    /// From `within` bytes into record `number` on, everything before having arrived.
    pub fn resume(params: Params, direction: Direction, number: u64, within: usize) -> Self {
        let mut stream = Self::over(Checker::resume(params, direction, number));
        write_record(&params, direction, number, &mut stream.pending);
        stream.pending.truncate(within);
        stream
    }

    fn over(checker: Checker) -> Self {
        Self { checker, pending: Vec::new(), done: 0, lost_sync: false }
    }

    /// What arrived so far.
    pub fn seen(&self) -> Seen {
        self.checker.seen()
    }

    /// Bytes that are no whole record yet; not zero at the end of a stream = it was cut off.
    pub fn pending(&self) -> usize {
        self.pending.len() - self.done
    }

    /// Judges the next bytes; how many records (end record included) were completed. Keeps at most one
    /// record's bytes, beyond `bytes` itself.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        self.pending.extend_from_slice(bytes);
        let mut records = 0;
        while let Some(judged) = self.step() {
            records += usize::from(judged);
        }
        self.pending.drain(..self.done);
        self.done = 0;
        records
    }

    /// Judges one record (`true`) or one byte of rubbish (`false`); `None` if more bytes are needed.
    fn step(&mut self) -> Option<bool> {
        let rest = &self.pending[self.done..];
        if rest.len() < HEADER_LEN {
            return None;
        }
        let Some(len) = plausible_len(self.checker.params(), rest) else {
            return Some(self.rubbish());
        };
        let record = rest.get(..len)?;
        let parsed = self.checker.parse(record);
        if parsed == Parsed::Damaged {
            return Some(self.rubbish());
        }
        self.checker.account(parsed, len);
        self.lost_sync = false;
        self.done += len;
        Some(true)
    }

    /// Goes one byte further in search of an intact record; only the first is counted.
    fn rubbish(&mut self) -> bool {
        if !self.lost_sync {
            self.checker.account(Parsed::Damaged, 0);
            self.lost_sync = true;
        }
        self.done += 1;
        false
    }
}
