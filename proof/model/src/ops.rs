//! What the operations do, and what an onlooker checks.

use std::task::Poll;

use throughline::core::{OpenOptions, Policy, Publish, Take, Use};
use throughline::{Error, Side};
use throughline_ring::{Phase, Reason, RecordWord, State};
use throughline_shmem::sync::Ordering::Relaxed;
use throughline_shmem::{WORD, Words};

use crate::action::Op;
use crate::scenario::RING;
use crate::soft::{End, Flow, Task};
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
    pub(crate) fn held(&self, side: Side) -> (Use, u8) {
        let this = self.uses[side as usize].get();
        (this.expect("what takes a use is enabled with one only"), self.soft.borrow().live[side as usize])
    }

    /// One direction of a use, as the onlooker has it.
    pub(crate) fn with_flow<T>(&self, from: Side, generation: u8, change: impl FnOnce(&mut Flow) -> T) -> T {
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

    /// An operation on the use failed: was it the peer's doing?
    pub(crate) fn ended(&self, side: Side, generation: u8, error: Error) {
        let end = self.with_flow(side.peer(), generation, |flow| flow.end);
        let expected = match error {
            Error::Closed => end == End::Closed,
            Error::Reset => end == End::Reset,
            Error::Refused => self.soft.borrow().elsewhere,
            _ => false,
        };
        self.check(expected, "who ends a use is who is told to have done so");
    }

    pub(crate) fn is_frozen(&self, side: Side) -> bool {
        side == Side::Host && self.soft.borrow().frozen
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
            for (at, _) in before {
                memory.zero(at, 1);
            }
            for (at, value) in copy {
                memory.store(at, value, Relaxed);
            }
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
