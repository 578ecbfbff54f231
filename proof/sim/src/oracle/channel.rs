//! One use of a slot.

use throughline::{Error, Kind, Side};
use throughline_ring::Reason;

use super::flow::Flow;
use super::{Judged, Violation, ensure, is_reset, told_by};
use crate::call::{Action, Outcome, RING, UNLISTENED};
use crate::desk::span;

/// Where a side stands in a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stance {
    /// It has not answered.
    Absent,
    Live {
        shut: bool,
    },
    Closed(Reason),
}

/// What both sides did with a use. Arrays go by side.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    pub(super) kind: Kind,
    pub(super) port: u32,
    pub(super) expires: bool,
    pub(super) stance: [Stance; 2],
    /// What the other side sees of a dead one, whose last word reached its sidecar and not the region.
    pub(super) hidden: [Option<Stance>; 2],
    /// By writer.
    pub(super) flows: [Flow; 2],
    /// A close that waits for the thaw.
    pub(super) closing: [Option<Reason>; 2],
    pub(super) held: [bool; 2],
    /// When it is closed, adopted by nobody.
    pub(super) due: [Option<u64>; 2],
}

impl Channel {
    pub(super) fn opened(side: Side, kind: Kind, port: u32, expires: bool) -> Self {
        let mut stance = [Stance::Absent; 2];
        stance[side as usize] = Stance::Live { shut: false };
        let mut held = [false; 2];
        held[side as usize] = true;
        Self {
            kind,
            port,
            expires,
            stance,
            hidden: [None; 2],
            flows: Default::default(),
            closing: [None; 2],
            held,
            due: [None; 2],
        }
    }

    pub(super) fn is_live(&self, side: Side) -> bool {
        matches!(self.stance[side as usize], Stance::Live { .. })
    }

    /// Where the other side sees a side stand.
    fn seen(&self, side: Side) -> Stance {
        self.hidden[side as usize].unwrap_or(self.stance[side as usize])
    }

    pub(super) fn attached(&mut self, side: Side, due: Option<u64>) {
        self.hidden[side as usize] = None;
        self.due[side as usize] = due;
        let flow = &mut self.flows[side as usize];
        flow.published = flow.staged;
    }

    pub(super) fn close(&mut self, side: Side, reason: Reason) {
        if self.is_live(side) {
            self.stance[side as usize] = Stance::Closed(reason);
            self.held[side as usize] = false;
            let flow = &mut self.flows[side as usize];
            flow.published = flow.staged;
        }
    }

    /// Whether both sides are done with it; nothing may have been dropped that was to be read.
    pub(super) fn check_finished(&self, opener: Side) -> Judged {
        let (mine, theirs) = (self.stance[opener as usize], self.stance[opener.peer() as usize]);
        let Stance::Closed(reason) = mine else {
            return Err(Violation(format!("its opener is {mine:?}")));
        };
        match theirs {
            Stance::Closed(_) => Ok(()),
            Stance::Live { .. } => Err(Violation("its acceptor lives".to_owned())),
            Stance::Absent => {
                let dropped = self.flows[opener as usize].staged;
                let fine = is_reset(reason) || self.port == UNLISTENED || dropped == 0;
                ensure!(fine, "{dropped} bytes were sent, and nobody was asked to accept them");
                Ok(())
            }
        }
    }

    /// Whether an open waits for `side` to accept it.
    pub(super) fn awaits(&self, side: Side, port: u32) -> bool {
        let to_read = self.flows[side.peer() as usize].staged > 0;
        let offered = match self.stance[side.peer() as usize] {
            Stance::Live { .. } => true,
            Stance::Closed(reason) => !is_reset(reason) && to_read,
            Stance::Absent => false,
        };
        self.port == port && self.stance[side as usize] == Stance::Absent && offered
    }

    /// Judges what an attempt of `side` came to.
    pub(super) fn judge(
        &mut self,
        side: Side,
        opener: Side,
        frozen: bool,
        action: &Action,
        outcome: &Outcome,
    ) -> Judged {
        if *outcome == Outcome::Pending && frozen {
            return Ok(());
        }
        if let Outcome::Failed(error) = outcome {
            return self.failed(side, action, error);
        }
        if !matches!(action, Action::Close { .. }) {
            ensure!(self.is_live(side), "{action:?} came to {outcome:?} on a channel that is {:?}", self.stance);
        }
        if *outcome == Outcome::Pending {
            // Whoever waits publishes first.
            let flow = &mut self.flows[side as usize];
            flow.published = flow.staged;
            return self.may_wait(side, opener, action);
        }
        match (action, outcome) {
            (Action::Write { payload, feed }, Outcome::Wrote(count)) => {
                self.wrote(side, opener, &payload[..*count], *feed)
            }
            (Action::Read { max, peek }, Outcome::Got(bytes)) => self.got(side, bytes, *max, *peek),
            (Action::Read { .. }, Outcome::End) => self.ended(side),
            (Action::Commit { bytes, .. }, Outcome::Done) => {
                let flow = &mut self.flows[side.peer() as usize];
                flow.taken += bytes;
                ensure!(flow.taken <= flow.staged, "more was committed than was sent");
                Ok(())
            }
            (Action::Flush, Outcome::Done) => {
                self.flows[side as usize].published = self.flows[side as usize].staged;
                Ok(())
            }
            (Action::Shutdown, Outcome::Done) => {
                self.flows[side as usize].published = self.flows[side as usize].staged;
                self.stance[side as usize] = Stance::Live { shut: true };
                Ok(())
            }
            (Action::Close { reset }, Outcome::Done) => {
                let reason = if *reset { Reason::Reset } else { Reason::Normal };
                if frozen {
                    self.closing[side as usize] = Some(reason);
                } else {
                    self.close(side, reason);
                }
                Ok(())
            }
            _ => Err(Violation(format!("{action:?} came to {outcome:?}"))),
        }
    }

    /// Whether there is a reason to wait.
    pub(super) fn may_wait(&self, side: Side, opener: Side, action: &Action) -> Judged {
        match action {
            Action::Write { payload, .. } => self.write_waits(side, opener, payload.len()),
            Action::Read { .. } => self.read_waits(side),
            _ => Err(Violation(format!("{action:?} waits, and nothing is frozen"))),
        }
    }

    fn failed(&self, side: Side, action: &Action, error: &Error) -> Judged {
        let why = || format!("{action:?} failed with {error}, while the sides are {:?}", self.stance);
        let peer = self.seen(side.peer());
        let writes = matches!(action, Action::Write { .. });
        let fine = match (error, peer) {
            (Error::Closed, Stance::Closed(reason)) => writes && told_by(error) == Some(is_reset(reason)),
            (Error::Reset, Stance::Closed(reason)) => told_by(error) == Some(is_reset(reason)),
            (Error::Refused, Stance::Absent) => self.port == UNLISTENED,
            (Error::Shut, _) => writes && self.stance[side as usize] == Stance::Live { shut: true },
            (Error::TooLong { .. }, _) => match action {
                Action::Write { payload, .. } => span(payload.len()) > RING,
                _ => false,
            },
            _ => false,
        };
        ensure!(fine, "{}", why());
        Ok(())
    }

    /// Whether the peer's close can be seen.
    fn sees_close(&self, side: Side) -> Option<Reason> {
        match self.seen(side.peer()) {
            Stance::Closed(reason) => Some(reason),
            _ => None,
        }
    }

    fn wrote(&mut self, side: Side, opener: Side, bytes: &[u8], feed: bool) -> Judged {
        ensure!(self.stance[side as usize] == Stance::Live { shut: false }, "bytes were accepted after the end");
        ensure!(self.sees_close(side).is_none(), "bytes were accepted for a peer that has closed");
        let answered = self.seen(side.peer()) != Stance::Absent;
        ensure!(answered || opener == Side::Host, "the guest writes before it is answered");
        let flow = &mut self.flows[side as usize];
        let needed = if self.kind == Kind::Message { span(bytes.len()) } else { bytes.len() as u64 };
        ensure!(needed > 0 && needed <= flow.space(), "{needed} bytes were accepted into {} of space", flow.space());
        flow.push(self.kind, bytes);
        if !feed {
            flow.published = flow.staged;
        }
        Ok(())
    }

    fn write_waits(&self, side: Side, opener: Side, len: usize) -> Judged {
        let flow = &self.flows[side as usize];
        let needed = if self.kind == Kind::Message { span(len) } else { 1 };
        let answered = self.seen(side.peer()) != Stance::Absent;
        let must_wait = !answered && opener == Side::Guest;
        ensure!(self.sees_close(side).is_none(), "it waits for a peer that has closed");
        // A reader that died has not freed yet what it had taken: its successor does.
        let freed = self.held[side.peer() as usize] || !answered;
        ensure!(
            !freed || must_wait || needed > flow.space(),
            "it waits, and there are {} bytes of space",
            flow.space()
        );
        Ok(())
    }

    fn got(&mut self, side: Side, bytes: &[u8], max: usize, peek: bool) -> Judged {
        let reset = self.sees_close(side).is_some_and(is_reset);
        ensure!(!reset, "bytes of a peer that has reset");
        self.flows[side.peer() as usize].got(self.kind, bytes, max, peek)
    }

    fn ended(&self, side: Side) -> Judged {
        let flow = &self.flows[side.peer() as usize];
        let ended = match self.seen(side.peer()) {
            Stance::Live { shut } => shut,
            Stance::Closed(reason) => !is_reset(reason),
            Stance::Absent => false,
        };
        ensure!(ended, "an end, and the peer has not ended");
        ensure!(flow.taken == flow.staged, "an end after {} of {} bytes", flow.taken, flow.staged);
        Ok(())
    }

    fn read_waits(&self, side: Side) -> Judged {
        let flow = &self.flows[side.peer() as usize];
        ensure!(flow.published <= flow.taken, "it waits, and bytes {} to {} are there", flow.taken, flow.published);
        let seen_end = matches!(self.seen(side.peer()), Stance::Closed(_) | Stance::Live { shut: true });
        ensure!(!seen_end, "it waits for a peer that has ended");
        Ok(())
    }
}
