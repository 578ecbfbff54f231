//! A peer that writes whatever it likes, wherever it can, at any moment.

use std::sync::Arc;
use std::task::Poll;

use throughline_ring::{Fault, Kind, LinkWord, PeerWord, Phase, Reason, RecordWord, Side, State};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::SeqCst;

use super::super::{Publish, Take, Use};
use super::app::{context, options};
use super::rig::{Inspector, PORT, RING, TestCore, Trap, World};
use crate::Event;
use crate::error::Error;

/// Words that one operation may load: a ring and a half, and what belongs to each slot.
const MOST_LOADS: u64 = RING / 8 * 3 / 2 + 200;

/// What is going on when the peer turns hostile. Slot 0 is opened by the host, slot 2 by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Free,
    Unanswered(Kind),
    Live(Kind),
    /// With a partial last word in both rings, and both directions ended.
    Ended,
    Closed,
}

const MOMENTS: [Moment; 7] = [
    Moment::Free,
    Moment::Unanswered(Kind::Stream),
    Moment::Unanswered(Kind::Message),
    Moment::Live(Kind::Stream),
    Moment::Live(Kind::Message),
    Moment::Ended,
    Moment::Closed,
];

struct Scene {
    world: World,
    inspector: Arc<Inspector>,
    host: TestCore,
    guest: TestCore,
    /// The channel that nobody attacks.
    other: [Use; 1],
}

fn accept(core: &TestCore) -> Use {
    core.serve();
    let Poll::Ready(Ok((this, _))) = core.poll_accept(PORT, &mut context()) else { panic!("no open arrived") };
    this
}

fn put(core: &TestCore, this: Use, kind: Kind) {
    for piece in [&b"first"[..], b"second piece"] {
        let done = match kind {
            Kind::Message => core.poll_send(this, Publish::Now, None, piece),
            Kind::Stream => core.poll_write(this, Publish::Now, None, piece).map_ok(|_| ()),
        };
        assert_eq!(done, Poll::Ready(Ok(())));
    }
}

impl Scene {
    fn new(moment: Moment) -> Self {
        let mut world = World::with(2);
        let inspector = world.inspect();
        let (host, guest) = (world.living(Side::Host), world.living(Side::Guest));
        let scene = Self { inspector, host, guest, world, other: [Use { slot: 1, generation: Default::default() }] };
        scene.begin(moment)
    }

    fn op<T>(&self, operation: impl FnOnce(&TestCore) -> T) -> T {
        self.inspector.begin();
        let result = operation(&self.host);
        let loads = self.inspector.total();
        assert!(loads <= MOST_LOADS, "{loads} loads");
        result
    }

    fn begin(mut self, moment: Moment) -> Self {
        let kind = match moment {
            Moment::Unanswered(kind) | Moment::Live(kind) => kind,
            _ => Kind::Stream,
        };
        // The other one, in slot 1: slot 0 is taken for a moment.
        let first = self.op(|host| host.try_open(&options(kind, PORT)).unwrap());
        let other = self.op(|host| host.try_open(&options(Kind::Message, PORT)).unwrap());
        assert_eq!((first.slot, other.slot), (0, 1));
        self.other = [other];
        let accepted = [accept(&self.guest), accept(&self.guest)];
        if moment == Moment::Free || matches!(moment, Moment::Unanswered(_)) {
            self.op(|host| host.close(first, Reason::Normal));
            self.guest.close(accepted[0], Reason::Normal);
            self.op(TestCore::serve);
            self.guest.serve();
        }
        match moment {
            Moment::Free => {}
            Moment::Unanswered(kind) => {
                let again = self.op(|host| host.try_open(&options(kind, PORT)).unwrap());
                self.op(|host| put(host, again, kind));
                self.guest.try_open(&options(kind, PORT)).unwrap();
            }
            _ => {
                let theirs = self.guest.try_open(&options(kind, PORT)).unwrap();
                self.op(TestCore::serve);
                let mine = self.op(accept);
                for (core, this) in [(&self.guest, accepted[0]), (&self.guest, theirs)] {
                    put(core, this, kind);
                }
                for this in [first, mine] {
                    self.op(|host| put_one_by_one(host, this, kind));
                }
                if moment == Moment::Ended {
                    for this in [first, mine] {
                        assert!(self.op(|host| host.poll_shutdown(this, &mut context())).is_ready());
                    }
                    for this in [accepted[0], theirs] {
                        assert!(self.guest.poll_shutdown(this, &mut context()).is_ready());
                    }
                }
                if moment == Moment::Closed {
                    self.op(|host| host.close(first, Reason::Normal));
                    self.op(|host| host.close(mine, Reason::Reset));
                }
            }
        }
        self
    }

    /// Everything that a host may do with a slot, whatever comes of it.
    fn everything(&self, slot: usize) {
        self.settle();
        let (this, kind) = {
            let entry = self.host.slots[slot].entry.lock();
            (Use { slot, generation: entry.channel.mine.generation }, entry.channel.mine.kind)
        };
        let _ = self.op(|host| host.channels());
        let mut out = Vec::new();
        let mut bytes = [0; 64];
        for take in [Take::Peek, Take::Consume] {
            let _ = match kind {
                Kind::Message => self.op(|host| host.poll_recv(this, take, None, &mut out).is_ready()),
                Kind::Stream => self.op(|host| host.poll_read(this, take, None, &mut bytes).is_ready()),
            };
            assert!(out.capacity() <= 2 * RING as usize, "the peer decides how much memory is taken");
        }
        let _ = match kind {
            Kind::Message => self.op(|host| host.poll_send(this, Publish::Now, None, &[1; 3000]).is_ready()),
            Kind::Stream => self.op(|host| host.poll_write(this, Publish::Now, None, &[1; 4096]).is_ready()),
        };
        let _ = self.op(|host| host.poll_accept(PORT, &mut context()).is_ready());
        let _ = self.op(|host| host.poll_shutdown(this, &mut context()).is_ready());
        let _ = self.op(TestCore::fall_asleep);
        self.op(TestCore::wake_up);
        self.op(|host| host.close(this, Reason::Normal));
        self.settle();
        let _ = self.op(|host| host.try_open(&options(kind, PORT)));
        self.settle();
    }

    /// A few looks, and there is nothing more to find.
    fn settle(&self) {
        for _ in 0..10 {
            if self.op(TestCore::serve) == 0 {
                return;
            }
        }
        panic!("the driver is kept busy");
    }

    /// The channel that nobody attacked carries a message each way.
    fn others_go_on(&self) {
        let [other] = self.other;
        self.guest.serve();
        for round in 0..2 {
            let mut out = Vec::new();
            assert_eq!(self.op(|host| host.poll_send(other, Publish::Now, None, &[round; 9])), Poll::Ready(Ok(())));
            assert_eq!(self.guest.poll_recv(other, Take::Consume, None, &mut out), Poll::Ready(Ok(true)));
            assert_eq!(out, [round; 9]);
            assert_eq!(self.guest.poll_send(other, Publish::Now, None, &[round; 7]), Poll::Ready(Ok(())));
            let received = self.op(|host| host.poll_recv(other, Take::Consume, None, &mut out));
            assert_eq!((received, out.as_slice()), (Poll::Ready(Ok(true)), &[round; 7][..]));
        }
    }

    /// What was given up stays given up, in a new process too. Returns whether the slot was.
    fn restart_remembers(&mut self, slot: usize) -> bool {
        let corrupt = self.host.slots[slot].entry.lock().channel.corrupt;
        let mut told = false;
        while let Poll::Ready(event) = self.host.poll_event(&mut context()) {
            told |= matches!(event, Event::Corrupt { channel, why } if channel == slot && Some(why) == corrupt);
        }
        assert_eq!(told, corrupt.is_some(), "whoever owns the channel is told");
        self.inspector.begin();
        self.host = self.world.living(Side::Host);
        let entry = self.host.slots[slot].entry.lock();
        assert_eq!(entry.channel.corrupt, corrupt);
        assert!(corrupt.is_none() || entry.channel.mine.phase != Phase::Live);
        drop(entry);
        self.settle();
        corrupt.is_some()
    }
}

fn put_one_by_one(core: &TestCore, this: Use, kind: Kind) {
    // One operation for the inspector: a single write.
    let done = match kind {
        Kind::Message => core.poll_send(this, Publish::Now, None, b"unread"),
        Kind::Stream => core.poll_write(this, Publish::Now, None, b"unread").map_ok(|_| ()),
    };
    assert_eq!(done, Poll::Ready(Ok(())));
}

/// What may stand in a word that held `old`.
fn rubbish(old: u64) -> Vec<u64> {
    let mut values =
        vec![0, 1, 7, 8, RING - 1, RING, RING + 1, RING + 8, u64::MAX, u64::MAX - 7, 1 << 63, (1 << 63) - 1];
    for by in [1, 8, RING - 8, RING, RING + 1, 1 << 32, 1 << 40] {
        values.extend([old.wrapping_add(by), old.wrapping_sub(by)]);
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ old;
    for _ in 0..8 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        values.push(random);
    }
    values.extend((0..64).map(|bit| old ^ 1 << bit));
    values.retain(|value| *value != old);
    values
}

/// Writes each rubbish into a word of the guest, in each moment; returns cases, and how many of them
/// cost the guest its channel.
fn attack(slot: usize, at: impl Fn(&World) -> usize) -> (usize, usize) {
    let (mut cases, mut given_up) = (0, 0);
    for moment in MOMENTS {
        let old = {
            let scene = Scene::new(moment);
            scene.world.word(at(&scene.world))
        };
        for value in rubbish(old) {
            let case = std::panic::AssertUnwindSafe(|| {
                let mut scene = Scene::new(moment);
                scene.world.region.store(at(&scene.world), value, SeqCst);
                scene.everything(slot);
                scene.others_go_on();
                scene.restart_remembers(slot)
            });
            match std::panic::catch_unwind(case) {
                Ok(corrupt) => given_up += usize::from(corrupt),
                Err(cause) => {
                    eprintln!("slot {slot}, {moment:?}: {old:#x} became {value:#x}");
                    std::panic::resume_unwind(cause);
                }
            }
            cases += 1;
        }
    }
    (cases, given_up)
}

fn attack_record(word: RecordWord) -> usize {
    let mut corrupt = 0;
    for slot in [0, 2] {
        let (cases, given_up) = attack(slot, |world| world.layout.record(Side::Guest, slot) + word as usize);
        assert!(cases > 600);
        corrupt += given_up;
    }
    corrupt
}

#[test]
fn rubbish_in_the_state_costs_the_guest_its_channel_and_nothing_else() {
    assert!(attack_record(RecordWord::State) > 300);
}

#[test]
fn rubbish_in_produced_costs_the_guest_its_channel_and_nothing_else() {
    assert!(attack_record(RecordWord::Produced) > 300);
}

#[test]
fn rubbish_in_freed_costs_the_guest_its_channel_and_nothing_else() {
    assert!(attack_record(RecordWord::Freed) > 300);
}

#[test]
fn rubbish_in_wants_and_sleep_costs_bells_at_most() {
    for word in [RecordWord::WantData, RecordWord::WantSpace] {
        assert_eq!(attack_record(word), 0);
    }
    let (_, corrupt) = attack(0, |world| world.layout.link_word(Side::Guest, LinkWord::Sleep));
    assert_eq!(corrupt, 0);
}

#[test]
fn rubbish_in_the_links_words_costs_no_channel() {
    for word in [LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent] {
        let (_, corrupt) = attack(0, |world| world.layout.link_word(Side::Guest, word));
        assert_eq!(corrupt, 0);
    }
}

#[test]
fn rubbish_in_a_frame_costs_the_guest_its_channel_and_nothing_else() {
    for slot in [0, 2] {
        let (_, corrupt) = attack(slot, |world| world.layout.slots()[slot].ring_at(Side::Guest));
        assert!(corrupt > 60, "{corrupt}");
        // A payload may be anything.
        let (_, corrupt) = attack(slot, |world| world.layout.slots()[slot].ring_at(Side::Guest) + 1);
        assert_eq!(corrupt, 0);
    }
}

/// The inspector in every scene panics when the host reads its own words from the region; here they
/// are all rubbish, and a successor of the host puts them right.
#[test]
fn what_the_guest_writes_over_the_hosts_words_has_no_effect() {
    for moment in MOMENTS {
        let mut scene = Scene::new(moment);
        let (first, count) = scene.world.layout.side_pages(Side::Host);
        let before: Vec<u64> = (first..first + count).map(|at| scene.world.word(at)).collect();
        let kept =
            |scene: &Scene| (first..first + count).map(|at| scene.world.sidecar.load(at, SeqCst)).collect::<Vec<_>>();
        let sidecar = kept(&scene);
        for at in first..first + count {
            scene.world.region.store(at, 0xdead_beef_dead_beef, SeqCst);
        }
        assert_eq!(kept(&scene), sidecar);
        scene.inspector.begin();
        scene.host = scene.world.living(Side::Host);
        // All that a guest reads is as it was, but for what is meaningless after an attach.
        let shown = [RecordWord::State, RecordWord::Produced, RecordWord::Freed];
        for at in (0..4).flat_map(|slot| shown.map(|word| scene.world.layout.record(Side::Host, slot) + word as usize))
        {
            assert_eq!(scene.world.word(at), before[at - first], "{moment:?}: word {at}");
        }
        scene.others_go_on();
        for at in first..first + count {
            scene.world.region.store(at, 0xdead_beef_dead_beef, SeqCst);
        }
        scene.everything(0);
        scene.everything(2);
        assert!((0..4).all(|slot| scene.host.slots[slot].entry.lock().channel.corrupt.is_none()), "{moment:?}");
    }
}

/// For a channel that the host has read part of: which values of a cursor are lies is known exactly.
#[test]
fn exactly_the_cursors_that_cannot_be_are_corrupt() {
    for (kind, word) in [Kind::Stream, Kind::Message]
        .into_iter()
        .flat_map(|kind| [RecordWord::Produced, RecordWord::Freed].map(|word| (kind, word)))
    {
        let at = |scene: &Scene| scene.world.layout.record(Side::Guest, 0) + word as usize;
        let old = {
            let scene = half_read(kind);
            scene.world.word(at(&scene))
        };
        for value in rubbish(old) {
            let scene = half_read(kind);
            let entry = |scene: &Scene| scene.host.slots[0].entry.lock().channel.corrupt.map(|corrupt| corrupt.word);
            let freed = scene.host.slots[0].entry.lock().channel.rx.freed().0;
            scene.world.region.store(at(&scene), value, SeqCst);
            let this = Use { slot: 0, generation: scene.host.slots[0].entry.lock().channel.mine.generation };
            let mut out = Vec::new();
            // Everything that is known is read, so that the word is looked at; and the ring is filled.
            for _ in 0..2 {
                for _ in 0..2 {
                    let _ = match kind {
                        Kind::Message => {
                            scene.op(|host| host.poll_recv(this, Take::Consume, None, &mut out).is_ready())
                        }
                        Kind::Stream => {
                            scene.op(|host| host.poll_read(this, Take::Consume, None, &mut [0; 64]).is_ready())
                        }
                    };
                }
                let _ = match kind {
                    Kind::Message => scene.op(|host| host.poll_send(this, Publish::Now, None, &[1; 4088]).is_ready()),
                    Kind::Stream => scene.op(|host| host.poll_write(this, Publish::Now, None, &[1; 4096]).is_ready()),
                };
            }
            let blamed = match word {
                RecordWord::Produced => PeerWord::Produced,
                _ => PeerWord::Freed,
            };
            // When it was looked at for the last time, for want of space.
            let produced = scene.host.slots[0].entry.lock().channel.tx.produced().0;
            let honest = match word {
                RecordWord::Produced => {
                    value >= old && value <= freed + RING && (kind == Kind::Stream || value % 8 == 0)
                }
                _ => value >= old && value <= produced.next_multiple_of(8) && value % 8 == 0,
            };
            let found = entry(&scene);
            if honest {
                // What is claimed to have been sent is zeros, and so no message.
                assert!(
                    found.is_none() || (found, kind) == (Some(PeerWord::Frame), Kind::Message),
                    "{value:#x}: {found:?}"
                );
            } else {
                assert_eq!(found, Some(blamed), "{kind:?} {word:?} was {old:#x}, became {value:#x}");
            }
        }
    }
}

/// Both cursors of the guest have been looked at and have moved.
fn half_read(kind: Kind) -> Scene {
    let scene = Scene::new(Moment::Live(kind));
    let this = Use { slot: 0, generation: scene.host.slots[0].entry.lock().channel.mine.generation };
    let mut out = Vec::new();
    // All that the host knows of is read, so that it looks again.
    for core in [&scene.host, &scene.host, &scene.guest] {
        scene.inspector.begin();
        let read = match kind {
            Kind::Message => core.poll_recv(this, Take::Consume, None, &mut out).is_ready(),
            Kind::Stream => core.poll_read(this, Take::Consume, None, &mut [0; 9]).is_ready(),
        };
        assert!(read);
    }
    let _ = scene.op(TestCore::channels);
    scene
}

#[test]
fn an_end_cannot_be_taken_back() {
    let scene = Scene::new(Moment::Ended);
    let at = scene.world.layout.record(Side::Guest, 0);
    scene.settle();
    scene.world.region.store(at, scene.world.word(at) & !8, SeqCst);
    scene.settle();
    let corrupt = scene.host.slots[0].entry.lock().channel.corrupt.unwrap();
    assert_eq!((corrupt.word, corrupt.fault), (PeerWord::State, Fault::Transition));
}

/// The peer resets while its bytes are being copied: what was copied may be half zeros by then.
#[test]
fn a_reset_under_a_copy_gives_no_bytes() {
    for kind in [Kind::Stream, Kind::Message] {
        let scene = Scene::new(Moment::Live(kind));
        let state = scene.world.layout.record(Side::Guest, 0);
        let reset = State::decode(scene.world.word(state)).unwrap().closed(Reason::Reset).encode();
        let when = scene.world.layout.slots()[0].ring_at(Side::Guest);
        *scene.world.trap.lock().unwrap() = Some(Trap { when, word: state, value: reset });
        let this = Use { slot: 0, generation: scene.host.slots[0].entry.lock().channel.mine.generation };
        let read = match kind {
            Kind::Message => scene.op(|host| host.poll_recv(this, Take::Consume, None, &mut Vec::new())).map_ok(drop),
            Kind::Stream => scene.op(|host| host.poll_read(this, Take::Consume, None, &mut [0; 5])).map_ok(drop),
        };
        assert_eq!(read, Poll::Ready(Err(Error::Reset)));
        assert_eq!(scene.op(|host| host.channel(0)).unwrap().received, 0);
    }
}
