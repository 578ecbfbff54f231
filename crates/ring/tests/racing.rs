//! A peer that writes rubbish into its words and its ring at full speed, while both ends here go on reading, writing
//! and scrubbing: more headers than any list of cases.
#![cfg(not(loom))]

use std::sync::atomic::AtomicBool;

use throughline_effort::{of, proved};
use throughline_ring::{
    Cause, Class, Consumer, Fault, Full, Geometry, Layout, Ledger, LinkWord, PeerWord, Position, Producer, RecordWord,
    Ringer, Side, View,
};
use throughline_shmem::sync::Ordering::Relaxed;
use throughline_shmem::{HeapWords, Words};

const RING: u64 = 4096;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
}

/// Everything that a guest writes of one channel: mostly what could be true, sometimes not, without a pause.
fn scribble(region: &HeapWords, layout: &Layout, stop: &AtomicBool) {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mine = |word: RecordWord| region.load(layout.record(Side::Host, 0) + word as usize, Relaxed);
    let place = |word: RecordWord| layout.record(Side::Guest, 0) + word as usize;
    let ring = layout.slots()[0].ring_at(Side::Guest);
    while !stop.load(Relaxed) {
        let freed = mine(RecordWord::Freed);
        let (at, value) = match random.below(32) {
            0 => (place(RecordWord::Produced), random.next()),
            1..=4 => (place(RecordWord::Produced), freed + 8 * random.below(RING / 8 + 2)),
            5 => (place(RecordWord::Freed), random.next()),
            6..=7 => (place(RecordWord::Freed), mine(RecordWord::Produced).wrapping_sub(8 * random.below(3))),
            8 => (place(RecordWord::WantData), random.next() >> random.below(64)),
            9 => (layout.link_word(Side::Guest, LinkWord::Sleep), random.next()),
            10..=12 => (ring + random.below(RING / 8) as usize, random.next()),
            _ => {
                let at = freed / 8 + random.below(4);
                let len = [0, 1, 8, 9, 64, RING - 8, RING, u64::from(u32::MAX)][random.below(8) as usize];
                (ring + (at % (RING / 8)) as usize, at << 33 | 1 << 32 | len)
            }
        };
        region.store(at, value, Relaxed);
    }
}

/// The host's ends of the channel that is lied on.
struct Victim<'a> {
    ledger: &'a Ledger<&'a HeapWords>,
    view: View<'a, &'a HeapWords>,
    ringer: Ringer,
    consumer: Consumer,
    producer: Producer,
    out: Vec<u8>,
}

impl Victim<'_> {
    /// Looks for a message; whether a header was read.
    fn receive(&mut self, take: bool) -> bool {
        let before = self.consumer.taken();
        match self.consumer.next_frame(&self.view) {
            Ok(None) => false,
            Ok(Some(frame)) => {
                assert!(frame.span() <= RING && frame.position() == before);
                self.out.resize(frame.len(), 0);
                self.consumer.read_frame(&self.view, frame, &mut self.out);
                if take {
                    self.consumer.commit(&self.view, frame.span());
                    assert_eq!(self.consumer.taken(), before.plus(frame.span()));
                    assert_eq!(self.consumer.freed(), self.consumer.taken());
                    let _ = self.ringer.claim(self.ledger, &self.view, Cause::Space(self.consumer.freed().0));
                }
                true
            }
            Err(corrupt) => {
                let faults: &[Fault] = match corrupt.word {
                    PeerWord::Produced => &[Fault::WentBack, Fault::Beyond, Fault::Unaligned],
                    PeerWord::Frame => &[Fault::Mark, Fault::Length],
                    word => panic!("a reader looks at no {word:?}"),
                };
                assert!(faults.contains(&corrupt.fault), "{corrupt}");
                assert_eq!(self.consumer.taken(), before, "nothing is skipped");
                corrupt.word == PeerWord::Frame
            }
        }
    }

    fn send(&mut self, len: usize) {
        let staged = self.producer.staged();
        match self.producer.stage_message(&self.view, &[0x5a; RING as usize][..len]) {
            Ok(()) => {
                assert!(self.producer.publish(&self.view));
                let _ = self.ringer.claim(self.ledger, &self.view, Cause::Data(self.producer.produced().0));
            }
            Err(Full::Until(position)) => assert!(position > self.producer.freed()),
            Err(Full::TooLong { .. }) => panic!("it fits"),
            Err(Full::Corrupt(corrupt)) => assert_eq!(corrupt.word, PeerWord::Freed),
        }
        assert!(self.producer.staged() >= staged);
        assert!(self.producer.staged().since(self.producer.freed()) <= RING);
    }

    /// The next process of the host: the guest knows nothing of it, and goes on lying.
    fn anew(&mut self) {
        let (taken, produced) = (self.consumer.taken(), self.producer.produced());
        (self.consumer, self.producer) = (Consumer::attach(&self.view), Producer::attach(&self.view));
        assert_eq!((self.consumer.taken(), self.producer.produced()), (taken, produced));
    }
}

/// Both ends of the channel that nobody lies on.
struct Honest<'a> {
    out: View<'a, &'a HeapWords>,
    into: View<'a, &'a HeapWords>,
    producer: Producer,
    consumer: Consumer,
}

impl Honest<'_> {
    fn exchange(&mut self, number: u64) {
        let payload = number.to_le_bytes();
        self.producer.stage_message(&self.out, &payload).expect("there is space");
        assert!(self.producer.publish(&self.out));
        let frame = self.consumer.next_frame(&self.into).expect("nobody lies").expect("a message was published");
        let mut found = [0; 8];
        self.consumer.read_frame(&self.into, frame, &mut found);
        self.consumer.commit(&self.into, frame.span());
        assert_eq!(found, payload);
    }
}

#[test]
fn headers_that_change_under_the_readers_eyes_cost_nothing() {
    let headers = of(2_000_000, 1_000_000_000);
    let geometry = Geometry::new(vec![Class { opener: Side::Host, count: 2, ring_bytes: RING }]).unwrap();
    let layout = Layout::new(&geometry);
    let region = HeapWords::new(layout.control_words() + 2 * 2 * RING as usize / 8);
    let sidecar = HeapWords::new(layout.sidecar_bytes() as usize / 8);
    let host = Ledger::new(&region, Some(&sidecar));
    let guest = Ledger::new(&region, None);
    let view = |ledger, side, channel| View::new(ledger, &layout, side, channel);
    let (out, into) = (view(&host, Side::Host, 1), view(&guest, Side::Guest, 1));
    let mut honest = Honest { producer: Producer::attach(&out), consumer: Consumer::attach(&into), out, into };
    let mut victim = Victim {
        ledger: &host,
        view: view(&host, Side::Host, 0),
        ringer: Ringer::attach(layout.link_word(Side::Guest, LinkWord::Sleep)),
        consumer: Consumer::attach(&view(&host, Side::Host, 0)),
        producer: Producer::attach(&view(&host, Side::Host, 0)),
        out: Vec::new(),
    };
    let stop = AtomicBool::new(false);
    let mut random = Random(0x1234_5678_9abc_def1);
    std::thread::scope(|scope| {
        // However this side ends, so does the racer.
        let _stops = Stops(&stop);
        scope.spawn(|| scribble(&region, &layout, &stop));
        let (mut read, mut operations) = (0, 0_u64);
        while read < headers {
            operations += 1;
            read += u64::from(victim.receive(operations % 4 != 0));
            match operations % 1024 {
                0 => victim.anew(),
                1 => honest.exchange(operations),
                _ if operations % 32 == 2 => victim.send(random.below(200) as usize),
                _ => {}
            }
        }
    });
    assert!(victim.consumer.taken() > Position(0) && victim.producer.produced() > Position(0));
    proved("headers read while another thread wrote rubbish over them at full speed", headers, "headers");
}

/// Stops the racer when it is dropped.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
