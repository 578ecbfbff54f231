//! What an application holds and waits for, whatever drives its link.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Wake, Waker};

use throughline::{Error, Kind};

use crate::call::{Action, Call, LISTENED, Outcome, Plan, payload};

#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

/// Somebody who does one thing at a time.
#[derive(Debug, Default)]
struct Task {
    /// What it waits for, if it does.
    waiting: Option<Action>,
    woken: Arc<Flag>,
}

impl Task {
    fn is_woken(&self) -> bool {
        self.woken.0.load(Relaxed)
    }

    /// What it does next, asked for `action`: a task that waits goes on with what it waits for once it
    /// is woken, and does nothing before.
    fn next(&self, action: Action) -> Option<Action> {
        match &self.waiting {
            None => Some(action),
            Some(waiting) => self.is_woken().then(|| waiting.clone()),
        }
    }

    fn settle(&mut self, action: &Action, outcome: &Outcome) {
        self.waiting = (*outcome == Outcome::Pending).then(|| action.clone());
    }
}

/// A channel that a process has.
#[derive(Debug)]
struct Held {
    slot: usize,
    generation: u32,
    kind: Kind,
    reader: Task,
    writer: Task,
    peeked: Option<u64>,
}

/// One process's desk.
#[derive(Debug, Default)]
pub struct Desk {
    held: Vec<Held>,
    accepting: [Task; LISTENED.len()],
    opening: Task,
    control: Task,
}

impl Desk {
    /// What a call comes to.
    pub fn plan(&self, call: &Call) -> Option<Plan> {
        let plain = |action| Some(Plan { on: None, action });
        let task = |task: &Task, action| task.next(action).map(|action| Plan { on: None, action });
        match *call {
            Call::Open { kind, port, expires } => task(&self.opening, Action::Open { kind, port, expires }),
            Call::Accept { port } => {
                let port = usize::from(port) % LISTENED.len();
                task(&self.accepting[port], Action::Accept { port: LISTENED[port] })
            }
            Call::Control => task(&self.control, Action::Control),
            Call::Adopt => plain(Action::Adopt),
            Call::Drive => plain(Action::Drive),
            Call::Tick => plain(Action::Tick),
            Call::Freeze => plain(Action::Freeze),
            Call::Thaw => plain(Action::Thaw),
            Call::GiveIdentity => plain(Action::GiveIdentity),
            Call::AskQuiet => plain(Action::AskQuiet),
            Call::LiftQuiet => plain(Action::LiftQuiet),
            Call::Write { channel, .. }
            | Call::Flush { channel }
            | Call::Read { channel, .. }
            | Call::Commit { channel, .. }
            | Call::Shutdown { channel }
            | Call::Close { channel, .. } => self.plan_on(channel, call),
        }
    }

    fn plan_on(&self, channel: u8, call: &Call) -> Option<Plan> {
        let held = self.held.get(usize::from(channel) % self.held.len().max(1))?;
        let action = match *call {
            Call::Write { len, salt, feed, .. } => {
                let len = if held.kind == Kind::Stream { len.max(1) } else { len };
                let feed = feed && held.kind == Kind::Message;
                held.writer.next(Action::Write { payload: payload(salt, len.into()), feed })
            }
            Call::Flush { .. } => held.writer.next(Action::Flush),
            Call::Shutdown { .. } => held.writer.next(Action::Shutdown),
            Call::Read { max, peek, .. } => held.reader.next(Action::Read { max: usize::from(max).max(1), peek }),
            Call::Commit { part, .. } => {
                let peeked = held.peeked?;
                let whole = held.kind == Kind::Message;
                let bytes = if whole { peeked } else { peeked * u64::from(part) / 255 };
                held.reader.next(Action::Commit { bytes, whole })
            }
            Call::Close { reset, .. } => Some(Action::Close { reset }),
            _ => None,
        };
        Some(Plan { on: Some((held.slot, held.generation, held.kind)), action: action? })
    }

    fn held(&mut self, plan: &Plan) -> Option<&mut Held> {
        let (slot, generation, _) = plan.on?;
        self.held.iter_mut().find(|held| (held.slot, held.generation) == (slot, generation))
    }

    fn task(&mut self, plan: &Plan) -> Option<&mut Task> {
        match plan.action {
            Action::Open { .. } => Some(&mut self.opening),
            Action::Accept { port } => {
                LISTENED.iter().position(|listened| *listened == port).map(|at| &mut self.accepting[at])
            }
            Action::Control => Some(&mut self.control),
            Action::Write { .. } | Action::Flush | Action::Shutdown => self.held(plan).map(|held| &mut held.writer),
            Action::Read { .. } | Action::Commit { .. } => self.held(plan).map(|held| &mut held.reader),
            _ => None,
        }
    }

    /// What the attempt is to wake, should it have to wait.
    pub fn waker(&mut self, plan: &Plan) -> Waker {
        let Some(task) = self.task(plan) else { return Waker::noop().clone() };
        task.woken = Arc::default();
        task.woken.clone().into()
    }

    /// Notes what an attempt came to.
    pub fn settle(&mut self, plan: &Plan, outcome: &Outcome) {
        if let Some(task) = self.task(plan) {
            task.settle(&plan.action, outcome);
        }
        match (&plan.action, outcome) {
            (Action::Open { kind, .. }, Outcome::Opened(slot, generation))
            | (_, Outcome::Accepted(slot, generation, kind)) => self.hold(*slot, *generation, *kind),
            (_, Outcome::Adopted(list)) => list.iter().for_each(|(slot, generation, kind)| {
                self.hold(*slot, *generation, *kind);
            }),
            (Action::Close { .. }, _) | (_, Outcome::Failed(Error::Ended)) => {
                let on = plan.on.map(|(slot, generation, _)| (slot, generation));
                self.held.retain(|held| Some((held.slot, held.generation)) != on);
            }
            (Action::Read { peek, .. }, Outcome::Got(bytes)) => {
                if let Some(held) = self.held(plan) {
                    let span = if held.kind == Kind::Stream { bytes.len() as u64 } else { span(bytes.len()) };
                    held.peeked = peek.then_some(span);
                }
            }
            (Action::Commit { bytes, .. }, Outcome::Done) => {
                if let Some(held) = self.held(plan) {
                    held.peeked = held.peeked.map(|peeked| peeked - bytes).filter(|left| *left > 0);
                }
            }
            _ => {}
        }
    }

    fn hold(&mut self, slot: usize, generation: u32, kind: Kind) {
        let (reader, writer) = (Task::default(), Task::default());
        self.held.push(Held { slot, generation, kind, reader, writer, peeked: None });
    }

    /// Channels held.
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// The slot of a channel that is held.
    pub(crate) fn slot(&self, channel: usize) -> Option<usize> {
        self.held.get(channel).map(|held| held.slot)
    }

    /// What waits and was not woken.
    pub fn waiting(&self) -> Vec<Plan> {
        let channels = self.held.iter().flat_map(|held| {
            let on = Some((held.slot, held.generation, held.kind));
            [(on, &held.reader), (on, &held.writer)]
        });
        let others = [&self.opening, &self.control].into_iter().chain(&self.accepting).map(|task| (None, task));
        let asleep = channels.chain(others).filter(|(_, task)| !task.is_woken());
        asleep.filter_map(|(on, task)| Some(Plan { on, action: task.waiting.clone()? })).collect()
    }
}

/// Bytes that a message takes in the ring.
pub(crate) fn span(len: usize) -> u64 {
    8 + (len as u64).next_multiple_of(8)
}
