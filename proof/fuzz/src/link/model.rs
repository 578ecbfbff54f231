//! What two honest sides should find: the bytes and messages of each use of each channel, in a plain list.

use std::collections::{HashMap, HashSet, VecDeque};

use throughline::Kind;
use throughline::core::Use;

use super::Who;
use crate::input::Bytes;

/// Sent, and not consumed yet: a message, or some bytes.
#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    /// Where it ends, from the beginning of the use.
    end: u64,
}

/// One direction of one use.
#[derive(Debug)]
struct Way {
    kind: Kind,
    waiting: VecDeque<Piece>,
    end: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Model {
    ways: HashMap<(Use, bool), Way>,
    /// Slots on which the guest has lied: what happens there is anybody's guess.
    pub(super) lied: HashSet<usize>,
    /// Whether it did so in its own records.
    pub(super) ruined: bool,
    pub(super) bytes: Bytes,
}

impl Model {
    fn way(&mut self, this: Use, from: Who, kind: Kind) -> &mut Way {
        let new = || Way { kind, waiting: VecDeque::new(), end: 0 };
        self.ways.entry((this, from == Who::Host)).or_insert_with(new)
    }

    fn believes(&self, this: Use) -> bool {
        !self.lied.contains(&this.slot)
    }

    /// A message was accepted for sending, or bytes were.
    pub(super) fn sent(&mut self, this: Use, from: Who, kind: Kind, piece: &[u8]) {
        let way = self.way(this, from, kind);
        way.end += match kind {
            Kind::Message => 8 + piece.len().next_multiple_of(8) as u64,
            Kind::Stream => piece.len() as u64,
        };
        way.waiting.push_back(Piece { bytes: piece.to_vec(), end: way.end });
    }

    /// The sender has died, having published this much of the use.
    pub(super) fn died(&mut self, this: Use, from: Who, published: u64) {
        let Some(way) = self.ways.get_mut(&(this, from == Who::Host)) else { return };
        while let Some(last) = way.waiting.pop_back_if(|last| last.end > published) {
            let lost = last.end - published;
            if way.kind == Kind::Stream && lost < last.bytes.len() as u64 {
                let bytes = last.bytes[..last.bytes.len() - lost as usize].to_vec();
                way.waiting.push_back(Piece { bytes, end: published });
            }
        }
        way.end = way.end.min(published);
    }

    /// A message was received, for good or to look at.
    pub(super) fn received(&mut self, this: Use, by: Who, found: &[u8], consumed: bool) {
        if !self.believes(this) {
            return;
        }
        let way = self.way(this, by.other(), Kind::Message);
        let expected = way.waiting.front().expect("a message that nobody sent");
        assert!(expected.bytes == found, "another message was received");
        if consumed {
            way.waiting.pop_front();
        }
    }

    /// Bytes were.
    pub(super) fn read(&mut self, this: Use, by: Who, found: &[u8], consumed: bool) {
        if !self.believes(this) {
            return;
        }
        let way = self.way(this, by.other(), Kind::Stream);
        let mut sent = way.waiting.iter().flat_map(|piece| &piece.bytes);
        assert!(found.iter().all(|byte| sent.next() == Some(byte)), "other bytes were read");
        if consumed {
            self.consumed(this, by, Kind::Stream, found.len());
        }
    }

    /// What was peeked at is consumed: a whole message, or so many bytes of it.
    pub(super) fn consumed(&mut self, this: Use, by: Who, kind: Kind, mut bytes: usize) {
        if !self.believes(this) {
            return;
        }
        let waiting = &mut self.way(this, by.other(), kind).waiting;
        if kind == Kind::Message {
            waiting.pop_front().expect("a message that was peeked at");
            return;
        }
        while bytes > 0 {
            let first = waiting.front_mut().expect("bytes that were peeked at");
            let count = bytes.min(first.bytes.len());
            first.bytes.drain(..count);
            bytes -= count;
            if first.bytes.is_empty() {
                waiting.pop_front();
            }
        }
    }

    /// There is nothing more to receive, now or for ever: nothing may be missing.
    pub(super) fn complete(&self, this: Use, by: Who) {
        let Some(way) = self.ways.get(&(this, by == Who::Guest)) else { return };
        let left = way.waiting.iter().any(|piece| way.kind == Kind::Message || !piece.bytes.is_empty());
        assert!(!left || !self.believes(this), "{:?} were sent and not received", way.waiting);
    }
}
