//! Two sides in the middle of something, and everything that one of them may do there.

use std::sync::Arc;
use std::task::Poll;

use throughline_ring::{Kind, Phase, Reason, Side};

use super::super::{Publish, Take, Use};
use super::app::{context, options};
use super::rig::{Inspector, PORT, RING, TestCore, World};
use crate::Event;

/// Words that one operation may load: a ring and a half, and what belongs to each slot.
const MOST_LOADS: u64 = RING / 8 * 3 / 2 + 200;

/// What is going on when the peer turns hostile. Slot 0 is opened by the side that is attacked, slot 2 by the attacker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Free,
    Unanswered(Kind),
    Live(Kind),
    /// With a partial last word in both rings, and both directions ended.
    Ended,
    Closed,
}

pub(super) const MOMENTS: [Moment; 7] = [
    Moment::Free,
    Moment::Unanswered(Kind::Stream),
    Moment::Unanswered(Kind::Message),
    Moment::Live(Kind::Stream),
    Moment::Live(Kind::Message),
    Moment::Ended,
    Moment::Closed,
];

pub(super) struct Scene {
    pub(super) world: World,
    pub(super) inspector: Arc<Inspector>,
    /// The side that is attacked, and its core.
    pub(super) side: Side,
    pub(super) me: TestCore,
    /// The other side's, which is honest; somebody else writes its words.
    pub(super) peer: TestCore,
    /// The channel that nobody attacks.
    pub(super) other: [Use; 1],
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
    pub(super) fn new(side: Side, moment: Moment) -> Self {
        let mut world = World::opened_first_by(side, 2);
        let scene = Self {
            inspector: world.inspect(side),
            me: world.living(side),
            peer: world.living(side.peer()),
            side,
            world,
            other: [Use { slot: 1, generation: throughline_ring::Generation::default() }],
        };
        scene.begin(moment)
    }

    pub(super) fn op<T>(&self, operation: impl FnOnce(&TestCore) -> T) -> T {
        self.inspector.begin();
        let result = operation(&self.me);
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
        let first = self.op(|me| me.try_open(&options(kind, PORT)).unwrap());
        let other = self.op(|me| me.try_open(&options(Kind::Message, PORT)).unwrap());
        assert_eq!((first.slot, other.slot), (0, 1));
        self.other = [other];
        let accepted = [accept(&self.peer), accept(&self.peer)];
        if moment == Moment::Free || matches!(moment, Moment::Unanswered(_)) {
            self.op(|me| me.close(first, Reason::Normal));
            self.peer.close(accepted[0], Reason::Normal);
            self.op(TestCore::serve);
            self.peer.serve();
        }
        match moment {
            Moment::Free => {}
            Moment::Unanswered(kind) => {
                let again = self.op(|me| me.try_open(&options(kind, PORT)).unwrap());
                if self.side == Side::Host {
                    // A guest writes once it is answered.
                    self.op(|me| put(me, again, kind));
                }
                self.peer.try_open(&options(kind, PORT)).unwrap();
            }
            _ => {
                let theirs = self.peer.try_open(&options(kind, PORT)).unwrap();
                self.op(TestCore::serve);
                let mine = self.op(accept);
                for (core, this) in [(&self.peer, accepted[0]), (&self.peer, theirs)] {
                    put(core, this, kind);
                }
                for this in [first, mine] {
                    self.op(|me| put_one_by_one(me, this, kind));
                }
                if moment == Moment::Ended {
                    for this in [first, mine] {
                        assert!(self.op(|me| me.poll_shutdown(this, &mut context())).is_ready());
                    }
                    for this in [accepted[0], theirs] {
                        assert!(self.peer.poll_shutdown(this, &mut context()).is_ready());
                    }
                }
                if moment == Moment::Closed {
                    self.op(|me| me.close(first, Reason::Normal));
                    self.op(|me| me.close(mine, Reason::Reset));
                }
            }
        }
        self
    }

    /// The life of a channel, from whatever it is in to its end and anew, whatever comes of it.
    pub(super) fn everything(&self, slot: usize) {
        self.settle();
        let (this, kind) = {
            let entry = self.me.slots[slot].entry.lock();
            (Use { slot, generation: entry.channel.mine.generation }, entry.channel.mine.kind)
        };
        let _ = self.op(TestCore::channels);
        let mut out = Vec::new();
        let mut bytes = [0; 64];
        for take in [Take::Peek, Take::Consume] {
            let _ = match kind {
                Kind::Message => self.op(|me| me.poll_recv(this, take, None, &mut out).is_ready()),
                Kind::Stream => self.op(|me| me.poll_read(this, take, None, &mut bytes).is_ready()),
            };
            assert!(out.capacity() <= 2 * RING as usize, "the peer decides how much memory is taken");
        }
        let _ = match kind {
            Kind::Message => self.op(|me| me.poll_send(this, Publish::Now, None, &[1; 3000]).is_ready()),
            Kind::Stream => self.op(|me| me.poll_write(this, Publish::Now, None, &[1; 4096]).is_ready()),
        };
        let _ = self.op(|me| me.poll_accept(PORT, &mut context()).is_ready());
        let _ = self.op(|me| me.poll_shutdown(this, &mut context()).is_ready());
        let _ = self.op(TestCore::fall_asleep);
        self.op(TestCore::wake_up);
        self.op(|me| me.close(this, Reason::Normal));
        self.settle();
        let _ = self.op(|me| me.try_open(&options(kind, PORT)));
        self.settle();
    }

    /// A few looks, and there is nothing more to find.
    pub(super) fn settle(&self) {
        for _ in 0..10 {
            if self.op(TestCore::serve) == 0 {
                return;
            }
        }
        panic!("the driver is kept busy");
    }

    /// The channel that nobody attacked carries a message each way.
    pub(super) fn others_go_on(&self) {
        let [other] = self.other;
        self.peer.serve();
        for round in 0..2 {
            let mut out = Vec::new();
            assert_eq!(self.op(|me| me.poll_send(other, Publish::Now, None, &[round; 9])), Poll::Ready(Ok(())));
            assert_eq!(self.peer.poll_recv(other, Take::Consume, None, &mut out), Poll::Ready(Ok(true)));
            assert_eq!(out, [round; 9]);
            assert_eq!(self.peer.poll_send(other, Publish::Now, None, &[round; 7]), Poll::Ready(Ok(())));
            let received = self.op(|me| me.poll_recv(other, Take::Consume, None, &mut out));
            assert_eq!((received, out.as_slice()), (Poll::Ready(Ok(true)), &[round; 7][..]));
        }
    }

    /// What was given up stays given up, in a new process too. Returns whether the slot was.
    pub(super) fn restart_remembers(&mut self, slot: usize) -> bool {
        let corrupt = self.me.slots[slot].entry.lock().channel.corrupt;
        let mut told = false;
        while let Poll::Ready(event) = self.me.poll_event(&mut context()) {
            told |= matches!(event, Event::Corrupt { channel, why } if channel == slot && Some(why) == corrupt);
        }
        assert_eq!(told, corrupt.is_some(), "whoever owns the channel is told");
        self.inspector.begin();
        self.me = self.world.living(self.side);
        let entry = self.me.slots[slot].entry.lock();
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
