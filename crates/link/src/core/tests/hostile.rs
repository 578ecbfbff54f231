//! A peer that writes whatever it likes, wherever it can, at any moment.

use std::task::Poll;

use throughline_ring::{Fault, Kind, LinkWord, PeerWord, Reason, RecordWord, Side, State};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::SeqCst;

use super::super::{Publish, Take, Use};
use super::rig::{RING, TestCore, Trap, World};
use super::scene::{MOMENTS, Moment, Scene};
use crate::error::Error;

const KINDS: [Kind; 2] = [Kind::Stream, Kind::Message];

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

/// Writes each rubbish into a word of the peer, in each moment; returns cases, and how many of them
/// cost the peer its channel.
fn attack(side: Side, slot: usize, at: impl Fn(&World) -> usize) -> (usize, usize) {
    let (mut cases, mut given_up) = (0, 0);
    for moment in MOMENTS {
        let old = {
            let scene = Scene::new(side, moment);
            scene.world.word(at(&scene.world))
        };
        for value in rubbish(old) {
            let attacked = std::panic::AssertUnwindSafe(|| {
                let mut scene = Scene::new(side, moment);
                scene.world.region.store(at(&scene.world), value, SeqCst);
                scene.everything(slot);
                scene.others_go_on();
                scene.restart_remembers(slot)
            });
            match std::panic::catch_unwind(attacked) {
                Ok(corrupt) => given_up += usize::from(corrupt),
                Err(panic) => {
                    eprintln!("{side:?}, slot {slot}, {moment:?}: {old:#x} became {value:#x}");
                    std::panic::resume_unwind(panic);
                }
            }
            cases += 1;
        }
    }
    (cases, given_up)
}

/// How many cases cost the guest its channel, and the host, where it is the one that lies.
fn attack_record(word: RecordWord) -> [usize; 2] {
    [Side::Host, Side::Guest].map(|side| {
        let attacks =
            [0, 2].map(|slot| attack(side, slot, |world| world.layout.record(side.peer(), slot) + word as usize));
        assert!(attacks.iter().all(|(cases, _)| *cases > 600));
        attacks.iter().map(|(_, given_up)| given_up).sum()
    })
}

/// The same of a link word; those cost no channel.
fn attack_link(word: LinkWord, index: usize) {
    for side in [Side::Host, Side::Guest] {
        let (_, corrupt) = attack(side, 0, |world| world.layout.link_word(side.peer(), word) + index);
        assert_eq!(corrupt, 0, "{side:?} {word:?}");
    }
}

#[test]
fn rubbish_in_the_state_costs_the_guest_its_channel_and_nothing_else() {
    let corrupt = attack_record(RecordWord::State);
    assert!(corrupt.iter().all(|corrupt| *corrupt > 300), "{corrupt:?}");
}

#[test]
fn rubbish_in_produced_costs_the_guest_its_channel_and_nothing_else() {
    let corrupt = attack_record(RecordWord::Produced);
    assert!(corrupt.iter().all(|corrupt| *corrupt > 300), "{corrupt:?}");
}

#[test]
fn rubbish_in_freed_costs_the_guest_its_channel_and_nothing_else() {
    let corrupt = attack_record(RecordWord::Freed);
    assert!(corrupt.iter().all(|corrupt| *corrupt > 300), "{corrupt:?}");
}

#[test]
fn rubbish_in_wants_and_sleep_costs_bells_at_most() {
    for word in [RecordWord::WantData, RecordWord::WantSpace] {
        assert_eq!(attack_record(word), [0, 0]);
    }
    attack_link(LinkWord::Sleep, 0);
}

#[test]
fn rubbish_in_the_links_words_costs_no_channel() {
    for word in [LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent] {
        attack_link(word, 0);
    }
    // An identity's number that is right, and a block that says anything.
    for index in [0, 4, 7, 8, 15, 16, 23] {
        attack_link(LinkWord::IdentityBlock, index);
    }
}

#[test]
fn rubbish_in_a_frame_costs_the_guest_its_channel_and_nothing_else() {
    for side in [Side::Host, Side::Guest] {
        for slot in [0, 2] {
            let (_, corrupt) = attack(side, slot, |world| world.layout.slots()[slot].ring_at(side.peer()));
            assert!(corrupt > 60, "{corrupt}");
            // A payload may be anything.
            let (_, corrupt) = attack(side, slot, |world| world.layout.slots()[slot].ring_at(side.peer()) + 1);
            assert_eq!(corrupt, 0);
        }
    }
}

/// What is left of PROTOCOL.md's words: those that a side keeps for its successor, and those that mean nothing yet.
#[test]
fn nobody_looks_at_what_the_peer_keeps_for_itself() {
    let looked_at =
        [RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
    let looked_at = looked_at.map(|word| word as usize);
    for (side, moment) in [Side::Host, Side::Guest].into_iter().flat_map(|side| MOMENTS.map(|moment| (side, moment))) {
        for slot in [0, 2] {
            let mut scene = Scene::new(side, moment);
            let record = scene.world.layout.record(side.peer(), slot);
            for word in (0..64).filter(|word| !looked_at.contains(word)) {
                scene.world.region.store(record + word, 0xdead_beef_dead_beef, SeqCst);
            }
            scene.everything(slot);
            scene.others_go_on();
            assert!(!scene.restart_remembers(slot));
        }
    }
}

/// The inspector in every scene panics when the host reads its own words from the region; here they
/// are all rubbish, and a successor of the host puts them right.
#[test]
fn what_the_guest_writes_over_the_hosts_words_has_no_effect() {
    for moment in MOMENTS {
        let mut scene = Scene::new(Side::Host, moment);
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
        scene.me = scene.world.living(Side::Host);
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
        assert!((0..4).all(|slot| scene.me.slots[slot].entry.lock().channel.corrupt.is_none()), "{moment:?}");
    }
}

/// For a channel that the host has read part of: which values of a cursor are lies is known exactly.
#[test]
fn exactly_the_cursors_that_cannot_be_are_corrupt() {
    let kinds = KINDS.into_iter();
    let words = kinds.flat_map(|kind| [RecordWord::Produced, RecordWord::Freed].map(|word| (kind, word)));
    for (side, (kind, word)) in words.flat_map(|word| [Side::Host, Side::Guest].map(|side| (side, word))) {
        let at = |scene: &Scene| scene.world.layout.record(side.peer(), 0) + word as usize;
        let old = {
            let scene = half_read(side, kind);
            scene.world.word(at(&scene))
        };
        for value in rubbish(old) {
            let scene = half_read(side, kind);
            let entry = |scene: &Scene| scene.me.slots[0].entry.lock().channel.corrupt.map(|corrupt| corrupt.word);
            let freed = scene.me.slots[0].entry.lock().channel.rx.freed().0;
            scene.world.region.store(at(&scene), value, SeqCst);
            let this = Use { slot: 0, generation: scene.me.slots[0].entry.lock().channel.mine.generation };
            let mut out = Vec::new();
            // Everything that is known is read, so that the word is looked at; and the ring is filled.
            for _ in 0..2 {
                for _ in 0..2 {
                    let _ = match kind {
                        Kind::Message => scene.op(|me| me.poll_recv(this, Take::Consume, None, &mut out).is_ready()),
                        Kind::Stream => scene.op(|me| me.poll_read(this, Take::Consume, None, &mut [0; 64]).is_ready()),
                    };
                }
                let _ = match kind {
                    Kind::Message => scene.op(|me| me.poll_send(this, Publish::Now, None, &[1; 4088]).is_ready()),
                    Kind::Stream => scene.op(|me| me.poll_write(this, Publish::Now, None, &[1; 4096]).is_ready()),
                };
            }
            let blamed = match word {
                RecordWord::Produced => PeerWord::Produced,
                _ => PeerWord::Freed,
            };
            // When it was looked at for the last time, for want of space.
            let produced = scene.me.slots[0].entry.lock().channel.tx.produced().0;
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

/// Both cursors of the peer have been looked at and have moved.
fn half_read(side: Side, kind: Kind) -> Scene {
    let scene = Scene::new(side, Moment::Live(kind));
    let this = Use { slot: 0, generation: scene.me.slots[0].entry.lock().channel.mine.generation };
    let mut out = Vec::new();
    // All that this side knows of is read, so that it looks again.
    for core in [&scene.me, &scene.me, &scene.peer] {
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
    for side in [Side::Host, Side::Guest] {
        let scene = Scene::new(side, Moment::Ended);
        let at = scene.world.layout.record(side.peer(), 0);
        scene.settle();
        scene.world.region.store(at, scene.world.word(at) & !8, SeqCst);
        scene.settle();
        let corrupt = scene.me.slots[0].entry.lock().channel.corrupt.unwrap();
        assert_eq!((corrupt.word, corrupt.fault), (PeerWord::State, Fault::Transition));
    }
}

/// The peer resets while its bytes are being copied: what was copied may be half zeros by then.
#[test]
fn a_reset_under_a_copy_gives_no_bytes() {
    for (side, kind) in [Side::Host, Side::Guest].into_iter().flat_map(|side| KINDS.map(|kind| (side, kind))) {
        let scene = Scene::new(side, Moment::Live(kind));
        let state = scene.world.layout.record(side.peer(), 0);
        let reset = State::decode(scene.world.word(state)).unwrap().closed(Reason::Reset).encode();
        let when = scene.world.layout.slots()[0].ring_at(side.peer());
        *scene.world.trap.lock().unwrap() = Some(Trap { when, word: state, value: reset });
        let this = Use { slot: 0, generation: scene.me.slots[0].entry.lock().channel.mine.generation };
        let read = match kind {
            Kind::Message => scene.op(|me| me.poll_recv(this, Take::Consume, None, &mut Vec::new())).map_ok(drop),
            Kind::Stream => scene.op(|me| me.poll_read(this, Take::Consume, None, &mut [0; 5])).map_ok(drop),
        };
        assert_eq!(read, Poll::Ready(Err(Error::Reset)));
        assert_eq!(scene.op(|me| me.channel(0)).unwrap().received, 0);
    }
}
