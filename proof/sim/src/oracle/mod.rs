//! What each timeline must see: every byte once, in order, of this use and no other, and then the end.

mod channel;
mod death;
mod flow;
mod scrub;

use throughline::{Error, Kind, Side};
use throughline_ring::{LinkWord, Phase, Reason, RecordWord, State};

use crate::call::{Action, Outcome, Plan, UNADOPTED_MS, UNLISTENED};
use crate::raw::Raw;
use channel::{Channel, Stance};

pub(crate) use scrub::{Orphans, check_memory, find_orphans};

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

pub(crate) type Judged<T = ()> = Result<T, Violation>;

/// Fails with a violation unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($why:tt)*) => {
        if !$holds {
            return Err($crate::oracle::Violation(format!($($why)*)));
        }
    };
}
pub(crate) use ensure;

/// A side, as far as the oracle knows.
#[derive(Clone, Debug, Default)]
struct Standing {
    alive: bool,
    frozen: bool,
}

/// A slot and its present, or last, use.
#[derive(Clone, Debug)]
struct Slot {
    opener: Side,
    generation: u32,
    channel: Option<Channel>,
    /// A hostile guest wrote rubbish there: whatever the host's process makes of it, it costs no other slot.
    spoilt: bool,
}

/// What one timeline must see.
#[derive(Clone, Debug)]
pub(crate) struct Oracle {
    sides: [Standing; 2],
    slots: Vec<Slot>,
    timeline: u128,
    /// A hostile guest wrote rubbish into its link words.
    is_link_spoilt: bool,
    /// Milliseconds.
    pub(crate) now: u64,
}

impl Oracle {
    pub(crate) fn new(openers: impl Iterator<Item = Side>, timeline: u128) -> Self {
        let slots = openers.map(|opener| Slot { opener, generation: 0, channel: None, spoilt: false }).collect();
        Self { sides: Default::default(), slots, timeline, is_link_spoilt: false, now: 0 }
    }

    /// From now on everything belongs to another timeline.
    pub(crate) fn branch(&mut self, timeline: u128) {
        self.timeline = timeline;
    }

    /// From now on the guest's words of a slot, or of the link, say anything.
    pub(crate) fn spoil(&mut self, slot: Option<usize>) {
        match slot {
            Some(slot) => self.slots[slot].spoilt = true,
            None => self.is_link_spoilt = true,
        }
    }

    /// Whether a guest was ever hostile.
    pub(crate) fn is_hostile(&self) -> bool {
        self.is_link_spoilt || self.slots.iter().any(|slot| slot.spoilt)
    }

    pub(crate) fn is_spoilt(&self, slot: usize) -> bool {
        self.slots[slot].spoilt
    }

    fn is_about_spoilt(&self, plan: &Plan, outcome: &Outcome) -> bool {
        let about = match outcome {
            Outcome::Opened(slot, _) | Outcome::Accepted(slot, ..) => Some(*slot),
            _ => plan.on.map(|(slot, ..)| slot),
        };
        about.is_some_and(|slot| self.slots[slot].spoilt)
    }

    pub(crate) fn is_frozen(&self, side: Side) -> bool {
        self.sides[side as usize].frozen
    }

    fn channel(&mut self, plan: &Plan) -> Judged<(&mut Channel, Side)> {
        let (slot, generation, _) = plan.on.ok_or_else(|| Violation("no channel".to_owned()))?;
        let found = &mut self.slots[slot];
        ensure!(found.generation == generation, "slot {slot} is in use {}, not {generation}", found.generation);
        let opener = found.opener;
        let channel = found.channel.as_mut().ok_or_else(|| Violation(format!("slot {slot} was never opened")))?;
        Ok((channel, opener))
    }

    /// A process of `side` has let go of everything, in good order.
    pub(crate) fn detached(&mut self, side: Side) {
        self.sides[side as usize] = Standing::default();
        for channel in self.slots.iter_mut().filter_map(|slot| slot.channel.as_mut()) {
            channel.held[side as usize] = false;
        }
    }

    /// A process of `side` runs, which may be one that ran before.
    pub(crate) fn started(&mut self, side: Side) {
        if !self.sides[side as usize].alive {
            self.attached(side);
        }
    }

    /// A process of `side` has started.
    pub(crate) fn attached(&mut self, side: Side) {
        self.sides[side as usize] = Standing { alive: true, frozen: false };
        let due = self.now + UNADOPTED_MS;
        for slot in &mut self.slots {
            if let Some(channel) = &mut slot.channel {
                let expires = channel.expires && slot.opener == side && channel.is_live(side);
                channel.attached(side, expires.then_some(due));
            }
        }
    }

    /// Judges what an attempt came to.
    pub(crate) fn judge(&mut self, side: Side, plan: &Plan, outcome: &Outcome) -> Judged {
        let frozen = self.is_frozen(side);
        if self.is_about_spoilt(plan, outcome) {
            return Ok(());
        }
        match (&plan.action, outcome) {
            (Action::Open { kind, port, expires }, Outcome::Opened(slot, generation)) => {
                self.opened(side, (*slot, *generation), *kind, *port, *expires)
            }
            (Action::Accept { port }, Outcome::Accepted(slot, generation, kind)) => {
                self.accepted(side, (*slot, *generation), *kind, *port)
            }
            (Action::Open { .. } | Action::Accept { .. } | Action::Control, Outcome::Pending) => Ok(()),
            (Action::Open { .. }, Outcome::Failed(Error::NoSuchSlot)) => {
                ensure!(self.slots.iter().all(|slot| slot.opener != side), "there is a slot that {side:?} opens");
                Ok(())
            }
            (Action::Adopt, Outcome::Adopted(list)) => self.adopted(side, list),
            (Action::Freeze, _) => {
                self.sides[side as usize].frozen = true;
                Ok(())
            }
            (Action::Thaw, _) => {
                self.thawed(side);
                Ok(())
            }
            (_, Outcome::Followed(number)) => {
                if number % 2 == 1 {
                    self.sides[side as usize].frozen = true;
                } else {
                    self.thawed(side);
                }
                Ok(())
            }
            (_, Outcome::TookOn(identity)) => {
                if self.is_link_spoilt {
                    return Ok(());
                }
                let whole = identity.entropy == [identity.seq as u8; 64] && identity.clock_ns == identity.seq;
                ensure!(whole && identity.seq > 0, "a torn identity: {identity:?}");
                ensure!(identity.epoch == self.timeline, "the identity of another timeline: {identity:?}");
                Ok(())
            }
            (Action::Tick, _) => {
                self.expired(side);
                Ok(())
            }
            (Action::Drive | Action::GiveIdentity | Action::AskQuiet | Action::LiftQuiet | Action::Control, _) => {
                Ok(())
            }
            _ => {
                let (channel, opener) = self.channel(plan)?;
                channel.judge(side, opener, frozen, &plan.action, outcome)
            }
        }
    }

    fn opened(&mut self, side: Side, (slot, generation): (usize, u32), kind: Kind, port: u32, expires: bool) -> Judged {
        let found = &mut self.slots[slot];
        ensure!(found.opener == side, "{side:?} opened the other side's slot {slot}");
        ensure!(generation == found.generation + 1, "use {generation} of slot {slot} follows {}", found.generation);
        if let Some(before) = &found.channel {
            before.check_finished(found.opener)?;
        }
        found.generation = generation;
        found.channel = Some(Channel::opened(side, kind, port, expires));
        Ok(())
    }

    fn accepted(&mut self, side: Side, (slot, generation): (usize, u32), kind: Kind, port: u32) -> Judged {
        let found = &mut self.slots[slot];
        let of = format!("use {generation} of slot {slot}");
        ensure!(found.opener != side && found.generation == generation, "{of} was accepted, and is not open");
        let channel = found.channel.as_mut().ok_or_else(|| Violation(format!("{of} was never opened")))?;
        ensure!(channel.stance[side as usize] == Stance::Absent, "{of} was accepted twice");
        ensure!((channel.kind, channel.port) == (kind, port), "{of} is of another kind or port");
        channel.stance[side as usize] = Stance::Live { shut: false };
        channel.held[side as usize] = true;
        Ok(())
    }

    fn adopted(&mut self, side: Side, list: &[(usize, u32, Kind)]) -> Judged {
        let mut expected = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(channel) = &mut slot.channel else { continue };
            if !slot.spoilt && channel.is_live(side) && !channel.held[side as usize] {
                channel.held[side as usize] = true;
                channel.due[side as usize] = None;
                expected.push((at, slot.generation, channel.kind));
            }
        }
        let list: Vec<_> = list.iter().copied().filter(|(slot, ..)| !self.slots[*slot].spoilt).collect();
        ensure!(list == expected, "there are {list:?} to adopt, and {expected:?} survived");
        Ok(())
    }

    fn thawed(&mut self, side: Side) {
        self.sides[side as usize].frozen = false;
        for channel in self.slots.iter_mut().filter_map(|slot| slot.channel.as_mut()) {
            if let Some(reason) = channel.closing[side as usize].take() {
                channel.close(side, reason);
            }
        }
    }

    fn expired(&mut self, side: Side) {
        if self.is_frozen(side) {
            return;
        }
        let now = self.now;
        for channel in self.slots.iter_mut().filter_map(|slot| slot.channel.as_mut()) {
            let due = channel.due[side as usize].is_some_and(|due| due <= now);
            if due && channel.is_live(side) && !channel.held[side as usize] {
                channel.close(side, Reason::Expired);
                channel.due[side as usize] = None;
            }
        }
    }

    /// Holds what a side keeps against what it did: it may be killed right now.
    pub(crate) fn check_kept(&self, side: Side, raw: &Raw<'_>) -> Judged {
        for (at, slot) in self.slots.iter().enumerate().filter(|(_, slot)| !slot.spoilt) {
            let Some(kept) = raw.kept_state(side, at) else {
                return Err(Violation(format!("slot {at} of {side:?} keeps no state")));
            };
            ensure!(raw.kept(side, at, RecordWord::Corrupt) == 0, "slot {at} of {side:?} was given up");
            let generation = slot.generation;
            let Some(channel) = &slot.channel else {
                ensure!(
                    kept == State::free(throughline_ring::Generation::default()),
                    "slot {at} of {side:?} was never used, and keeps {kept:?}"
                );
                continue;
            };
            let of = || format!("slot {at} of {side:?}, use {generation}, keeps {kept:?}, {:?}", channel.stance);
            let fits = match channel.stance[side as usize] {
                Stance::Live { shut } => {
                    let live = (kept.phase, kept.kind, kept.port) == (Phase::Live, channel.kind, channel.port);
                    live && kept.tx_shut == shut && kept.generation.number() == generation
                }
                Stance::Closed(reason) => is_over(kept, generation, reason),
                Stance::Absent => {
                    let before = kept.phase == Phase::Free && kept.generation.number() + 1 == generation;
                    before || is_over(kept, generation, Reason::Refused)
                }
            };
            ensure!(fits, "{}", of());
            if channel.is_live(side) {
                let cursor = |word, from| raw.kept(side, at, word).wrapping_sub(raw.kept(side, at, from));
                let produced = cursor(RecordWord::Produced, RecordWord::SentFrom);
                let taken = cursor(RecordWord::Taken, RecordWord::ReceivedFrom);
                channel.flows[side as usize].check_kept_produced(produced)?;
                let known = channel.flows[side.peer() as usize].taken;
                ensure!(taken == known, "{}: taken {taken}, and {known} were handed over", of());
            }
        }
        Ok(())
    }

    /// All bells are heard and everybody sleeps: a wait that could be served is a lost wake-up.
    pub(crate) fn check_wait(&mut self, side: Side, plan: &Plan, raw: &Raw<'_>) -> Judged {
        let stuck = |why: &str| Err(Violation(format!("{side:?} waits for ever: {plan:?}: {why}")));
        match &plan.action {
            Action::Open { .. } => {
                for slot in self.slots.iter().filter(|slot| slot.opener == side && !slot.spoilt) {
                    if slot.channel.as_ref().is_none_or(|channel| channel.check_finished(side).is_ok()) {
                        return stuck("there is a free slot");
                    }
                }
                Ok(())
            }
            Action::Accept { port } => {
                for slot in self.slots.iter().filter(|slot| slot.opener != side && !slot.spoilt) {
                    if slot.channel.as_ref().is_some_and(|channel| channel.awaits(side, *port)) {
                        return stuck("there is an open");
                    }
                }
                Ok(())
            }
            Action::Control if self.is_link_spoilt => Ok(()),
            _ if plan.on.is_some_and(|(slot, ..)| self.slots[slot].spoilt) => Ok(()),
            Action::Control => {
                let words = |word| (raw.link(Side::Host, word), raw.link(Side::Guest, word));
                let ((given, taken_on), (asked, followed)) = (words(LinkWord::Identity), words(LinkWord::Quiesce));
                // Zero while an identity is written, and for ever if its writer died: nobody takes that one on.
                let asks = (given != 0 && given != taken_on) || asked != followed;
                let answered = raw.last_identity() == taken_on && asked == followed;
                let served = if side == Side::Host { answered } else { asks };
                if served { stuck("the words are there") } else { Ok(()) }
            }
            action => {
                let (channel, opener) = self.channel(plan)?;
                let judged = channel.may_wait(side, opener, action);
                judged.map_err(|why| Violation(format!("{side:?} waits for ever: {plan:?}: {why}")))?;
                let refused = channel.port == UNLISTENED && channel.stance[side.peer() as usize] == Stance::Absent;
                if refused { stuck("it was refused") } else { Ok(()) }
            }
        }
    }

    /// Whether every use has ended on both sides.
    pub(crate) fn is_over(&self) -> bool {
        let honest = self.slots.iter().filter(|slot| !slot.spoilt);
        let mut channels = honest.filter_map(|slot| Some((slot.opener, slot.channel.as_ref()?)));
        channels.all(|(opener, channel)| channel.check_finished(opener).is_ok())
    }
}

/// Closed for that reason, or free after that use.
fn is_over(kept: State, generation: u32, reason: Reason) -> bool {
    let closed = kept.phase == Phase::Closed && kept.reason == reason;
    (closed || kept.phase == Phase::Free) && kept.generation.number() == generation
}

/// Whether an error says that the peer gave the channel up.
fn is_reset(reason: Reason) -> bool {
    matches!(reason, Reason::Reset | Reason::Expired | Reason::Corrupt)
}

/// What an error says of the peer's close; `None` where it is about something else.
fn told_by(error: &Error) -> Option<bool> {
    match error {
        Error::Reset => Some(true),
        Error::Closed => Some(false),
        _ => None,
    }
}
