//! What was sent and consumed is nowhere any more: not in the region, not in the sidecar, not in a snapshot of them.

use std::collections::HashSet;
use std::task::Poll;

use throughline_effort::{of, proved};
use throughline_ring::{Kind, Reason, RecordWord, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::SeqCst;

use super::super::{Publish, Take, Use};
use super::app::{context, options};
use super::ops::Random;
use super::rig::{PORT, RING, TestCore, World};

/// Bytes that nobody else has by accident.
const WINDOW: usize = 8;

/// A host and a guest with a channel of each kind.
struct Pair {
    world: World,
    host: TestCore,
    guest: TestCore,
    uses: [(Use, Kind); 2],
}

impl Pair {
    fn new() -> Self {
        let world = World::with(2);
        let (host, guest) = (world.living(Side::Host), world.living(Side::Guest));
        let uses = [Kind::Message, Kind::Stream].map(|kind| {
            let this = host.try_open(&options(kind, PORT)).unwrap();
            guest.serve();
            assert_eq!(guest.poll_accept(PORT, &mut context()), Poll::Ready(Ok((this, kind))));
            (this, kind)
        });
        Self { world, host, guest, uses }
    }

    /// There and back again.
    fn send(&self, canary: &[u8]) {
        for (this, kind) in self.uses {
            for (from, to) in [(&self.host, &self.guest), (&self.guest, &self.host)] {
                match kind {
                    Kind::Message => message(from, to, this, &canary[..canary.len().min(RING as usize - 8)]),
                    Kind::Stream => stream(from, to, this, canary),
                }
            }
        }
    }

    /// All that there is, and all that a snapshot of now would hold: region, sidecar, and both copies.
    fn memories(&self) -> [Vec<u8>; 4] {
        let whole =
            |words: &dyn Fn(usize) -> u64, count| (0..count).flat_map(|at| words(at).to_le_bytes()).collect::<Vec<_>>();
        let region = whole(&|at| self.world.word(at), self.world.region.len());
        let sidecar = whole(&|at| self.world.sidecar.load(at, SeqCst), self.world.sidecar.len());
        let (mut region_copy, mut sidecar_copy) = (vec![0; region.len()], vec![0; sidecar.len()]);
        let put = |copy: &mut Vec<u8>, at: u64, bytes: &[u8]| {
            copy[at as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok::<(), ()>(())
        };
        self.host.freeze();
        self.host.copy_region(|at, bytes| put(&mut region_copy, at, bytes)).unwrap();
        self.host.copy_sidecar(|at, bytes| put(&mut sidecar_copy, at, bytes)).unwrap();
        self.host.thaw();
        [region, sidecar, region_copy, sidecar_copy]
    }

    /// Bytes of payload that are left in all rings, and in what both sides keep of a stream's last word.
    fn held_back(&self) -> Vec<u8> {
        let rings = self.world.layout.slots()[0].ring_at(Side::Host)..self.world.region.len();
        let tails = (0..4).flat_map(|slot| [Side::Host, Side::Guest].map(|side| (side, slot)));
        let tail = |(side, slot)| {
            let at = self.world.layout.record(side, slot) + RecordWord::Tail as usize;
            if side == Side::Host { self.world.sidecar.load(at, SeqCst) } else { self.world.word(at) }
        };
        let words = rings.map(|at| self.world.word(at)).chain(tails.map(tail));
        words.flat_map(u64::to_le_bytes).filter(|byte| *byte != 0).collect()
    }
}

fn message(from: &TestCore, to: &TestCore, this: Use, canary: &[u8]) {
    let mut out = Vec::new();
    assert_eq!(from.poll_send(this, Publish::Now, None, canary), Poll::Ready(Ok(())));
    // Looking at it leaves it where it is.
    assert_eq!(to.poll_recv(this, Take::Peek, None, &mut out), Poll::Ready(Ok(true)));
    assert_eq!(to.poll_recv(this, Take::Consume, None, &mut out), Poll::Ready(Ok(true)));
    assert!(out == canary);
}

fn stream(from: &TestCore, to: &TestCore, this: Use, canary: &[u8]) {
    let (mut sent, mut received) = (0, Vec::new());
    while received.len() < canary.len() {
        if let Poll::Ready(count) = from.poll_write(this, Publish::Now, None, &canary[sent..]) {
            sent += count.unwrap();
        }
        let mut out = vec![0; RING as usize];
        let Poll::Ready(Ok(count)) = to.poll_read(this, Take::Consume, None, &mut out) else { panic!("nothing came") };
        received.extend_from_slice(&out[..count]);
    }
    assert!(received == canary);
}

/// Bytes that are not zero, of every length up to a ring.
fn canary(number: u64, random: &mut Random) -> Vec<u8> {
    let len = match number % 4 {
        0 => 1 + number as usize / 4 % 40,
        1 => RING as usize - random.below(40),
        _ => 1 + random.below(RING as usize),
    };
    (0..len).map(|_| random.next().to_le_bytes()[3] | 1).collect()
}

#[test]
fn no_byte_that_was_consumed_is_in_the_region_the_sidecar_or_a_snapshot() {
    let (mut random, mut sent) = (Random(99), HashSet::new());
    let count = of(1000, 20_000);
    let mut pair = Pair::new();
    for number in 0..count {
        let canary = canary(number, &mut random);
        sent.extend(canary.windows(WINDOW).map(<[u8]>::to_vec));
        pair.send(&canary);
        if number % 100 != 99 {
            continue;
        }
        // A stream holds back what lies in its last, partial word: in the ring, and in the writer's copy of it.
        let held = pair.held_back();
        assert!(held.len() <= 2 * 2 * 7, "{} bytes are held back", held.len());
        for memory in pair.memories() {
            let found = memory.windows(WINDOW).filter(|window| sent.contains(*window)).count();
            assert_eq!(found, 0, "of {} canaries something is left", number + 1);
        }
        sent.clear();
        if number % 500 == 499 {
            nothing_is_held_back_after_the_end(&pair);
            pair = Pair::new();
        }
    }
    proved("canaries sent both ways as messages and as a stream, and consumed: none is left", count, "canaries");
}

/// The end of a stream takes its last bytes along.
fn nothing_is_held_back_after_the_end(pair: &Pair) {
    for (this, _) in pair.uses {
        pair.host.close(this, Reason::Normal);
        pair.guest.close(this, Reason::Normal);
    }
    for _ in 0..3 {
        pair.host.serve();
        pair.guest.serve();
    }
    assert_eq!(pair.host.channels(), []);
    assert_eq!(pair.held_back(), Vec::<u8>::new(), "bytes of a stream that has ended");
}

/// The search finds what it looks for: what was sent and not consumed is in the region and in its copy.
#[test]
fn a_byte_that_was_not_consumed_is_found() {
    let pair = Pair::new();
    let canary = canary(1, &mut Random(7));
    let (this, _) = pair.uses[0];
    assert!(pair.guest.poll_send(this, Publish::Now, None, &canary[..1000]).is_ready());
    let window = &canary[500..][..WINDOW];
    let found = pair.memories().map(|memory| memory.windows(WINDOW).any(|at| at == window));
    assert_eq!(found, [true, false, true, false]);
}
