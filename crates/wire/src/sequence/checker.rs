//! Judging what arrives.

use std::collections::VecDeque;
use std::ops::Range;

use super::figures::{Seen, chain};
use super::params::Params;
use super::record::{Direction, Parsed, parse};

/// Gaps that are remembered; a record out of an older one counts as doubled instead of reordered.
const MAX_GAPS: usize = 1024;

/// Checks the records of one direction, one whole record (message) at a time.
#[derive(Debug, Clone)]
pub struct Checker {
    params: Params,
    direction: Direction,
    seen: Seen,
    gaps: VecDeque<Range<u64>>,
    scratch: Vec<u8>,
}

impl Checker {
    /// From the first record on.
    pub fn new(params: Params, direction: Direction) -> Self {
        Self { params, direction, seen: Seen::default(), gaps: VecDeque::new(), scratch: Vec::new() }
    }

    /// From record `number` on, everything before having arrived. Takes time in proportion to that.
    pub fn resume(params: Params, direction: Direction, number: u64) -> Self {
        let sender = super::Sender::resume(params, direction, number);
        let sent = sender.sent();
        let mut checker = Self::new(params, direction);
        checker.seen.records = sent.records;
        checker.seen.bytes = sent.bytes;
        checker.seen.hash = sent.hash;
        checker.seen.next = number;
        checker
    }

    /// What arrived so far.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// The parameters of the channel.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Judges one record, whatever its bytes.
    pub fn record(&mut self, bytes: &[u8]) -> Parsed {
        let parsed = self.parse(bytes);
        self.account(parsed, bytes.len());
        parsed
    }

    /// Takes one record apart, without counting it.
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Parsed {
        parse(&self.params, self.direction, bytes, &mut self.scratch)
    }

    /// Counts a record of `len` bytes.
    pub(super) fn account(&mut self, parsed: Parsed, len: usize) {
        let seen = &mut self.seen;
        match parsed {
            Parsed::Damaged => seen.damaged += 1,
            Parsed::End { .. } if seen.total.is_some() => seen.doubled += 1,
            Parsed::End { total } => {
                seen.total = Some(total);
                self.skip_to(total);
            }
            Parsed::Record { number, checksum } => {
                if number < seen.next {
                    if !self.fill(number) {
                        self.seen.doubled += 1;
                        return;
                    }
                } else {
                    self.skip_to(number);
                    // A number near the end of u64 can only be claimed, never reached; stay there.
                    self.seen.next = number.saturating_add(1);
                }
                self.seen.records += 1;
                self.seen.bytes += len as u64;
                self.seen.hash = chain(self.seen.hash, checksum);
            }
        }
    }

    /// Counts everything from the expected number up to `number` as lost.
    fn skip_to(&mut self, number: u64) {
        if number <= self.seen.next {
            return;
        }
        self.seen.lost = self.seen.lost.saturating_add(number - self.seen.next);
        if self.gaps.len() == MAX_GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(self.seen.next..number);
        self.seen.next = number;
    }

    /// Takes a late record out of its gap; whether it was missing.
    fn fill(&mut self, number: u64) -> bool {
        let Some(at) = self.gaps.iter().position(|gap| gap.contains(&number)) else {
            return false;
        };
        let gap = self.gaps[at].clone();
        self.gaps[at] = gap.start..number;
        if number + 1 < gap.end {
            if self.gaps.len() == MAX_GAPS {
                self.gaps.pop_front();
            }
            self.gaps.push_back(number + 1..gap.end);
        }
        self.gaps.retain(|gap| !gap.is_empty());
        self.seen.lost = self.seen.lost.saturating_sub(1);
        self.seen.reordered += 1;
        true
    }
}
