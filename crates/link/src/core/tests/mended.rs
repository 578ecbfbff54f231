//! Moments at which something went wrong once.

use std::sync::atomic::Ordering::SeqCst;
use std::task::Poll;
use std::time::{Duration, Instant};

use throughline_ring::{Kind, Phase, Reason, RecordWord, Side, State};
use throughline_shmem::Words;

use super::super::{OpenOptions, Policy, Publish, Take};
use super::app::{context, options};
use super::rig::{Fuse, PORT, RING, TestCore, World, survives};
use crate::error::Error;

fn accepted(core: &TestCore, port: u32) -> Option<super::super::Use> {
    match core.poll_accept(port, &mut context()) {
        Poll::Ready(accepted) => Some(accepted.unwrap().0),
        Poll::Pending => None,
    }
}

fn two_ports() -> (World, TestCore, TestCore) {
    let mut world = World::new();
    world.listen = vec![PORT, PORT + 1];
    let (host, guest) = (world.living(Side::Host), world.living(Side::Guest));
    (world, host, guest)
}

#[test]
fn an_open_that_took_the_place_of_another_goes_to_its_own_port() {
    for listens in [true, false] {
        the_second_open_goes_to_its_own_port(listens);
    }
}

fn the_second_open_goes_to_its_own_port(listens: bool) {
    let (_world, host, guest) = two_ports();
    let first = guest.try_open(&options(Kind::Message, PORT)).unwrap();
    host.serve();
    guest.close(first, Reason::Reset);
    host.serve();
    guest.serve();
    let second = guest.try_open(&options(Kind::Message, PORT + 1)).unwrap();
    host.serve();
    if listens {
        assert_eq!(accepted(&host, PORT), None, "the open was to another port");
    }
    let this = accepted(&host, PORT + 1).unwrap();
    if !listens {
        // Whoever stops listening where the first one waited takes nothing from the second one's owner.
        host.unlisten(PORT);
    }
    assert_eq!(this.generation, second.generation);
    assert!(host.poll_send(this, Publish::Now, None, b"x").is_ready());
    assert!(host.channel(this.slot).unwrap().held);
}

#[test]
fn opens_in_a_loop_that_nobody_accepts_take_no_memory() {
    let (_world, host, guest) = two_ports();
    for _ in 0..100 {
        let this = guest.try_open(&options(Kind::Message, PORT)).unwrap();
        host.serve();
        guest.close(this, Reason::Reset);
        host.serve();
        guest.serve();
    }
    assert!(host.listeners.lock()[&PORT].len() <= 2);
}

#[test]
fn whoever_listens_or_waits_for_a_slot_waits_for_the_peer() {
    let (_world, host, guest) = two_ports();
    assert!(!host.has_waiters());
    assert_eq!(accepted(&host, PORT), None);
    assert!(host.has_waiters(), "a bell for an open may be lost too");
    let _held = guest.try_open(&options(Kind::Message, PORT)).unwrap();
    assert!(!guest.has_waiters());
    for _ in 0..10 {
        assert!(guest.poll_open(&options(Kind::Message, PORT), &mut context()).is_pending());
    }
    assert!(guest.has_waiters(), "a bell for a slot may be lost too");
    assert_eq!(guest.vacancies.lock().len(), 1);
}

#[test]
fn a_channel_that_is_due_during_a_freeze_keeps_nobody_busy() {
    let world = World::new();
    let (host, _guest) = (world.living(Side::Host), world.living(Side::Guest));
    let policy = Policy { unadopted: Some(Duration::from_millis(1)), ..Policy::default() };
    host.try_open(&OpenOptions { policy, ..options(Kind::Message, PORT) }).unwrap();
    let host = world.living(Side::Host);
    let now = Instant::now() + Duration::from_secs(1);
    host.freeze();
    assert!(host.expire(now).unwrap() > now);
    host.thaw();
    assert_eq!(host.expire(now), None);
    assert_eq!(host.channels(), []);
}

#[test]
fn giving_up_is_finished_by_the_successor() {
    let give_up = |k| {
        let world = World::new();
        let guest = world.living(Side::Guest);
        let fuse = Fuse::new(k);
        let died = survives(|| {
            let host = world.attach(Side::Host, &fuse);
            let this = host.try_open(&options(Kind::Message, PORT)).unwrap();
            guest.serve();
            let produced = world.layout.record(Side::Guest, 0) + RecordWord::Produced as usize;
            throughline_shmem::Words::store(&*world.region, produced, 1 << 40, SeqCst);
            let received = host.poll_recv(this, Take::Consume, None, &mut Vec::new());
            assert!(matches!(received, Poll::Ready(Err(Error::Corrupt(_)))));
        })
        .is_none();
        let host = world.living(Side::Host);
        let channel = &host.slots[0].entry.lock().channel;
        let (phase, corrupt) = (channel.mine.phase, channel.corrupt.is_some());
        assert!(!corrupt || phase == Phase::Closed, "given up, and {phase:?} after {k} stores");
        let state = world.word(world.layout.record(Side::Host, 0));
        assert_eq!(state, channel.mine.encode());
        assert!(died || corrupt);
        (fuse.made(), corrupt)
    };
    let (stores, _) = give_up(u64::MAX);
    let marked = (0..stores).filter(|k| give_up(*k).1).count();
    assert!(marked >= 2, "deaths after the mark: {marked}");
}

#[test]
fn what_was_peeked_at_can_be_committed_in_pieces() {
    let world = World::new();
    let (host, guest) = (world.living(Side::Host), world.living(Side::Guest));
    let mine = host.try_open(&options(Kind::Stream, PORT)).unwrap();
    guest.serve();
    let theirs = accepted(&guest, PORT).unwrap();
    assert_eq!(host.poll_write(mine, Publish::Now, None, b"0123456789"), Poll::Ready(Ok(10)));
    assert_eq!(guest.poll_read(theirs, Take::Peek, None, &mut [0; 8]), Poll::Ready(Ok(8)));
    for piece in [3, 5] {
        assert_eq!(guest.poll_commit(theirs, Some(piece), &mut context()), Poll::Ready(Ok(())));
    }
    let more = guest.poll_commit(theirs, Some(1), &mut context());
    assert_eq!(more, Poll::Ready(Err(Error::NotPeeked { peeked: 0, asked: 1 })));
    let mut rest = [0; 8];
    assert_eq!(guest.poll_read(theirs, Take::Consume, None, &mut rest), Poll::Ready(Ok(2)));
    assert_eq!(&rest[..2], b"89");
}

/// The rig panics when a host touches a ring whose memory was never made to exist.
#[test]
fn a_full_file_system_refuses_an_open_and_loses_nothing() {
    let mut world = World::with(2);
    let _ = world.inspect(Side::Host);
    let (host, guest) = (world.living(Side::Host), world.living(Side::Guest));
    let old = host.try_open(&options(Kind::Message, PORT)).unwrap();
    guest.serve();
    let theirs = accepted(&guest, PORT).unwrap();
    world.room.store(RING / 8, SeqCst);
    // This side's open is an error; the peer's is refused, whatever it claims to have written.
    assert!(matches!(host.try_open(&options(Kind::Message, PORT)), Err(Error::Memory(_))));
    let refused = open_of_a_vm(&world, &guest);
    let produced = world.layout.record(Side::Guest, refused.slot) + RecordWord::Produced as usize;
    inspected(&world, || host.serve());
    assert_eq!(inspected(&world, || accepted(&host, PORT)), None);
    assert_eq!(guest.poll_answer(refused, &mut context()), Poll::Ready(Err(Error::Refused)));
    guest.close(refused, Reason::Normal);
    throughline_shmem::Words::store(&*world.region, produced, 64, SeqCst);
    for _ in 0..3 {
        assert!(inspected(&world, || host.serve()) <= 3, "the driver is kept busy");
    }
    // The channel that was there goes on.
    let mut out = Vec::new();
    assert_eq!(inspected(&world, || host.poll_send(old, Publish::Now, None, b"kept")), Poll::Ready(Ok(())));
    assert_eq!(guest.poll_recv(theirs, Take::Consume, None, &mut out), Poll::Ready(Ok(true)));
    assert_eq!(out, b"kept");
    // Space comes back, and with it both opens.
    world.room.store(u64::MAX, SeqCst);
    throughline_shmem::Words::store(&*world.region, produced, 0, SeqCst);
    inspected(&world, || host.serve());
    inspected(&world, || host.serve());
    guest.serve();
    host.try_open(&options(Kind::Message, PORT)).unwrap();
    let again = guest.try_open(&options(Kind::Message, PORT)).unwrap();
    assert_eq!(again.slot, refused.slot);
    inspected(&world, || host.serve());
    assert!(inspected(&world, || accepted(&host, PORT)).is_some());
}

fn inspected<T>(world: &World, operation: impl FnOnce() -> T) -> T {
    world.inspector.as_ref().unwrap().begin();
    operation()
}

/// In a VM the guest allocates nothing: its open does not depend on the host's room.
fn open_of_a_vm(world: &World, guest: &TestCore) -> super::super::Use {
    let room = world.room.swap(u64::MAX, SeqCst);
    let this = guest.try_open(&options(Kind::Message, PORT)).unwrap();
    world.room.store(room, SeqCst);
    this
}

/// A host that died in the middle of dropping what an abandoned open had left: in a restored region its
/// ring may be a hole. The rig panics when a host touches one.
#[test]
fn a_scrub_that_a_successor_finishes_has_memory() {
    let mut world = World::new();
    let taken = world.layout.record(Side::Host, 1) + RecordWord::Taken as usize;
    throughline_shmem::Words::store(&*world.sidecar, taken, 64, SeqCst);
    let _ = world.inspect(Side::Host);
    let _host = world.living(Side::Host);
    assert_eq!(world.word(world.layout.record(Side::Host, 1) + RecordWord::Freed as usize), 64);
}

#[test]
fn a_frozen_side_has_nothing_ready_and_so_never_polls_for_ever() {
    let (_world, host, guest) = two_ports();
    let this = host.try_open(&options(Kind::Message, PORT)).unwrap();
    guest.serve();
    let theirs = accepted(&guest, PORT).unwrap();
    host.serve();
    assert!(host.poll_recv(this, Take::Consume, Some(&mut context()), &mut Vec::new()).is_pending());
    host.freeze();
    assert!(guest.poll_send(theirs, Publish::Now, None, b"during").is_ready());
    assert_eq!((host.serve(), host.is_ready()), (0, false));
    host.thaw();
    assert!(host.poll_recv(this, Take::Consume, Some(&mut context()), &mut Vec::new()).is_ready());
}

#[test]
fn an_open_that_is_not_answered_yet_is_no_find_of_the_backstop() {
    let (_world, host, _guest) = two_ports();
    while host.serve() > 0 {}
    assert!(host.fall_asleep());
    host.try_open(&options(Kind::Message, PORT)).unwrap();
    assert_eq!(host.serve(), 0, "no bell was lost");
}

#[test]
fn a_channel_that_is_over_keeps_nothing_of_its_last_word() {
    let (world, host, guest) = two_ports();
    let this = host.try_open(&options(Kind::Stream, PORT)).unwrap();
    guest.serve();
    let theirs = accepted(&guest, PORT).unwrap();
    let tails = || {
        let tail = |side| world.layout.record(side, this.slot) + RecordWord::Tail as usize;
        [world.sidecar.load(tail(Side::Host), SeqCst), world.word(tail(Side::Guest))]
    };
    for (core, this) in [(&host, this), (&guest, theirs)] {
        assert!(core.poll_write(this, Publish::Now, None, b"secret").is_ready());
    }
    assert!(!tails().contains(&0));
    host.close(this, Reason::Normal);
    guest.close(theirs, Reason::Normal);
    while host.serve() + guest.serve() > 0 {}
    assert_eq!(tails(), [0, 0]);
}

#[test]
fn a_channel_that_was_given_up_in_an_attempt_leaves_nothing_ready() {
    let (world, host, guest) = two_ports();
    let this = host.try_open(&options(Kind::Message, PORT)).unwrap();
    guest.serve();
    accepted(&guest, PORT).unwrap();
    while host.serve() > 0 {}
    assert!(host.poll_recv(this, Take::Consume, Some(&mut context()), &mut Vec::new()).is_pending());
    world.region.store(world.layout.record(Side::Guest, this.slot), u64::MAX, SeqCst);
    let sent = host.poll_send(this, Publish::Now, None, b"x");
    assert!(matches!(sent, Poll::Ready(Err(Error::Corrupt(_)))));
    while host.serve() > 0 {}
    assert!(!host.is_ready(), "a driver that polls would never sleep again");
}

/// The peer may settle between this side's close and its look at the peer.
#[test]
fn a_channel_that_is_free_as_soon_as_it_is_closed_leaves_nothing_ready() {
    let (world, host, guest) = two_ports();
    let this = host.try_open(&options(Kind::Message, PORT)).unwrap();
    guest.serve();
    accepted(&guest, PORT).unwrap();
    while host.serve() > 0 {}
    assert!(host.poll_recv(this, Take::Consume, Some(&mut context()), &mut Vec::new()).is_pending());
    let settled = State::free(this.generation).encode();
    world.region.store(world.layout.record(Side::Guest, this.slot), settled, SeqCst);
    host.close(this, Reason::Normal);
    while host.serve() > 0 {}
    assert!(!host.is_ready(), "a driver that polls would never sleep again");
    assert!(!host.has_waiters(), "the backstop would run for ever");
}

/// The inspector panics when a word is read twice: whether anything was written decides nothing here.
#[test]
fn what_came_with_an_open_that_nobody_listens_for_is_looked_at_once() {
    let mut world = World::new();
    let _ = world.inspect(Side::Guest);
    let (host, guest) = (world.living(Side::Host), world.living(Side::Guest));
    let this = host.try_open(&options(Kind::Message, PORT + 1)).unwrap();
    assert!(host.poll_send(this, Publish::Now, None, b"to nobody").is_ready());
    host.close(this, Reason::Normal);
    inspected(&world, || guest.serve());
    let mine = guest.slots[this.slot].entry.lock().channel.mine;
    assert_eq!(mine, State::free(this.generation));
}
