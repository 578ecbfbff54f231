//! What the operations do, and what an onlooker checks.

use std::task::Poll;

use throughline::core::{OpenOptions, Policy, Publish, Take, Use};
use throughline::{Error, Side};
use throughline_ring::{Kind, Phase, Reason, RecordWord, State};
use throughline_shmem::sync::Ordering::Relaxed;
use throughline_shmem::{WORD, Words};

use crate::action::Op;
use crate::scenario::RING;
use crate::soft::{End, Flow, Task, length, unit};
use crate::world::{ModelCore, PORT, SLOT, World};

impl World {
    /// Does it.
    pub(crate) fn run(&self, side: Side, op: Op) {
        if op == Op::Attach {
            return self.attach(side);
        }
        let Some(core) = self.core(side) else { return };
        match op {
            Op::Open => self.open(side, &core, PORT),
            Op::OpenElsewhere => self.open(side, &core, PORT + 1),
            Op::Accept => self.accept(side, &core),
            Op::Send => self.send(side, &core, Publish::Now),
            Op::Feed => self.send(side, &core, Publish::Batch),
            Op::Flush => self.flush(side, &core),
            Op::Recv => self.receive(side, &core, Take::Consume),
            Op::Peek => self.receive(side, &core, Take::Peek),
            Op::Commit => self.commit(side, &core),
            Op::Shutdown => self.shutdown(side, &core),
            Op::Close => self.close(side, &core, Reason::Normal),
            Op::Reset => self.close(side, &core, Reason::Reset),
            Op::Drive => {
                if core.serve() == 0 {
                    let asleep = core.fall_asleep();
                    self.soft.borrow_mut().asleep[side as usize] = asleep;
                }
            }
            Op::Woken => {
                self.lines.pending[side as usize].set(false);
                self.soft.borrow_mut().asleep[side as usize] = false;
                core.wake_up();
                core.serve();
            }
            Op::Backstop => {
                self.soft.borrow_mut().asleep[side as usize] = false;
                core.serve();
                core.wake_up();
            }
            Op::Spurious | Op::Lose | Op::HangUp => self.line(side, op),
            Op::Die => {
                self.soft.borrow_mut().left.deaths -= 1;
                drop(core);
                self.die(side);
            }
            Op::Freeze => {
                self.soft.borrow_mut().left.freezes -= 1;
                core.freeze();
                self.soft.borrow_mut().frozen = true;
            }
            Op::Thaw => {
                core.thaw();
                // As the link does: what came during the freeze has still to be served.
                core.wake_up();
                let soft = &mut *self.soft.borrow_mut();
                (soft.frozen, soft.asleep[side as usize]) = (false, false);
            }
            Op::Restore => self.restore(&core),
            Op::Attach => {}
        }
    }

    fn line(&self, side: Side, op: Op) {
        let (soft, at) = (&mut *self.soft.borrow_mut(), side as usize);
        match op {
            Op::Spurious => {
                soft.left.spurious -= 1;
                self.lines.pending[at].set(true);
            }
            Op::Lose => {
                (soft.left.losses, soft.silent) = (soft.left.losses - 1, true);
                self.lines.pending[at].set(false);
            }
            _ => {
                soft.left.hang_ups -= 1;
                self.lines.hung[at].set(true);
            }
        }
    }

    /// The use that the application holds, and its number.
    fn held(&self, side: Side) -> (Use, u8) {
        let this = self.uses[side as usize].get();
        (this.expect("what takes a use is enabled with one only"), self.soft.borrow().live[side as usize])
    }

    /// One direction of a use, as the onlooker has it.
    fn with_flow<T>(&self, from: Side, generation: u8, change: impl FnOnce(&mut Flow) -> T) -> T {
        change(self.soft.borrow_mut().flow(from, generation))
    }

    fn open(&self, side: Side, core: &ModelCore, port: u32) {
        let generation = self.soft.borrow().opened + 1;
        let before = {
            let soft = &mut *self.soft.borrow_mut();
            let before = (soft.opened, soft.elsewhere);
            // The peer may see the use before this call is over.
            (soft.opened, soft.elsewhere) = (generation, port != PORT);
            *soft.flow(Side::Host, generation) = Flow::default();
            *soft.flow(Side::Guest, generation) = Flow::default();
            before
        };
        let kind = self.scenario.kind;
        let options = OpenOptions { port, kind, ring_bytes: RING, label: [b'x'; 32], policy: Policy::default() };
        self.task(side, Task::Opener, |cx| match core.poll_open(&options, cx) {
            Poll::Ready(Ok(this)) => {
                self.check(this.generation.number() == u32::from(generation), "each open is the next use");
                self.begins(side, this);
                false
            }
            Poll::Ready(Err(_)) => {
                self.breaks("an open does not fail");
                false
            }
            Poll::Pending => {
                let soft = &mut *self.soft.borrow_mut();
                (soft.opened, soft.elsewhere) = before;
                true
            }
        });
    }

    fn begins(&self, side: Side, this: Use) {
        let (soft, at) = (&mut *self.soft.borrow_mut(), side as usize);
        self.uses[at].set(Some(this));
        soft.live[at] = this.generation.number() as u8;
        (soft.read_up[at], soft.unwritable[at], soft.peeked[at]) = (false, false, 0);
    }

    fn accept(&self, side: Side, core: &ModelCore) {
        self.task(side, Task::Opener, |cx| match core.poll_accept(PORT, cx) {
            Poll::Ready(Ok((this, kind))) => {
                let (opened, elsewhere) = (self.soft.borrow().opened, self.soft.borrow().elsewhere);
                self.check(this.generation.number() == u32::from(opened), "what is accepted was opened");
                self.check(kind == self.scenario.kind && !elsewhere, "what is accepted is what was opened");
                self.begins(side, this);
                false
            }
            Poll::Ready(Err(_)) => {
                self.breaks("a listener goes on");
                false
            }
            Poll::Pending => true,
        });
    }

    fn send(&self, side: Side, core: &ModelCore, publish: Publish) {
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
                let published = publish == Publish::Now || sent.is_pending() && !frozen;
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

    fn is_frozen(&self, side: Side) -> bool {
        side == Side::Host && self.soft.borrow().frozen
    }

    /// What was accepted is in the region when the call returns.
    fn check_published(&self, side: Side, accepted: u8) {
        let from = self.kept(side, RecordWord::SentFrom);
        let published = self.word(side, RecordWord::Produced).wrapping_sub(from);
        self.check(published >= self.scenario.position(accepted), "what a call accepted is in the region");
    }

    fn flush(&self, side: Side, core: &ModelCore) {
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

    /// An operation on the use failed: was it the peer's doing?
    fn ended(&self, side: Side, generation: u8, error: Error) {
        let end = self.with_flow(side.peer(), generation, |flow| flow.end);
        let expected = match error {
            Error::Closed => end == End::Closed,
            Error::Reset => end == End::Reset,
            Error::Refused => self.soft.borrow().elsewhere,
            _ => false,
        };
        self.check(expected, "who ends a use is who is told to have done so");
    }

    fn receive(&self, side: Side, core: &ModelCore, take: Take) {
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

    fn commit(&self, side: Side, core: &ModelCore) {
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

    fn shutdown(&self, side: Side, core: &ModelCore) {
        let (this, generation) = self.held(side);
        if !self.is_frozen(side) {
            self.with_flow(side, generation, |flow| {
                (flow.end, flow.accepted, flow.ended) = (End::Shut, flow.attempted, true);
            });
        }
        self.task(side, Task::Writer, |cx| match core.poll_shutdown(this, cx) {
            Poll::Ready(done) => {
                self.check(done.is_ok(), "an end is told");
                false
            }
            Poll::Pending => true,
        });
    }

    fn close(&self, side: Side, core: &ModelCore, reason: Reason) {
        let (this, generation) = self.held(side);
        let end = if reason == Reason::Normal { End::Closed } else { End::Reset };
        self.with_flow(side, generation, |flow| {
            flow.end = end;
            if end == End::Closed {
                (flow.accepted, flow.ended) = (flow.attempted, true);
            }
        });
        core.close(this, reason);
        let (soft, at) = (&mut *self.soft.borrow_mut(), side as usize);
        soft.live[at] = 0;
        // Whoever waited there has been told.
        soft.blocked[at] &= 1 << Task::Opener as u8;
        (soft.read_up[at], soft.unwritable[at], soft.peeked[at]) = (false, false, 0);
    }

    /// A new process's application goes on where its link says.
    pub(crate) fn adopt(&self, side: Side, core: &ModelCore) {
        let Ok(state) = State::decode(self.kept(side, RecordWord::State)) else {
            return self.breaks("a side keeps what is a state");
        };
        let generation = state.generation.number() as u8;
        if side == self.scenario.opener {
            // An open that was not kept did not happen.
            self.soft.borrow_mut().opened = generation;
        }
        if state.phase != Phase::Live {
            return;
        }
        let Some(info) = core.channel(SLOT) else { return self.breaks("a live channel is listed") };
        let Ok((this, _)) = core.adopt(info.id) else { return self.breaks("a live channel is adopted") };
        self.begins(side, this);
        let (sent, received) = (info.sent - info.sent_from, info.received - info.received_from);
        let (Some(sent), Some(received)) = (self.scenario.units(sent), self.scenario.units(received)) else {
            return self.breaks("cursors stand between messages");
        };
        let mine = self.with_flow(side, generation, |flow| {
            let before = *flow;
            (flow.accepted, flow.attempted) = (sent, sent);
            // A second successor sends what the first one would have sent.
            flow.salted = if flow.salted == 0 { sent + 1 } else { flow.salted };
            flow.end = if state.tx_shut { End::Shut } else { End::Open };
            flow.ended = state.tx_shut;
            before
        });
        self.check((mine.accepted..=mine.attempted).contains(&sent), "what was accepted survives, and nothing else");
        let theirs = self.with_flow(side.peer(), generation, |flow| {
            let before = *flow;
            (flow.delivered, flow.at_most) = (received, received);
            before
        });
        let range = theirs.delivered..=theirs.at_most.max(theirs.delivered);
        self.check(range.contains(&received), "a reader's successor goes on where it stood");
    }

    fn restore(&self, core: &ModelCore) {
        core.freeze();
        let (mut region, mut sidecar) = (Vec::new(), Vec::new());
        let copied = core.copy_region(|at, bytes| {
            region.extend(words(at, bytes));
            Ok::<_, ()>(())
        });
        let kept = core.copy_sidecar(|at, bytes| {
            sidecar.extend(words(at, bytes));
            Ok::<_, ()>(())
        });
        self.check(copied.is_ok() && kept.is_ok(), "a frozen link can be copied");
        for (memory, copy) in [(&self.region, region), (&self.sidecar, sidecar)] {
            let before: Vec<_> = memory.nonzero().collect();
            before.iter().for_each(|(at, _)| memory.zero(*at, 1));
            copy.iter().for_each(|(at, value)| memory.store(*at, *value, Relaxed));
        }
        let died = self.soft.borrow().died;
        self.die(Side::Host);
        // The guest lives on, and nothing is unresolved; but bells were lost, and are rung again.
        self.lines.cut();
        {
            let soft = &mut *self.soft.borrow_mut();
            soft.left.restores -= 1;
            soft.died = died;
        }
        self.attach(Side::Host);
    }
}

/// The words of a piece of a copy that are not zero, with their places.
fn words(at: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
    (at as usize / WORD..).zip(words).filter(|(_, value)| *value != 0)
}
