//! Bytes come out as they went in: every size at every place, and random sizes for a long time.
#![cfg(not(loom))]

use throughline_ring::{Class, Consumer, Full, Geometry, Layout, Ledger, Producer, RecordWord, Side, View};
use throughline_shmem::sync::Ordering::Relaxed;
use throughline_shmem::{HeapWords, Words};

const RING: u64 = 4096;

struct Ring {
    layout: Layout,
    memory: HeapWords,
}

impl Ring {
    fn new() -> Self {
        let geometry = Geometry::new(vec![Class { opener: Side::Host, count: 1, ring_bytes: RING }]).unwrap();
        let layout = Layout::new(&geometry);
        // The region's unused end is left away.
        let words = layout.control_words() + 2 * RING as usize / 8;
        Self { memory: HeapWords::new(words), layout }
    }

    /// Both cursors of the host's ring at `begin`, as if so much had gone through it.
    fn begin(&self, begin: u64) {
        let word = |side, word| self.layout.record(side, 0) + word as usize;
        self.memory.store(word(Side::Host, RecordWord::Produced), begin, Relaxed);
        for kept in [RecordWord::Taken, RecordWord::Freed] {
            self.memory.store(word(Side::Guest, kept), begin / 8 * 8, Relaxed);
        }
        self.memory.store(word(Side::Guest, RecordWord::Taken), begin, Relaxed);
    }

    fn with(&self, test: impl FnOnce(&View<'_, &HeapWords>, &View<'_, &HeapWords>)) {
        let ledger = Ledger::new(&self.memory, None);
        test(&View::new(&ledger, &self.layout, Side::Host, 0), &View::new(&ledger, &self.layout, Side::Guest, 0));
    }

    fn assert_empty(&self) {
        let first = self.layout.slots()[0].ring_at(Side::Host);
        for at in first..first + RING as usize / 8 {
            assert_eq!(self.memory.load(at, Relaxed), 0, "word {at} is not scrubbed");
        }
    }
}

fn bytes(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// Every position within a word and around the ring's end, written in two pieces of every small size.
#[test]
fn every_small_write_at_every_place_comes_out_whole() {
    let ring = Ring::new();
    let mut position = 0;
    for begin in (RING - 24..RING + 8).chain([0, 1, 7]) {
        for first in 0..=17 {
            for second in 0..=17 {
                position += RING * 2;
                let begin = position + begin;
                ring.begin(begin);
                ring.with(|out, into| {
                    let (mut producer, mut consumer) = (Producer::attach(out), Consumer::attach(into));
                    let all = bytes(begin, first + second);
                    assert_eq!(producer.stage_stream(out, &all[..first]), Ok(first));
                    if (first + second) % 2 == 0 {
                        let _ = producer.publish(out);
                    }
                    assert_eq!(producer.stage_stream(out, &all[first..]), Ok(second));
                    assert_eq!(
                        producer.publish(out),
                        producer.produced().0 > begin && second + first > 0 && {
                            second > 0 || (first + second) % 2 == 1
                        }
                    );
                    let mut got = vec![0; first + second];
                    let split = first / 2;
                    assert_eq!(consumer.read_stream(into, 0, &mut got[..split]), Ok(split));
                    consumer.commit(into, split as u64);
                    assert_eq!(consumer.read_stream(into, 0, &mut got[split..]), Ok(first + second - split));
                    consumer.commit(into, (first + second - split) as u64);
                    assert_eq!(got, all, "{first} and {second} bytes at {begin}");
                    // The end of a use: the last, partial word goes too.
                    assert_eq!(consumer.discard(into, |unread| unread == 0), Ok(true));
                    producer.align(out);
                });
                ring.assert_empty();
            }
        }
    }
}

#[test]
fn every_message_at_every_place_comes_out_whole() {
    let ring = Ring::new();
    let mut position = 0;
    let lengths = (0..=33).chain([RING as usize - 17, RING as usize - 16, RING as usize - 9, RING as usize - 8]);
    for (begin, len) in
        lengths.flat_map(|len| (0..RING).step_by(8).filter(|at| *at < 40 || *at > RING - 48).map(move |at| (at, len)))
    {
        position += RING * 2;
        let begin = position + begin;
        ring.begin(begin);
        ring.with(|out, into| {
            let (mut producer, mut consumer) = (Producer::attach(out), Consumer::attach(into));
            let payload = bytes(begin, len);
            producer.stage_message(out, &payload).unwrap();
            assert_eq!(consumer.next_frame(into), Ok(None), "what is not published does not exist");
            assert!(producer.publish(out));
            let frame = consumer.next_frame(into).unwrap().unwrap();
            let mut got = vec![0; frame.len()];
            consumer.read_frame(into, frame, &mut got);
            assert_eq!(got, payload, "{len} bytes at {begin}");
            consumer.commit(into, frame.span());
            assert_eq!(consumer.next_frame(into), Ok(None));
        });
        ring.assert_empty();
    }
}

#[test]
fn a_stream_of_random_pieces_comes_out_in_order() {
    let ring = Ring::new();
    ring.with(|out, into| {
        let (mut producer, mut consumer) = (Producer::attach(out), Consumer::attach(into));
        let (mut random, mut sent, mut received) = (Random(11), 0, 0);
        while received < 3_000_000 {
            let piece = bytes(sent, random.below(3000) + 1);
            match producer.stage_stream(out, &piece) {
                Ok(count) => {
                    assert!(count > 0);
                    sent += count as u64;
                }
                Err(full) => {
                    // Full: exactly when nothing of a word is left, and what is wanted is what frees it.
                    assert_eq!(full, Full::Until(throughline_ring::Position(producer.freed().0 + 8)));
                    let _ = producer.publish(out);
                }
            }
            if random.below(3) > 0 {
                let _ = producer.publish(out);
            }
            let mut got = vec![0; random.below(3000) + 1];
            let count = consumer.read_stream(into, 0, &mut got).unwrap();
            assert_eq!(got[..count], bytes(received, count), "from {received}");
            // Peeked at, and only partly taken.
            let taken = if count == 0 { 0 } else { random.below(count + 1) };
            consumer.commit(into, taken as u64);
            received += taken as u64;
            if random.below(100) == 0 {
                let _ = producer.publish(out);
                (producer, consumer) = (Producer::attach(out), Consumer::attach(into));
                sent = producer.produced().0;
            }
        }
    });
}

#[test]
fn random_messages_come_out_in_order() {
    let ring = Ring::new();
    ring.with(|out, into| {
        let (mut producer, mut consumer) = (Producer::attach(out), Consumer::attach(into));
        let (mut random, mut waiting) = (Random(12), std::collections::VecDeque::new());
        let mut received = 0;
        while received < 30_000 {
            let len = if random.below(10) == 0 { random.below(RING as usize - 7) } else { random.below(300) };
            match producer.stage_message(out, &bytes(len as u64, len)) {
                Ok(()) => waiting.push_back(len),
                Err(Full::Until(position)) => assert!(position > producer.freed()),
                Err(error) => panic!("{error}"),
            }
            if random.below(2) == 0 {
                let _ = producer.publish(out);
            }
            for _ in 0..random.below(4) {
                let Some(frame) = consumer.next_frame(into).unwrap() else { break };
                let len = waiting.pop_front().unwrap();
                let mut got = vec![0; frame.len()];
                consumer.read_frame(into, frame, &mut got);
                assert_eq!(got, bytes(len as u64, len));
                consumer.commit(into, frame.span());
                received += 1;
            }
        }
    });
}

#[test]
fn what_can_never_fit_is_told_from_what_does_not_fit_now() {
    let ring = Ring::new();
    ring.with(|out, _| {
        let mut producer = Producer::attach(out);
        let longest = RING as usize - 8;
        let too_long = producer.stage_message(out, &vec![0; longest + 1]);
        assert_eq!(too_long, Err(Full::TooLong { len: longest + 1, max: longest }));
        producer.stage_message(out, &vec![0; longest]).unwrap();
        assert!(matches!(producer.stage_message(out, b""), Err(Full::Until(_))));
    });
}
