//! One direction of a channel, both ends honest: whatever they do in whatever order, the reader gets the
//! writer's bytes, and what is consumed is zero. The oracle is a `VecDeque`.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use throughline::{Class, Geometry, Side};
use throughline_ring::{Consumer, Full, Layout, Ledger, Position, Producer, RecordWord, View};
use throughline_shmem::sync::Ordering::Relaxed;
use throughline_shmem::{HeapWords, Words};

use crate::input::{Bytes, list};

const RING: u64 = 4096;
/// Longer pieces fail as this one does.
const LONGEST: usize = RING as usize + 20;
/// More is nothing new.
const MOST_STEPS: usize = 400;

#[derive(Arbitrary, Debug)]
struct Start {
    messages: bool,
    /// Bytes that went through before.
    begin: u32,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// So many bytes, or a message of them.
    Stage(u16),
    Publish,
    /// Looks at so many, and consumes some of them: all, or this share in 256.
    Read {
        skip: u8,
        len: u16,
        take: Option<u8>,
    },
    /// The writer's process dies, and another one takes over.
    WriterAnew,
    ReaderAnew,
    /// Both end this use of the ring, and begin another.
    End,
}

/// Both ends of the host's ring, and what they should know.
struct Run<'a> {
    messages: bool,
    out: View<'a, &'a HeapWords>,
    into: View<'a, &'a HeapWords>,
    ring: usize,
    memory: &'a HeapWords,
    producer: Producer,
    consumer: Consumer,
    bytes: Bytes,
    /// Pieces staged, and pieces published: bytes of a stream, or messages.
    staged: Vec<Vec<u8>>,
    published: VecDeque<Vec<u8>>,
    /// Whether a writer died with something staged.
    littered: bool,
}

/// Runs one list of operations.
///
/// # Panics
/// When a byte is lost, doubled, torn or left behind.
pub fn run(data: &[u8]) {
    let Some((start, steps)) = list::<Start, Step>(data, MOST_STEPS) else { return };
    let geometry =
        Geometry::new(vec![Class { opener: Side::Host, count: 1, ring_bytes: RING }]).expect("it is possible");
    let layout = Layout::new(&geometry);
    let words = layout.control_words() + 2 * RING as usize / 8;
    let (region, sidecar) = (HeapWords::new(words), HeapWords::new(layout.sidecar_bytes() as usize / 8));
    let host = Ledger::new(&region, Some(&sidecar));
    let guest = Ledger::new(&region, None);
    // A use begins on a word's boundary.
    let begin = u64::from(start.begin) * 8;
    sidecar.store(layout.record(Side::Host, 0) + RecordWord::Produced as usize, begin, Relaxed);
    for kept in [RecordWord::Taken, RecordWord::Freed] {
        region.store(layout.record(Side::Guest, 0) + kept as usize, begin, Relaxed);
    }
    let (out, into) = (View::new(&host, &layout, Side::Host, 0), View::new(&guest, &layout, Side::Guest, 0));
    let mut run = Run {
        messages: start.messages,
        producer: Producer::attach(&out),
        consumer: Consumer::attach(&into),
        ring: layout.slots()[0].ring_at(Side::Host),
        memory: &region,
        out,
        into,
        bytes: Bytes::default(),
        staged: Vec::new(),
        published: VecDeque::new(),
        littered: false,
    };
    for step in steps {
        run.step(&step);
    }
    run.end();
}

impl Run<'_> {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Stage(len) if self.messages => self.stage_message(usize::from(len) % LONGEST),
            Step::Stage(len) => self.stage_stream(usize::from(len) % LONGEST),
            Step::Publish => self.publish(),
            Step::Read { take, .. } if self.messages => self.read_message(take.is_none_or(|take| take > 100)),
            Step::Read { skip, len, take } => self.read_stream(skip.into(), len.into(), take),
            Step::WriterAnew => {
                // What it had staged was never sent; it lies in the writer's part of the ring until that is used.
                self.littered |= !self.staged.is_empty();
                self.staged.clear();
                self.producer = Producer::attach(&self.out);
            }
            Step::ReaderAnew => self.consumer = Consumer::attach(&self.into),
            Step::End => self.end(),
        }
    }

    /// Bytes that may be staged now, by the cursors themselves.
    fn space(&self) -> u64 {
        RING - self.producer.staged().since(self.consumer.freed())
    }

    fn stage_stream(&mut self, len: usize) {
        let space = self.space() as usize;
        let piece = self.bytes.take(len);
        match self.producer.stage_stream(&self.out, &piece) {
            Ok(count) => {
                assert_eq!(count, len.min(space));
                self.staged.push(piece[..count].to_vec());
            }
            Err(full) => {
                assert_eq!(space, 0);
                assert_eq!(full, Full::Until(Position(self.consumer.freed().0 + 8)));
            }
        }
    }

    fn stage_message(&mut self, len: usize) {
        let (space, payload) = (self.space(), self.bytes.take(len));
        let span = 8 + len.next_multiple_of(8) as u64;
        match self.producer.stage_message(&self.out, &payload) {
            Ok(()) => {
                assert!(span <= space);
                self.staged.push(payload);
            }
            Err(Full::TooLong { max, .. }) => assert!(max as u64 == RING - 8 && len > max),
            Err(Full::Until(freed)) => {
                assert!(span > space);
                assert_eq!(freed, Position(self.producer.staged().0 + span - RING));
            }
            Err(Full::Corrupt(corrupt)) => panic!("{corrupt}"),
        }
    }

    fn publish(&mut self) {
        let any = self.staged.iter().any(|piece| self.messages || !piece.is_empty());
        assert_eq!(self.producer.publish(&self.out), any);
        self.published.extend(self.staged.drain(..));
    }

    fn read_message(&mut self, take: bool) {
        let frame = self.consumer.next_frame(&self.into).expect("both ends are honest");
        let Some(frame) = frame else {
            assert!(self.published.is_empty(), "a message is not seen");
            return;
        };
        let expected = self.published.front().expect("a message that was published");
        let mut found = vec![0; frame.len()];
        self.consumer.read_frame(&self.into, frame, &mut found);
        assert!(found == *expected, "another message");
        if take {
            self.consumer.commit(&self.into, frame.span());
            self.published.pop_front();
        }
    }

    fn read_stream(&mut self, skip: u64, len: usize, take: Option<u8>) {
        let all: Vec<u8> = self.published.iter().flatten().copied().collect();
        let mut found = vec![0; len];
        let count = self.consumer.read_stream(&self.into, skip, &mut found).expect("both ends are honest");
        let expected = all.get(skip as usize..).unwrap_or_default();
        assert!(found[..count] == expected[..count], "other bytes");
        assert!(count > 0 || len == 0 || expected.is_empty(), "bytes are not seen");
        let most = if count == 0 { 0 } else { skip as usize + count };
        let taken = take.map_or(most, |share| most * usize::from(share) / 256);
        self.consumer.commit(&self.into, taken as u64);
        self.published = VecDeque::from([all[taken..].to_vec()]);
    }

    fn end(&mut self) {
        self.publish();
        let unread: usize = self.published.iter().map(Vec::len).sum();
        let asked = self.consumer.discard(&self.into, |left| self.messages || left == unread as u64);
        assert_eq!(asked, Ok(true));
        self.producer.align(&self.out);
        self.published.clear();
        assert_eq!(self.consumer.taken(), self.producer.produced());
        assert_eq!(self.consumer.freed(), self.producer.produced());
        for at in self.ring..self.ring + RING as usize / 8 {
            assert!(self.littered || self.memory.load(at, Relaxed) == 0, "word {at} is not scrubbed");
        }
    }
}
