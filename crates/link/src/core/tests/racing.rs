//! A peer that writes rubbish into all of its words at full speed, while this side does everything that it does.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Instant;

use throughline_effort::{of, proved};
use throughline_ring::{Class, Geometry, Kind, Layout, Ledger, LinkWord, Phase, RecordWord, Side, State};
use throughline_shmem::sync::Ordering;
use throughline_shmem::{HeapWords, Words};

use super::super::channel::Channel;
use super::super::{AttachOptions, Core, Publish, Take, Use};
use super::app::{context, options};
use super::ops::{Came, OPERATIONS, Random, copies, in_use, operate};
use super::rig::{PORT, RING, TestBell};
use crate::Event;

/// Slots that the racer lies on; in slot 1 an honest peer goes on.
const ATTACKED: [usize; 3] = [0, 2, 3];
/// Words that one operation loads at most: a ring and a half, and all that belongs to the slots.
const MOST_LOADS: u64 = RING / 8 * 3 / 2 + 400;
/// Words that a snapshot loads: all control words, the sidecar, all rings, and what it judges.
const MOST_COPIED: u64 = 5 * 512 + 3 * 512 + 4 * 2 * RING / 8 + 100;

thread_local! {
    /// Words that this thread has loaded.
    static LOADED: Cell<u64> = const { Cell::new(0) };
}

/// Memory that counts its loads.
#[derive(Clone, Debug)]
struct Counted(Arc<HeapWords>);

impl Words for Counted {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        LOADED.set(LOADED.get() + 1);
        self.0.load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.0.store(at, value, order);
    }
}

type RacedCore = Core<Counted, TestBell>;

struct Race {
    /// Who is raced against.
    side: Side,
    geometry: Geometry,
    layout: Layout,
    region: Arc<HeapWords>,
    sidecar: Arc<HeapWords>,
}

/// The racer's own thread: what could be true, one kind of lie at a time, and no pause.
fn scribble(race: &Race, stop: &AtomicBool) {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for written in 0_u64.. {
        if stop.load(Relaxed) {
            assert!(written > 0);
            return;
        }
        let slot = random.of(&ATTACKED);
        // Lies about everything at once would end each channel before anything else is looked at.
        let lie = if written % 4096 < 1024 { written / 4096 % 8 } else { u64::MAX };
        let (at, value) = match random.below(8) as u64 {
            0..=3 if lie < 6 => wild(race, slot, lie, &mut random),
            kind => plausible(race, slot, kind, &mut random),
        };
        race.region.store(at, value, Ordering::Relaxed);
    }
}

/// A lie about one kind of word.
fn wild(race: &Race, slot: usize, lie: u64, random: &mut Random) -> (usize, u64) {
    let peer = race.side.peer();
    let record = race.layout.record(peer, slot);
    let at = match lie {
        0 => record + RecordWord::State as usize,
        1 => record + RecordWord::Produced as usize,
        2 => record + RecordWord::Freed as usize,
        3 => record + random.of(&[RecordWord::WantData, RecordWord::WantSpace]) as usize,
        4 => race.layout.slots()[slot].ring_at(peer) + random.below(RING as usize / 8),
        _ => race.layout.link_word(peer, LinkWord::Sleep) + random.below(80),
    };
    let near = race.region.load(at, Ordering::Relaxed) ^ 1 << random.below(64);
    let far = random.next() >> random.below(64);
    (at, random.of(&[near, near, far]))
}

/// What an honest peer could say, from what this side says.
fn plausible(race: &Race, slot: usize, kind: u64, random: &mut Random) -> (usize, u64) {
    let peer = race.side.peer();
    let mine =
        |word: RecordWord| race.region.load(race.layout.record(race.side, slot) + word as usize, Ordering::Relaxed);
    let place = |word: RecordWord| race.layout.record(peer, slot) + word as usize;
    match kind {
        0 => (place(RecordWord::State), mine(RecordWord::State)),
        1 => (place(RecordWord::Freed), mine(RecordWord::Produced) & !7),
        2 | 3 => {
            (place(RecordWord::Produced), mine(RecordWord::Freed).wrapping_add(8 * (1 + random.below(511) as u64)))
        }
        // A header that is right for a place where the next one may be read, but for its length now and then.
        _ => {
            let at = mine(RecordWord::Freed).wrapping_add(8 * random.below(3) as u64) / 8;
            let header = (at << 33 | 1 << 32) | random.of(&[0, 0, 1, 8, 8, 100, 4088, 0xffff_ffff]);
            (race.layout.slots()[slot].ring_at(peer) + at as usize % (RING as usize / 8), header)
        }
    }
}

impl Race {
    fn new(side: Side) -> Self {
        let class = |opener| Class { opener, count: 2, ring_bytes: RING };
        let geometry = Geometry::new(vec![class(side), class(side.peer())]).unwrap();
        let layout = Layout::new(&geometry);
        let region = HeapWords::new(layout.control_words() + layout.slots().len() * 2 * RING as usize / 8);
        let sidecar = HeapWords::new(layout.sidecar_bytes() as usize / 8);
        Self { side, geometry, layout, region: Arc::new(region), sidecar: Arc::new(sidecar) }
    }

    fn attach(&self, side: Side) -> RacedCore {
        let options =
            AttachOptions { now: Instant::now(), side, timeline: 1, random: 0, listen: vec![PORT], agent: None };
        let sidecar = (side == Side::Host).then(|| Counted(self.sidecar.clone()));
        let ledger = Ledger::new(Counted(self.region.clone()), sidecar);
        Core::attach(ledger, &self.geometry, TestBell::default(), &options).unwrap()
    }

    /// Takes an attacked slot over, as a successor that finds a use in its middle: mostly that which the peer speaks
    /// of, where it left off. Who was given up stays so, and this test wants more of it.
    fn renew(&self, me: &RacedCore, slot: usize, random: &mut Random) {
        let kept = if self.side == Side::Host { &self.sidecar } else { &self.region };
        let record = self.layout.record(self.side, slot);
        let store = |word: RecordWord, value| kept.store(record + word as usize, value, Ordering::Relaxed);
        let alleged = self.region.load(self.layout.record(self.side.peer(), slot), Ordering::Relaxed);
        let phase = random.of(&[0, 1, 1, 2]);
        let word = if phase == 0 { 0 } else { phase | random.of(&[0, 4, 4]) | u64::from(PORT) << 32 };
        let fits = State::decode(alleged).is_ok_and(|state| state.phase == Phase::Live && !state.tx_shut);
        store(RecordWord::Corrupt, 0);
        store(RecordWord::State, if fits && random.below(8) > 0 { alleged } else { word | 7 << 8 });
        if random.below(64) == 0 {
            let position = random.next() >> 30 & !7;
            for word in [RecordWord::Produced, RecordWord::Freed, RecordWord::Taken] {
                store(word, position);
            }
        }
        let view = me.view(slot);
        let mut entry = me.slots[slot].entry.lock();
        let i_open = entry.channel.i_open;
        entry.channel = Channel::attach(&view, i_open).unwrap();
        (entry.held, entry.peeked) = (false, None);
        me.active.set(slot);
    }

    /// A message each way in the slot that nobody lies on.
    fn exchange(me: &RacedCore, peer: &RacedCore, other: Use, number: u64) {
        let payload = number.to_le_bytes().repeat(1 + number as usize % 40);
        for (from, to) in [(me, peer), (peer, me)] {
            let mut out = Vec::new();
            assert_eq!(from.poll_send(other, Publish::Now, None, &payload), Poll::Ready(Ok(())));
            assert_eq!(to.poll_recv(other, Take::Consume, None, &mut out), Poll::Ready(Ok(true)));
            assert!(out == payload, "the honest channel's message {number}");
        }
    }

    /// One operation: bounded work, and nobody is blamed for the slot that is honest.
    fn one(&self, me: &RacedCore, random: &mut Random) -> Came {
        let (slot, number) = (random.of(&ATTACKED), random.below(OPERATIONS));
        // What has ended is renewed, but for now and then: there is something to do there too.
        if in_use(me, slot).2 != Phase::Live && random.below(16) > 0 || random.below(32) == 0 {
            self.renew(me, slot, random);
        }
        // Receiving is what the peer's headers are for.
        let number = if random.below(4) > 0 { number % 10 } else { number };
        let before = LOADED.get();
        let came = operate(me, slot, number, random);
        let loads = LOADED.get() - before;
        assert!(loads <= if copies(number) { MOST_COPIED } else { MOST_LOADS }, "{loads} loads in operation {number}");
        came
    }

    fn nobody_honest_is_blamed(me: &RacedCore) {
        while let Poll::Ready(event) = me.poll_event(&mut context()) {
            assert!(!matches!(event, Event::Corrupt { channel: 1, .. }), "{event:?}");
        }
    }

    /// Makes so many calls; returns how many headers were read by them.
    fn endure(&self, operations: u64) -> u64 {
        let (mut me, peer) = (self.attach(self.side), self.attach(self.side.peer()));
        let options = options(Kind::Message, PORT);
        me.try_open(&options).unwrap();
        let other = me.try_open(&options).unwrap();
        assert_eq!(other.slot, 1);
        peer.serve();
        while peer.poll_accept(PORT, &mut context()).is_ready() {}
        let mut random = Random(0x1234_5678_9abc_def1);
        let (stop, mut headers) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            // However this side ends, so does the racer.
            let _stops = Stops(&stop);
            scope.spawn(|| scribble(self, &stop));
            for number in 1..=operations {
                headers += u64::from(self.one(&me, &mut random) == Came::Header);
                if number % 64 == 0 {
                    Self::exchange(&me, &peer, other, number);
                }
                if number % 4096 == 0 {
                    Self::nobody_honest_is_blamed(&me);
                    me = self.attach(self.side);
                }
            }
        });
        assert!(headers > 0, "the racer ends every channel before a header is read");
        headers
    }
}

/// Stops the racer when it is dropped.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_guest_that_writes_rubbish_at_full_speed_costs_the_host_nothing() {
    let operations = of(300_000, 50_000_000);
    let headers = Race::new(Side::Host).endure(operations);
    proved("operations of a host while its guest writes rubbish at full speed", operations, "operations");
    proved("headers that the host read meanwhile", headers, "headers");
}

#[test]
fn a_host_that_writes_rubbish_at_full_speed_costs_the_guest_nothing() {
    let operations = of(300_000, 50_000_000);
    let headers = Race::new(Side::Guest).endure(operations);
    proved("operations of a guest while its host writes rubbish at full speed", operations, "operations");
    proved("headers that the guest read meanwhile", headers, "headers");
}
