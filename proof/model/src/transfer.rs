//! Sending and receiving, and what an onlooker checks of it.

use std::task::Poll;

use throughline::core::{Publish, Take};
use throughline_ring::{Kind, RecordWord, Side};

use crate::soft::{Flow, Task, length, unit};
use crate::world::{ModelCore, World};

impl World {
    pub(crate) fn send(&self, side: Side, core: &ModelCore, publish: Publish) {
        let (this, generation) = self.held(side);
        let (flow, pieces) = self.with_flow(side, generation, |flow| {
            let pieces = self.scenario.next_piece(flow.attempted);
            flow.attempted += pieces;
            (Flow { attempted: flow.attempted - pieces, ..*flow }, pieces)
        });
        let first = flow.attempted;
        let frozen = self.is_frozen(side);
        let units = (first..first + pieces).map(|index| (index, length(&self.scenario, index)));
        let bytes: Vec<u8> = units.flat_map(|(index, length)| unit(flow, side, generation, index, length)).collect();
        self.task(side, Task::Writer, |cx| {
            let sent = match self.scenario.kind {
                Kind::Message => core.poll_send(this, publish, Some(cx), &bytes).map_ok(|()| 1),
                Kind::Stream => core.poll_write(this, publish, Some(cx), &bytes).map_ok(|count| count as u8),
            };
            let done = match sent {
                Poll::Ready(Ok(units)) => units,
                _ => 0,
            };
            let accepted = self.with_flow(side, generation, |flow| {
                flow.attempted = first + done;
                // Who waits publishes what was staged before.
                let published = match sent {
                    Poll::Ready(done) => publish == Publish::Now && done.is_ok(),
                    Poll::Pending => !frozen,
                };
                flow.accepted = if published { flow.attempted } else { flow.accepted };
                flow.accepted
            });
            if let Poll::Ready(Err(error)) = sent {
                self.ended(side, generation, error);
                self.soft.borrow_mut().unwritable[side as usize] = true;
            }
            self.check_published(side, accepted);
            sent.is_pending()
        });
    }

    /// What was accepted is in the region when the call returns.
    fn check_published(&self, side: Side, accepted: u8) {
        let from = self.kept(side, RecordWord::SentFrom);
        let published = self.word(side, RecordWord::Produced).wrapping_sub(from);
        self.check(published >= self.scenario.position(accepted), "what a call accepted is in the region");
    }

    pub(crate) fn flush(&self, side: Side, core: &ModelCore) {
        let (this, generation) = self.held(side);
        self.task(side, Task::Writer, |cx| {
            let flushed = core.poll_flush(this, cx);
            if flushed.is_ready() {
                let accepted = self.with_flow(side, generation, |flow| {
                    flow.accepted = flow.attempted;
                    flow.accepted
                });
                self.check_published(side, accepted);
            }
            flushed.is_pending()
        });
    }

    pub(crate) fn receive(&self, side: Side, core: &ModelCore, take: Take) {
        let (this, generation) = self.held(side);
        let (peer, at) = (side.peer(), side as usize);
        let most = if self.scenario.kind == Kind::Message { 1 } else { self.scenario.read };
        self.with_flow(peer, generation, |flow| flow.at_most = flow.delivered + most);
        self.task(side, Task::Reader, |cx| {
            let mut out = Vec::new();
            let got = match self.scenario.kind {
                Kind::Message => core.poll_recv(this, take, Some(cx), &mut out).map_ok(u8::from),
                Kind::Stream => {
                    out.resize(most.into(), 0);
                    let got = core.poll_read(this, take, Some(cx), &mut out).map_ok(|count| count as u8);
                    out.truncate(if let Poll::Ready(Ok(count)) = got { count.into() } else { 0 });
                    got
                }
            };
            match got {
                Poll::Ready(Ok(0)) => self.at_the_end(side, generation),
                Poll::Ready(Ok(units)) => {
                    self.check_bytes(peer, generation, units, &out);
                    if take == Take::Peek {
                        self.soft.borrow_mut().peeked[at] = units;
                    } else {
                        self.with_flow(peer, generation, |flow| flow.delivered += units);
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.ended(side, generation, error);
                    self.soft.borrow_mut().read_up[at] = true;
                }
                Poll::Pending => {}
            }
            self.with_flow(peer, generation, |flow| flow.at_most = flow.delivered);
            got.is_pending()
        });
    }

    /// The bytes are those that the peer sent next in this use.
    fn check_bytes(&self, from: Side, generation: u8, units: u8, out: &[u8]) {
        let flow = self.with_flow(from, generation, |flow| *flow);
        self.check(flow.delivered + units <= flow.attempted, "nothing comes that was not sent");
        let indices = flow.delivered..flow.delivered + units;
        let expected = indices.flat_map(|index| unit(flow, from, generation, index, length(&self.scenario, index)));
        self.check(expected.eq(out.iter().copied()), "what comes is what was sent next, in this use");
    }

    fn at_the_end(&self, side: Side, generation: u8) {
        let flow = self.with_flow(side.peer(), generation, |flow| *flow);
        self.check(flow.ended, "only who has ended is at the end");
        self.check(flow.delivered >= flow.accepted, "the end comes after the last byte");
        self.soft.borrow_mut().read_up[side as usize] = true;
    }

    pub(crate) fn commit(&self, side: Side, core: &ModelCore) {
        let (this, generation) = self.held(side);
        let peeked = self.soft.borrow().peeked[side as usize];
        let peer = side.peer();
        self.with_flow(peer, generation, |flow| flow.at_most = flow.delivered + peeked);
        let bytes = (self.scenario.kind == Kind::Stream).then_some(peeked.into());
        self.task(side, Task::Reader, |cx| {
            let done = core.poll_commit(this, bytes, cx);
            match done {
                Poll::Ready(Ok(())) => {
                    self.with_flow(peer, generation, |flow| flow.delivered += peeked);
                    self.soft.borrow_mut().peeked[side as usize] = 0;
                }
                Poll::Ready(Err(_)) => self.breaks("what was looked at can be consumed"),
                Poll::Pending => {}
            }
            self.with_flow(peer, generation, |flow| flow.at_most = flow.delivered);
            done.is_pending()
        });
    }
}
