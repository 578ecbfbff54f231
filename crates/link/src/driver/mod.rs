//! What drives a link: it serves the core, lets it fall asleep, waits, and wakes it up.
//!
//! Two drivers do so. [`runtime`] is a task on tokio; [`threads`] is whichever thread waits in a call of the
//! [blocking face](crate::blocking). What both know besides the core is in [`Rounds`]; what to wait for and
//! what to do is the core's.

#[cfg(feature = "tokio")]
pub(crate) mod runtime;
mod spin;
mod storm;
pub(crate) mod threads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Event;
use crate::doorbell::Heard;
use crate::link::{Link, LinkCore};
use spin::Spin;
use storm::Storm;
use threads::Seat;

/// Who drives the link.
#[derive(Debug)]
pub(crate) enum Driven {
    /// A task on tokio.
    #[cfg(feature = "tokio")]
    Task(Arc<runtime::Task>),
    /// The threads that wait.
    Threads(Arc<Seat>),
}

impl Link {
    /// Wakes the driver for a reason that no doorbell tells.
    pub(crate) fn kick(&self) {
        match &self.0.shared.driven {
            #[cfg(feature = "tokio")]
            Driven::Task(task) => task.kick(),
            Driven::Threads(seat) => seat.kick(),
        }
    }

    /// Makes sure that the backstop looks while somebody waits.
    pub(crate) fn arm_backstop(&self) {
        match &self.0.shared.driven {
            #[cfg(feature = "tokio")]
            Driven::Task(task) => task.arm_backstop(),
            // Who waits drives, looking now and then, or parks while another one does.
            Driven::Threads(_) => {}
        }
    }

    /// The time of who drives: a runtime's clock may be a test's own.
    pub(crate) fn now(&self) -> Instant {
        match &self.0.shared.driven {
            #[cfg(feature = "tokio")]
            Driven::Task(_) => tokio::time::Instant::now().into_std(),
            Driven::Threads(_) => Instant::now(),
        }
    }

    /// Waits for a future, at most until a time: on a runtime as usual, where threads drive in this very poll.
    #[cfg_attr(not(feature = "tokio"), expect(clippy::unused_async, reason = "threads wait in the poll"))]
    pub(crate) async fn until<T>(&self, until: Instant, future: impl Future<Output = T>) -> Option<T> {
        match &self.0.shared.driven {
            #[cfg(feature = "tokio")]
            Driven::Task(_) => tokio::time::timeout_at(until.into(), future).await.ok(),
            Driven::Threads(seat) => seat.wait_until(self.core(), until, future),
        }
    }
}

/// How often the backstop looks while somebody waits.
const BACKSTOP: Duration = Duration::from_millis(500);
/// How long a bell may lag behind what the backstop found, before it counts as lost.
const GRACE: Duration = Duration::from_millis(100);

/// When to look again after a new doorbell: what stands between the sides may still be swallowing the peer's
/// bells, which the peer takes for delivered.
#[derive(Clone, Copy, Debug)]
struct Settling {
    due: Instant,
    pause: Duration,
}

impl Settling {
    const FIRST: Duration = Duration::from_millis(5);
    const LAST: Duration = Duration::from_millis(160);

    fn begin(now: Instant) -> Self {
        Self { due: now + Self::FIRST, pause: Self::FIRST }
    }

    /// What is left after a look at this time.
    fn looked(self, now: Instant) -> Option<Self> {
        if now < self.due {
            return Some(self);
        }
        let pause = 2 * self.pause;
        (pause <= Self::LAST).then(|| Self { due: now + pause, pause })
    }
}

/// Why a driver woke up.
#[derive(Clone, Copy, Debug)]
enum Woken {
    Bell(Heard),
    /// For a reason that no doorbell tells.
    Kick,
    Timer,
}

/// What bells brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    Nothing,
    /// Somebody was woken: who has more to wait for should register it first.
    Work,
    /// Too many bells for nothing: pause for [`Storm::PAUSE`].
    Storm,
}

/// What a driver knows besides the core.
#[derive(Debug)]
pub(crate) struct Rounds {
    spin: Spin,
    storm: Storm,
    tick: Instant,
    /// When the backstop found something that no bell has followed yet.
    found: Option<Instant>,
    /// When the next unadopted channel is due to be closed.
    expiry: Option<Instant>,
    /// Which doorbell the owner knows of, and whether its other end is gone.
    doorbell: u64,
    peer_lost: bool,
    settling: Option<Settling>,
}

impl Rounds {
    pub(crate) fn begin(spin: Duration, now: Instant) -> Self {
        Self {
            spin: Spin::new(spin),
            storm: Storm::new(now),
            tick: now + BACKSTOP,
            found: None,
            expiry: Some(now),
            doorbell: 0,
            peer_lost: false,
            settling: Some(Settling::begin(now)),
        }
    }

    /// Polls for a moment where that pays; whether there is something to serve.
    fn spin(&mut self, core: &LinkCore) -> bool {
        self.spin.until(|| core.is_ready())
    }

    /// When to wake up without a bell. `backstop`: whether somebody waits.
    fn due(&self, backstop: bool) -> Option<Instant> {
        let settling = self.settling.map(|settling| settling.due);
        let due = [backstop.then_some(self.tick), self.found.map(|found| found + GRACE), self.expiry, settling];
        due.into_iter().flatten().min()
    }

    /// The core wakes up, for a reason. Returns what the doorbell said, to be [taken](Self::take_bell).
    fn wake_up(&mut self, core: &LinkCore, woken: Woken, slept: Instant, now: Instant) -> Option<Heard> {
        if matches!(woken, Woken::Timer) {
            // Still asleep in the peer's eyes: what the backstop finds now has been rung for, or the bell
            // is lost. Of what comes after the wake-up, no bell tells, and none is missing.
            self.take_timer(core, now);
        }
        core.wake_up();
        self.settling = self.settling.and_then(|settling| settling.looked(now));
        self.spin.slept(now - slept);
        match woken {
            Woken::Bell(heard) => Some(heard),
            // Of a new doorbell no edge may tell.
            Woken::Kick => (core.bell().number() != self.doorbell).then(|| core.bell().drain()),
            Woken::Timer => None,
        }
    }

    /// Serves what bells came for.
    fn take_bell(&mut self, core: &LinkCore, now: Instant) -> Brought {
        self.found = None;
        let served = core.serve();
        core.counting.received(served == 0);
        match served {
            // A peer that rings for nothing burns its own processor: this side looks by the clock instead,
            // awake so that honest bells are not needed.
            0 if !self.storm.allows(now) => Brought::Storm,
            0 => Brought::Nothing,
            _ => Brought::Work,
        }
    }

    /// Tells the owner what became of the doorbell, and rings for what found nobody.
    fn follow(&mut self, core: &LinkCore, heard: &Heard, now: Instant) {
        let hung_up = heard.drained.hung_up;
        if heard.number != self.doorbell {
            (self.doorbell, self.peer_lost) = (heard.number, false);
            self.settling = Some(Settling::begin(now));
            core.tell(Event::PeerAttached);
        }
        if hung_up != self.peer_lost {
            self.peer_lost = hung_up;
            core.bell().note_hang_up(heard.number, hung_up);
            core.tell(if hung_up { Event::PeerLost } else { Event::PeerAttached });
        }
        if !hung_up && core.bell().settle_debt() {
            let _ = core.ring();
        }
    }

    fn take_timer(&mut self, core: &LinkCore, now: Instant) {
        if self.found.is_some_and(|found| found + GRACE <= now) {
            self.found = None;
            core.counting.backstop();
        }
        if self.expiry.is_some_and(|due| due <= now) {
            self.expiry = core.expire(now);
        }
        if self.tick <= now {
            self.tick = now + BACKSTOP;
            if core.serve() > 0 {
                self.found = Some(now);
            }
        }
    }
}
