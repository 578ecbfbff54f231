//! What becomes of what a process was doing when it died.

use throughline::{Kind, Side};
use throughline_ring::{Phase, Reason, RecordWord, State};

use super::channel::{Channel, Stance};
use super::{Judged, Oracle, Standing, Violation, ensure};
use crate::call::{Action, Plan};
use crate::raw::Raw;

impl Oracle {
    /// A process of `side` is gone, in the middle of `plan` if there is one. What it left decides what
    /// happened: all of it, nothing, or a part that makes sense.
    pub(crate) fn died(&mut self, side: Side, plan: Option<&Plan>, raw: &Raw<'_>) -> Judged {
        let now = self.now;
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            if slot.spoilt {
                continue;
            }
            let kept = raw.kept_state(side, at).ok_or_else(|| Violation(format!("slot {at} keeps no state")))?;
            let opening = plan.map(|plan| &plan.action).filter(|_| slot.opener == side);
            if let Some(Action::Open { kind, port, expires }) = opening
                && kept.generation.number() == slot.generation + 1
                && kept.phase == Phase::Live
            {
                slot.generation += 1;
                slot.channel = Some(Channel::opened(side, *kind, *port, *expires));
            }
            let generation = slot.generation;
            let Some(channel) = &mut slot.channel else { continue };
            let about = plan.filter(|plan| plan.on.is_none_or(|on| (on.0, on.1) == (at, generation)));
            let due = channel.due[side as usize].is_some_and(|due| due <= now);
            let lived = channel.is_live(side);
            let seen = channel.hidden[side as usize].unwrap_or(channel.stance[side as usize]);
            channel.resolve(side, generation, kept, about.map(|plan| &plan.action), due).map_err(|why| {
                Violation(format!("{side:?} died in {plan:?}; slot {at}, use {generation}, keeps {kept:?}: {why}"))
            })?;
            let hides = kept.encode() != raw.shown(side, at, RecordWord::State);
            channel.hidden[side as usize] = hides.then_some(seen);
            if channel.is_live(side) {
                channel.cut(side, at, about.filter(|_| lived), raw)?;
            }
            channel.held[side as usize] = false;
            channel.closing[side as usize] = None;
            channel.due[side as usize] = None;
        }
        self.sides[side as usize] = Standing::default();
        Ok(())
    }
}

impl Channel {
    /// Where the dead side stands.
    fn resolve(&mut self, side: Side, generation: u32, kept: State, action: Option<&Action>, due: bool) -> Judged {
        let stance = self.stance[side as usize];
        let at_all = kept.generation.number();
        let closing = self.closing[side as usize];
        let may_close = |reason: Reason| match action {
            Some(Action::Close { reset }) => reason == if *reset { Reason::Reset } else { Reason::Normal },
            Some(Action::Thaw | Action::Control) => closing == Some(reason),
            Some(Action::Tick) => due && reason == Reason::Expired,
            _ => false,
        };
        let (fine, now) = match (stance, kept.phase) {
            (Stance::Live { shut }, Phase::Live) => {
                let shutting = matches!(action, Some(Action::Shutdown));
                (at_all == generation && (kept.tx_shut == shut || shutting), Stance::Live { shut: kept.tx_shut })
            }
            (Stance::Live { .. }, Phase::Closed) => {
                (at_all == generation && may_close(kept.reason), Stance::Closed(kept.reason))
            }
            // Closed and settled in one call.
            (Stance::Live { .. }, Phase::Free) => {
                let reasons = [Reason::Normal, Reason::Reset, Reason::Expired];
                let reason = reasons.into_iter().find(|reason| may_close(*reason));
                (at_all == generation && reason.is_some(), Stance::Closed(reason.unwrap_or(Reason::Normal)))
            }
            (Stance::Absent, Phase::Live) => {
                let accepting = matches!(action, Some(Action::Accept { .. }));
                (at_all == generation && accepting, Stance::Live { shut: false })
            }
            (Stance::Absent, Phase::Free) => (at_all == generation || at_all + 1 == generation, stance),
            (Stance::Absent, Phase::Closed) => (at_all == generation && kept.reason == Reason::Refused, stance),
            (Stance::Closed(reason), Phase::Closed) => (at_all == generation && kept.reason == reason, stance),
            (Stance::Closed(_), Phase::Free) => (at_all == generation, stance),
            (Stance::Closed(_), Phase::Live) => (false, stance),
        };
        ensure!(fine, "it was {stance:?}");
        if let (Stance::Live { .. }, Stance::Closed(_)) = (stance, now) {
            let flow = &mut self.flows[side as usize];
            flow.published = flow.staged;
            self.held[side as usize] = false;
        }
        self.stance[side as usize] = now;
        Ok(())
    }

    /// Where its cursors stand.
    fn cut(&mut self, side: Side, at: usize, plan: Option<&Plan>, raw: &Raw<'_>) -> Judged {
        let from = raw.kept(side, at, RecordWord::SentFrom);
        let end = raw.kept(side, at, RecordWord::Produced).wrapping_sub(from);
        let shown = raw.shown(side, at, RecordWord::Produced).saturating_sub(from);
        let kind = self.kind;
        let flow = &mut self.flows[side as usize];
        match plan.map(|plan| &plan.action) {
            Some(Action::Write { payload, .. }) => flow.cut(kind, end, shown, Some(payload))?,
            _ => flow.cut(kind, end, shown, None)?,
        }
        let received_from = raw.kept(side, at, RecordWord::ReceivedFrom);
        let taken = raw.kept(side, at, RecordWord::Taken).max(raw.kept(side, at, RecordWord::Freed));
        let taken = taken.wrapping_sub(received_from);
        let flow = &mut self.flows[side.peer() as usize];
        let most = match plan.map(|plan| &plan.action) {
            Some(Action::Read { max, peek: false }) => flow.next_span(kind, *max),
            Some(Action::Commit { bytes, .. }) => *bytes,
            _ => 0,
        };
        let before = flow.taken;
        let whole = kind == Kind::Stream || taken == before || taken == before + most;
        ensure!(
            (before..=before + most).contains(&taken) && whole,
            "{side:?} died, slot {at}: {before} bytes were handed over and {most} under way, and {taken} are kept as taken"
        );
        flow.taken = taken;
        Ok(())
    }
}
