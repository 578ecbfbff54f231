//! One side's process: the core, driven as the drivers drive it, and an application on top.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use throughline::core::{AttachOptions, Core, LABEL_BYTES, OpenOptions, Policy, Publish, Take, Use};
use throughline::{Error, Identity, Kind, Side};
use throughline_ring::{Generation, Geometry, Ledger, LinkWord, Reason};

use crate::bells::{Doorbell, Wire};
use crate::call::{Action, Call, End, LISTENED, Outcome, Plan, RING, UNADOPTED_MS};
use crate::desk::Desk;
use crate::memory::{Memory, Watch};

type SimCore = Core<Memory, Doorbell>;

/// Rounds of serving after which an honest peer leaves nothing to find.
const MOST_ROUNDS: usize = 20;
/// The agent's version.
const AGENT: u32 = 3;

/// What a process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) side: Side,
    pub(crate) geometry: Geometry,
    /// The simulated clock's zero.
    pub(crate) base: Instant,
    pub(crate) timeline: u128,
    pub(crate) restored_from: Option<u128>,
    /// Where its sleeps are counted from.
    pub(crate) random: u64,
    /// Milliseconds.
    pub(crate) now: u64,
}

/// A process that lives.
pub(crate) struct Process {
    side: Side,
    base: Instant,
    timeline: u128,
    parent: u128,
    core: SimCore,
    desk: Desk,
    watch: Rc<Watch>,
    clock: Rc<std::cell::Cell<u64>>,
    is_asleep: bool,
    is_kicked: bool,
    /// Something that must never be so.
    complaint: Option<String>,
}

impl Process {
    /// Starts one. It may die meanwhile.
    pub(crate) fn start(
        start: &Start,
        watch: &Rc<Watch>,
        wires: [Rc<Wire>; 2],
        clock: &Rc<std::cell::Cell<u64>>,
    ) -> Self {
        let [out, into] = wires;
        let side = start.side;
        let options = AttachOptions {
            side,
            now: start.base + Duration::from_millis(start.now),
            timeline: start.timeline,
            random: start.random,
            listen: LISTENED.to_vec(),
            agent: (side == Side::Guest).then_some(AGENT),
        };
        let sidecar = (side == Side::Host).then(|| Memory::sidecar(watch));
        let ledger = Ledger::new(Memory::region(watch), sidecar);
        let bell = Doorbell { out, into, watch: watch.clone() };
        let core = Core::attach(ledger, &start.geometry, bell, &options).expect("what was kept makes sense");
        let _ = core.ring();
        Self {
            side,
            base: start.base,
            timeline: start.timeline,
            parent: start.restored_from.unwrap_or(0),
            core,
            desk: Desk::default(),
            watch: watch.clone(),
            clock: clock.clone(),
            is_asleep: false,
            is_kicked: false,
            complaint: None,
        }
    }

    pub(crate) fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    pub(crate) fn core(&self) -> &SimCore {
        &self.core
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Sleeps, and no bell is there to wake it.
    pub(crate) fn is_sound_asleep(&self) -> bool {
        self.is_asleep && !self.is_kicked && !self.core.bell().into.has_bells()
    }

    pub(crate) fn take_complaint(&mut self) -> Option<String> {
        self.complaint.take().or_else(|| self.core.bell().out.take_complaint())
    }

    fn complain(&mut self, what: &str) {
        self.complaint.get_or_insert_with(|| what.to_owned());
    }

    /// A round of the driver.
    fn drive(&mut self) -> Outcome {
        if self.is_asleep {
            let rung = self.core.bell().drain();
            if !rung && !std::mem::take(&mut self.is_kicked) {
                return Outcome::Done;
            }
            self.core.wake_up();
            self.is_asleep = false;
        }
        let mut rounds = 0;
        while self.core.serve() > 0 {
            rounds += 1;
            if rounds == MOST_ROUNDS {
                self.complain("the driver is kept busy");
                return Outcome::Done;
            }
        }
        if self.core.is_ready() {
            self.complain("there is something to serve, and serving finds nothing: a driver that polls never sleeps");
        }
        self.is_asleep = self.core.fall_asleep();
        Outcome::Done
    }

    /// Time passes: what is due expires, and the backstop looks.
    fn tick(&mut self) -> Outcome {
        let now = self.watch.input(|| self.clock.get());
        let _ = self.core.expire(self.base + Duration::from_millis(now));
        if !self.is_asleep {
            return Outcome::Done;
        }
        let quiet = self.watch.input(|| u64::from(!self.core.bell().into.has_bells())) == 1 && !self.is_kicked;
        let found = self.core.serve();
        self.core.wake_up();
        self.is_asleep = false;
        if quiet { Outcome::Found(found) } else { Outcome::Done }
    }

    fn open(&self, kind: Kind, port: u32, expires: bool, cx: &mut Context<'_>) -> Outcome {
        let unadopted = expires.then_some(Duration::from_millis(UNADOPTED_MS));
        let policy = Policy { unadopted, ..Policy::default() };
        let options = OpenOptions { port, kind, ring_bytes: RING, label: [b'x'; LABEL_BYTES], policy };
        match self.core.poll_open(&options, cx) {
            Poll::Pending => Outcome::Pending,
            Poll::Ready(Ok(this)) => Outcome::Opened(this.slot, this.generation.number()),
            Poll::Ready(Err(error)) => Outcome::Failed(error),
        }
    }

    fn adopt(&self) -> Outcome {
        let unheld = self.core.channels().into_iter().filter(|info| !info.held && info.corrupt.is_none());
        let adopted = unheld.filter_map(|info| {
            let (this, kind) = self.core.adopt(info.id).ok()?;
            Some((this.slot, this.generation.number(), kind))
        });
        Outcome::Adopted(adopted.collect())
    }

    fn thaw(&mut self) {
        let (lived, before) = (self.watch.is_live(), self.core.bell().out.rung());
        self.core.bell().out.set_unconditional(true);
        self.core.thaw();
        self.core.bell().out.set_unconditional(false);
        if lived && self.core.bell().out.rung() == before {
            self.complain("a thaw does not ring");
        }
        self.is_kicked = true;
    }

    fn give_identity(&self) -> Outcome {
        let seq = self.core.last_identity() + 1;
        let entropy = [seq as u8; 64];
        let (epoch, parent) = (self.timeline, self.parent);
        self.core.write_identity(&Identity {
            seq,
            epoch,
            parent,
            index: 0,
            clock_ns: seq,
            flags: 0,
            entropy,
            hostname: None,
        });
        Outcome::Done
    }

    /// As `Link::request` and its acknowledgements.
    fn control(&mut self, cx: &mut Context<'_>) -> Outcome {
        if self.side == Side::Host {
            let done = |core: &SimCore| {
                let taken_on = core.peer_word(LinkWord::Identity) == core.last_identity();
                (taken_on && core.peer_word(LinkWord::Quiesce) == core.my_word(LinkWord::Quiesce)).then_some(())
            };
            if self.core.poll_link(cx, done).is_pending() {
                return Outcome::Pending;
            }
            self.core.erase_entropy();
            return Outcome::Acknowledged;
        }
        let request = self.core.poll_link(cx, |core| {
            let identity = core.read_identity().filter(|identity| identity.seq != core.my_word(LinkWord::Identity));
            let quiesce = core.peer_word(LinkWord::Quiesce);
            let asked = (quiesce != core.my_word(LinkWord::Quiesce)).then_some(quiesce);
            identity.map(Ok).or_else(|| asked.map(Err))
        });
        match request {
            Poll::Pending => Outcome::Pending,
            Poll::Ready(Ok(identity)) => {
                self.core.publish_link(LinkWord::Identity, identity.seq);
                Outcome::TookOn(identity)
            }
            Poll::Ready(Err(number)) => {
                if number % 2 == 1 {
                    self.core.freeze();
                } else {
                    self.thaw();
                }
                self.core.publish_link(LinkWord::Quiesce, number);
                Outcome::Followed(number)
            }
        }
    }

    fn on_channel(&self, plan: &Plan, cx: &mut Context<'_>) -> Option<Outcome> {
        let (slot, generation, kind) = plan.on?;
        let this = Use { slot, generation: generation_of(generation) };
        let core = &self.core;
        let outcome = match &plan.action {
            Action::Write { payload, feed } => {
                let publish = if *feed { Publish::Batch } else { Publish::Now };
                let wrote = if kind == Kind::Message {
                    core.poll_send(this, publish, Some(cx), payload).map_ok(|()| payload.len())
                } else {
                    core.poll_write(this, publish, Some(cx), payload)
                };
                outcome(wrote, Outcome::Wrote)
            }
            Action::Read { max, peek } => {
                let take = if *peek { Take::Peek } else { Take::Consume };
                let mut out = vec![0; *max];
                let read = if kind == Kind::Message {
                    core.poll_recv(this, take, Some(cx), &mut out)
                } else {
                    core.poll_read(this, take, Some(cx), &mut out).map_ok(|count| {
                        out.truncate(count);
                        count > 0
                    })
                };
                outcome(read, |got| if got { Outcome::Got(out) } else { Outcome::End })
            }
            Action::Flush => outcome(core.poll_flush(this, cx), |()| Outcome::Done),
            Action::Commit { bytes, whole } => {
                let bytes = (!whole).then_some(*bytes);
                outcome(core.poll_commit(this, bytes, cx), |()| Outcome::Done)
            }
            Action::Shutdown => outcome(core.poll_shutdown(this, cx), |()| Outcome::Done),
            Action::Close { reset } => {
                core.close(this, if *reset { Reason::Reset } else { Reason::Normal });
                Outcome::Done
            }
            _ => return None,
        };
        Some(outcome)
    }

    fn elsewhere(&mut self, action: &Action, cx: &mut Context<'_>) -> Outcome {
        match *action {
            Action::Open { kind, port, expires } => return self.open(kind, port, expires, cx),
            Action::Accept { port } => {
                let accepted = self.core.poll_accept(port, cx);
                return outcome(accepted, |(this, kind)| Outcome::Accepted(this.slot, this.generation.number(), kind));
            }
            Action::Adopt => return self.adopt(),
            Action::Drive => return self.drive(),
            Action::Tick => return self.tick(),
            Action::Control => return self.control(cx),
            Action::GiveIdentity => return self.give_identity(),
            Action::Freeze => self.core.freeze(),
            Action::Thaw => self.thaw(),
            Action::AskQuiet | Action::LiftQuiet => {
                let request = self.core.my_word(LinkWord::Quiesce);
                if (request % 2 == 1) == (*action == Action::LiftQuiet) {
                    self.core.publish_link(LinkWord::Quiesce, request + 1);
                }
            }
            _ => {}
        }
        Outcome::Done
    }
}

impl End for Process {
    fn plan(&self, call: &Call) -> Option<Plan> {
        self.desk.plan(call)
    }

    fn perform(&mut self, plan: &Plan) -> Outcome {
        let waker = self.desk.waker(plan);
        let mut cx = Context::from_waker(&waker);
        let on_channel = self.on_channel(plan, &mut cx);
        let outcome = on_channel.unwrap_or_else(|| self.elsewhere(&plan.action, &mut cx));
        self.desk.settle(plan, &outcome);
        outcome
    }
}

fn outcome<T>(poll: Poll<Result<T, Error>>, done: impl FnOnce(T) -> Outcome) -> Outcome {
    match poll {
        Poll::Pending => Outcome::Pending,
        Poll::Ready(Ok(value)) => done(value),
        Poll::Ready(Err(error)) => Outcome::Failed(error),
    }
}

/// The generation of that number.
fn generation_of(number: u32) -> Generation {
    (0..number).fold(Generation::default(), |generation, _| generation.next())
}
