//! Everything that owners and drivers may do with a core, one call each.

use std::task::Poll;
use std::time::{Duration, Instant};

use throughline_ring::{Identity, Kind, LinkWord, Phase, Reason, Side};
use throughline_shmem::Words;

use super::super::{Bell, ChannelId, Core, Publish, Take, Use};
use super::app::{context, options};
use super::rig::{PORT, RING};
use crate::error::Error;

/// How many operations there are.
pub(super) const OPERATIONS: usize = 40;

/// Numbers that look random.
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 16) as usize % bound
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// What came of it, as far as the tests count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// A message's header was read, and passed or did not.
    Header,
    Else,
}

/// Whether the operation copies a snapshot, and so passes on what it does not judge.
pub(super) fn copies(number: usize) -> bool {
    number == 30
}

/// The use that a side is in.
pub(super) fn in_use<W: Words, B: Bell>(core: &Core<W, B>, slot: usize) -> (Use, Kind, Phase) {
    let mine = core.slots[slot].entry.lock().channel.mine;
    (Use { slot, generation: mine.generation }, mine.kind, mine.phase)
}

/// Makes one call on one slot, whatever comes of it; what is owned for it is given back.
pub(super) fn operate<W: Words, B: Bell>(core: &Core<W, B>, slot: usize, number: usize, random: &mut Random) -> Came {
    let (this, kind, _) = in_use(core, slot);
    match number {
        0..10 => return receive(core, this, kind, number, random),
        10..18 => send(core, this, kind, number, random),
        18..30 => live(core, this, kind, number, random),
        30..36 => look(core, slot, number),
        _ => link(core, number, random),
    }
    Came::Else
}

fn receive<W: Words, B: Bell>(core: &Core<W, B>, this: Use, kind: Kind, number: usize, random: &mut Random) -> Came {
    let take = if number.is_multiple_of(2) { Take::Consume } else { Take::Peek };
    let mut cx = context();
    let cx = (number < 8).then_some(&mut cx);
    let mut out = Vec::new();
    if kind == Kind::Stream {
        out.resize(random.of(&[0, 1, 7, 9, 64, 4096]), 0);
        let _ = core.poll_read(this, take, cx, &mut out);
        return Came::Else;
    }
    let received = core.poll_recv(this, take, cx, &mut out);
    assert!(out.len() < RING as usize, "the peer decides how much memory is taken");
    match received {
        Poll::Ready(Ok(true)) => Came::Header,
        Poll::Ready(Err(Error::Corrupt(corrupt))) if corrupt.word == throughline_ring::PeerWord::Frame => Came::Header,
        _ => Came::Else,
    }
}

fn send<W: Words, B: Bell>(core: &Core<W, B>, this: Use, kind: Kind, number: usize, random: &mut Random) {
    let publish = if number.is_multiple_of(2) { Publish::Now } else { Publish::Batch };
    let mut cx = context();
    let cx = (number < 14).then_some(&mut cx);
    let bytes = [0x5a; RING as usize + 1];
    let bytes = &bytes[..random.of(&[0, 1, 8, 13, 100, 2000, 4088, 4097])];
    let _ = match kind {
        Kind::Message => core.poll_send(this, publish, cx, bytes).is_ready(),
        Kind::Stream => core.poll_write(this, publish, cx, bytes).is_ready(),
    };
}

/// What begins and ends a use, and what goes on in between.
fn live<W: Words, B: Bell>(core: &Core<W, B>, this: Use, kind: Kind, number: usize, random: &mut Random) {
    let id = ChannelId { timeline: core.timeline(), slot: this.slot, generation: this.generation.number() };
    let policy = super::super::Policy { unadopted: Some(Duration::from_secs(1)), ..Default::default() };
    match number {
        18 => drop(core.try_open(&options(random.of(&[Kind::Stream, kind]), PORT))),
        19 => drop(core.poll_open(&super::super::OpenOptions { policy, ..options(kind, PORT) }, &mut context())),
        20 => drop(core.poll_accept(PORT, &mut context())),
        21 => core.close(this, random.of(&[Reason::Normal, Reason::Reset])),
        22 => drop(core.adopt(id)),
        23 => core.release(this),
        24 => drop(core.poll_commit(this, None, &mut context())),
        25 => drop(core.poll_commit(this, Some(random.below(20) as u64), &mut context())),
        26 => drop(core.poll_flush(this, &mut context())),
        27 => drop(core.poll_shutdown(this, &mut context())),
        28 => drop(core.poll_answer(this, &mut context())),
        _ => drop(core.expire(Instant::now() + Duration::from_secs(2))),
    }
}

fn look<W: Words, B: Bell>(core: &Core<W, B>, slot: usize, number: usize) {
    match number {
        30 => {
            let put = |_, _: &[u8]| Ok::<(), ()>(());
            core.copy_region(put).and_then(|_| core.copy_sidecar(put)).unwrap();
        }
        31 => drop(core.channel(slot)),
        32 => drop(core.serve()),
        33 => {
            core.fall_asleep();
            core.wake_up();
        }
        34 => drop((core.is_ready(), core.has_waiters(), core.counters())),
        _ => drop(core.poll_event(&mut context())),
    }
}

fn link<W: Words, B: Bell>(core: &Core<W, B>, number: usize, random: &mut Random) {
    let word = random.of(&[LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent]);
    match number {
        36 => {
            core.freeze();
            core.thaw();
        }
        37 => core.publish_link(word, random.below(3) as u64),
        38 => drop(core.poll_link(&mut context(), |core| (core.peer_word(word) == 7).then_some(core.my_word(word)))),
        _ if core.side == Side::Guest => drop(core.read_identity()),
        _ => {
            let seq = core.last_identity().wrapping_add(1);
            let entropy = [1; 64];
            core.write_identity(&Identity {
                seq,
                epoch: 1,
                parent: 2,
                index: 3,
                clock_ns: 4,
                flags: 5,
                entropy,
                hostname: None,
            });
            core.erase_entropy();
        }
    }
}
