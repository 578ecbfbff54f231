//! An application that knows nothing but what its link tells it: whoever starts it anew, at any
//! moment, it goes on where the bytes say. Its data are a function of their position.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use throughline_ring::{Kind, Phase, Reason, Side};

use super::super::{Publish, Take, Use};
use super::rig::{PORT, RING, TestCore};
use crate::core::{ChannelInfo, LABEL_BYTES, OpenOptions, Policy};
use crate::error::Error;

/// What one use of the slot is for. Its number is the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Both send so many messages, end, and close. The reader peeks and commits, or consumes.
    Messages { peek: bool },
    /// The same with bytes.
    Bytes { peek: bool },
    /// Nobody listens.
    Refused,
    /// The opener sends, and resets before it is answered.
    Abandoned,
    /// The opener sends and closes before it is answered: what it sent is still read.
    Hasty,
    /// Both send; the opener resets with unread bytes both ways.
    Reset,
}

pub(super) const PLANS: [Plan; 8] = [
    Plan::Messages { peek: false },
    Plan::Bytes { peek: true },
    Plan::Refused,
    Plan::Bytes { peek: false },
    Plan::Abandoned,
    Plan::Hasty,
    Plan::Reset,
    Plan::Messages { peek: true },
];

/// Lengths of the messages that each side sends in a use.
const LENGTHS: [usize; 5] = [5, 0, 40, 16, 3];
/// Bytes that each side streams in a use, written in pieces of these sizes.
const PIECES: [usize; 7] = [3, 9, 1, 8, 30, 13, 2];

fn stream_goal() -> u64 {
    PIECES.iter().sum::<usize>() as u64
}

/// What both applications' data depend on, besides the position: who is started anew sends other bytes
/// from where its predecessor was cut off, so that nothing of an unpublished attempt passes for it.
#[derive(Debug, Default)]
pub(super) struct Salt(HashMap<(Side, u32), u64>);

impl Salt {
    fn byte(&self, side: Side, generation: u32, at: u64) -> u8 {
        let anew = self.0.get(&(side, generation)).is_some_and(|from| at >= *from);
        (at as u8).wrapping_mul(31)
            ^ (generation as u8).wrapping_mul(77)
            ^ (side as u8 + 1)
            ^ if anew { 0xa5 } else { 0 }
    }

    fn message(&self, side: Side, generation: u32, index: usize) -> Vec<u8> {
        let at: u64 = LENGTHS[..index].iter().map(|len| span(*len)).sum();
        (0..LENGTHS[index] as u64).map(|byte| self.byte(side, generation, at + byte / 64)).collect()
    }
}

fn span(len: usize) -> u64 {
    8 + len.next_multiple_of(8) as u64
}

/// Which message begins at `at`; all of them end at the sum.
fn message_at(at: u64) -> usize {
    let mut sum = 0;
    for (index, len) in LENGTHS.iter().enumerate() {
        if sum == at {
            return index;
        }
        sum += span(*len);
    }
    assert_eq!(sum, at, "a position inside of a message");
    LENGTHS.len()
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Worked,
    Waits,
    /// All plans are done and the slot is free.
    Done,
}

/// One side's application on one slot.
pub(super) struct App {
    pub(super) side: Side,
    pub(super) slot: usize,
    pub(super) opens: bool,
    /// Generation, and end of what was handed over in it.
    delivered: (u32, u64),
    /// Where the next read may begin at the latest: beyond `delivered` only for a reader that died
    /// while bytes were being handed over to it.
    reading: u64,
    salt: Rc<RefCell<Salt>>,
}

impl App {
    /// Both sides'.
    pub(super) fn both(slot: usize) -> [Self; 2] {
        let salt = Rc::new(RefCell::new(Salt::default()));
        [Side::Host, Side::Guest].map(|side| {
            let opens = (side == Side::Host) == (slot == 0);
            Self { side, slot, opens, delivered: (0, 0), reading: 0, salt: salt.clone() }
        })
    }

    /// Its process is a new one.
    pub(super) fn begin_anew(&self, core: &TestCore) {
        if let Some(info) = core.channel(self.slot) {
            self.salt.borrow_mut().0.insert((self.side, info.id.generation), info.sent - info.sent_from);
        }
    }

    fn in_use(&self, core: &TestCore) -> (Use, Phase, bool) {
        let entry = core.slots[self.slot].entry.lock();
        let mine = entry.channel.mine;
        (Use { slot: self.slot, generation: mine.generation }, mine.phase, mine.tx_shut)
    }

    /// Does the next thing.
    pub(super) fn step(&mut self, core: &TestCore) -> Step {
        let (this, phase, shut) = self.in_use(core);
        let generation = this.generation.number();
        match (phase, self.opens) {
            (Phase::Live, _) => {
                let plan = PLANS[generation as usize - 1];
                let info = core.channel(self.slot).unwrap();
                assert_eq!(info.corrupt, None);
                if !info.held {
                    core.adopt(info.id).unwrap();
                }
                self.live(core, this, plan, shut, &info)
            }
            (Phase::Free, true) if generation as usize == PLANS.len() => Step::Done,
            (Phase::Free, true) => open(core, PLANS[generation as usize]),
            (Phase::Free, false) if self.waits_for_close(core, generation) => Step::Waits,
            (Phase::Free, false) => {
                core.serve();
                match core.poll_accept(PORT, &mut context()) {
                    Poll::Ready(accepted) => assert_eq!(accepted.unwrap().0.slot, self.slot),
                    Poll::Pending if generation as usize == PLANS.len() => return Step::Done,
                    Poll::Pending => return Step::Waits,
                }
                Step::Worked
            }
            (Phase::Closed, _) => {
                if core.serve() > 0 {
                    Step::Worked
                } else {
                    Step::Waits
                }
            }
        }
    }

    /// Some plans are about what happens when the acceptor is late.
    fn waits_for_close(&self, core: &TestCore, generation: u32) -> bool {
        let late = matches!(PLANS.get(generation as usize), Some(Plan::Abandoned | Plan::Hasty));
        let view = core.view(self.slot);
        let word = view.alleged(throughline_ring::RecordWord::State);
        let peer = throughline_ring::State::decode(word).unwrap();
        late && peer.phase == Phase::Live && peer.generation.number() == generation + 1
    }

    fn live(&mut self, core: &TestCore, this: Use, plan: Plan, shut: bool, info: &ChannelInfo) -> Step {
        let early = matches!(plan, Plan::Abandoned | Plan::Hasty) && self.opens;
        if plan == Plan::Refused {
            return match core.poll_answer(this, &mut context()) {
                Poll::Ready(answer) => {
                    assert_eq!(answer, Err(Error::Refused));
                    close(core, this, Reason::Normal)
                }
                Poll::Pending => served(core),
            };
        }
        match self.write(core, this, info) {
            Some(Poll::Ready(())) => return Step::Worked,
            // A guest writes once it is answered. Some give up before.
            Some(Poll::Pending) if !early => return served(core),
            _ => {}
        }
        match plan {
            Plan::Abandoned => return close(core, this, Reason::Reset),
            Plan::Reset if self.opens => {
                // Both rings hold bytes.
                return if info.unread > 0 { close(core, this, Reason::Reset) } else { served(core) };
            }
            Plan::Reset => {
                let end = core.poll_read(this, Take::Peek, Some(&mut context()), &mut [0; 1]);
                return if end == Poll::Ready(Err(Error::Reset)) {
                    close(core, this, Reason::Normal)
                } else {
                    served(core)
                };
            }
            _ => {}
        }
        if early {
            return close(core, this, Reason::Normal);
        }
        if !shut {
            let done = core.poll_shutdown(this, &mut context());
            assert_eq!(done, Poll::Ready(Ok(())));
            return Step::Worked;
        }
        self.read(core, this, plan, info)
    }

    /// Writes the next piece, if there is one.
    fn write(&self, core: &TestCore, this: Use, info: &ChannelInfo) -> Option<Poll<()>> {
        let (at, generation) = (info.sent - info.sent_from, this.generation.number());
        let late = matches!(PLANS[generation as usize - 1], Plan::Hasty) && !self.opens;
        let result = match info.kind {
            // To who has closed, nobody writes.
            _ if late => return None,
            Kind::Message => {
                let index = message_at(at);
                if index == LENGTHS.len() {
                    return None;
                }
                let payload = self.salt.borrow().message(self.side, generation, index);
                // Every other message is fed and flushed; the last one is published by the end.
                let publish =
                    if index.is_multiple_of(2) && index + 1 < LENGTHS.len() { Publish::Now } else { Publish::Batch };
                let sent = core.poll_send(this, publish, Some(&mut context()), &payload);
                if sent.is_ready() && index + 1 < LENGTHS.len() {
                    let _ = core.poll_flush(this, &mut context());
                } else if sent == Poll::Ready(Ok(())) {
                    let _ = core.poll_shutdown(this, &mut context());
                }
                sent
            }
            Kind::Stream => {
                let mut ends = PIECES.iter().scan(0, |sum, piece| {
                    *sum += *piece as u64;
                    Some(*sum)
                });
                let end = ends.find(|end| *end > at)?;
                let bytes: Vec<u8> = (at..end).map(|at| self.salt.borrow().byte(self.side, generation, at)).collect();
                core.poll_write(this, Publish::Now, Some(&mut context()), &bytes).map_ok(|_| ())
            }
        };
        if PLANS[generation as usize - 1] == Plan::Reset && result == Poll::Ready(Err(Error::Reset)) {
            return None;
        }
        Some(result.map(|done| assert_eq!(done, Ok(()), "writing at {at} of use {generation}: {info:?}")))
    }

    fn read(&mut self, core: &TestCore, this: Use, plan: Plan, info: &ChannelInfo) -> Step {
        let generation = this.generation.number();
        let at = info.received - info.received_from;
        if self.delivered.0 != generation {
            (self.delivered, self.reading) = ((generation, 0), 0);
        }
        assert!(at >= self.delivered.1, "bytes come twice: {at} after {}", self.delivered.1);
        assert!(at <= self.reading, "bytes are lost: {at} after {}", self.reading);
        let peeks = matches!(plan, Plan::Messages { peek: true } | Plan::Bytes { peek: true });
        let take = if peeks { Take::Peek } else { Take::Consume };
        let from = self.side.peer();
        // What this call may hand over; noted before, in case the process dies in it.
        self.reading = at + most(info.kind, at);
        let count = match info.kind {
            Kind::Message => {
                let mut out = Vec::new();
                let got = core.poll_recv(this, take, Some(&mut context()), &mut out);
                let Poll::Ready(got) = got else { return served(core) };
                if got.unwrap() {
                    let index = message_at(at);
                    assert_eq!(out, self.salt.borrow().message(from, generation, index), "message {index}");
                    span(out.len())
                } else {
                    0
                }
            }
            Kind::Stream => {
                let mut out = [0; 11];
                let got = core.poll_read(this, take, Some(&mut context()), &mut out);
                let Poll::Ready(got) = got else { return served(core) };
                let got = got.unwrap();
                for (index, found) in out[..got].iter().enumerate() {
                    assert_eq!(
                        *found,
                        self.salt.borrow().byte(from, generation, at + index as u64),
                        "byte {}",
                        at + index as u64
                    );
                }
                got as u64
            }
        };
        if count > 0 && peeks {
            let done = core.poll_commit(this, (info.kind == Kind::Stream).then_some(count), &mut context());
            assert_eq!(done, Poll::Ready(Ok(())));
        }
        self.delivered.1 = at + count;
        self.reading = at + count;
        if count == 0 {
            assert_eq!(at, goal(info.kind), "an early end");
            return close(core, this, Reason::Normal);
        }
        Step::Worked
    }
}

/// Bytes that one read may hand over.
fn most(kind: Kind, at: u64) -> u64 {
    match kind {
        Kind::Message => LENGTHS.get(message_at(at)).map_or(0, |len| span(*len)),
        Kind::Stream => 11.min(stream_goal() - at),
    }
}

fn goal(kind: Kind) -> u64 {
    match kind {
        Kind::Message => LENGTHS.iter().map(|len| span(*len)).sum(),
        Kind::Stream => stream_goal(),
    }
}

fn open(core: &TestCore, plan: Plan) -> Step {
    core.serve();
    let kind = match plan {
        Plan::Bytes { .. } | Plan::Hasty => Kind::Stream,
        _ => Kind::Message,
    };
    let port = if plan == Plan::Refused { PORT + 1 } else { PORT };
    match core.try_open(&options(kind, port)) {
        Ok(_) => Step::Worked,
        Err(error) => {
            assert_eq!(error, Error::Busy);
            Step::Waits
        }
    }
}

pub(super) fn options(kind: Kind, port: u32) -> OpenOptions {
    OpenOptions { port, kind, ring_bytes: RING, label: [b'x'; LABEL_BYTES], policy: Policy::default() }
}

fn close(core: &TestCore, this: Use, reason: Reason) -> Step {
    core.close(this, reason);
    Step::Worked
}

fn served(core: &TestCore) -> Step {
    if core.serve() > 0 { Step::Worked } else { Step::Waits }
}

pub(super) fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
