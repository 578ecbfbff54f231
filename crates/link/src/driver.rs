//! The tokio driver: it waits, and nothing else. What to wait for and what to do is the core's.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::Event;
use crate::doorbell::{Edges, Heard, Line};
use crate::link::{LinkCore, Shared};
use crate::spin::Spin;
use crate::storm::Storm;

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

/// Waits for the doorbell.
#[derive(Debug)]
pub(crate) struct Waiting(AsyncFd<Edges>);

impl Waiting {
    pub(crate) fn new(line: &Line) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "tokio cannot see that the descriptor stays the same")]
        // SAFETY: `Edges` shares an `OwnedFd`, always returns that one, and keeps it open until it is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(line.edges(), Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits for an edge, and takes the bells. Cancel-safe.
    async fn bell(&self, line: &Line) -> Heard {
        // The epoll instance lives as long as the driver, so that this cannot fail; if it did, the
        // backstop would serve.
        let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
        // Cleared first: a bell after this makes a new edge, one before it is drained below.
        ready.clear_ready();
        self.0.get_ref().take();
        line.drain()
    }
}

/// Why the driver woke up.
enum Woken {
    Bell(Heard),
    Kick,
    Timer,
}

/// What the driver knows besides the core.
struct Driver {
    shared: Arc<Shared>,
    waiting: Waiting,
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

/// Drives a link until it is aborted.
pub(crate) async fn drive(shared: Arc<Shared>, waiting: Waiting, spin: Duration) {
    let mut driver = Driver {
        shared,
        waiting,
        spin: Spin::new(spin),
        storm: Storm::new(Instant::now()),
        tick: Instant::now() + BACKSTOP,
        found: None,
        expiry: Some(Instant::now()),
        doorbell: 0,
        peer_lost: false,
        settling: Some(Settling::begin(Instant::now())),
    };
    // Bells of a predecessor's time are lost, both ways: the peer looks once, and so does this side.
    let _ = driver.shared.core.ring();
    loop {
        driver.round().await;
    }
}

impl Driver {
    async fn round(&mut self) {
        let shared = self.shared.clone();
        let core = &shared.core;
        // Whom serving woke runs before this side goes to sleep: it may well have more to wait for.
        while core.serve() > 0 {
            yield_now().await;
        }
        if self.spin.until(|| core.is_ready()) {
            return;
        }
        if !core.fall_asleep() {
            yield_now().await;
            return;
        }
        let slept = Instant::now();
        let woken = self.wait(core).await;
        let now = Instant::now();
        if matches!(woken, Woken::Timer) {
            // Still asleep in the peer's eyes: what the backstop finds now has been rung for, or the bell
            // is lost. Of what comes after the wake-up, no bell tells, and none is missing.
            self.take_timer(core, now);
        }
        core.wake_up();
        self.settling = self.settling.and_then(|settling| settling.looked(now));
        self.spin.slept(now - slept);
        match woken {
            Woken::Bell(heard) => self.take_bell(core, heard, now).await,
            // Of a new doorbell no edge may tell.
            Woken::Kick if core.bell().number() != self.doorbell => {
                self.take_bell(core, core.bell().drain(), now).await;
            }
            Woken::Kick | Woken::Timer => {}
        }
    }

    async fn wait(&self, core: &LinkCore) -> Woken {
        let armed = self.shared.backstop.load(Ordering::Relaxed);
        let settling = self.settling.map(|settling| settling.due);
        let due = [armed.then_some(self.tick), self.found.map(|found| found + GRACE), self.expiry, settling];
        let due = due.into_iter().flatten().min();
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            heard = self.waiting.bell(core.bell()) => Woken::Bell(heard),
            () = self.shared.kick.notified() => Woken::Kick,
            () = timer => Woken::Timer,
        }
    }

    async fn take_bell(&mut self, core: &LinkCore, mut heard: Heard, now: Instant) {
        let mut bells = false;
        loop {
            self.follow(core, &heard);
            bells |= heard.drained.bells;
            // All of them: a full doorbell left behind would make no new edge.
            if !heard.drained.more {
                break;
            }
            yield_now().await;
            heard = core.bell().drain();
        }
        if !bells {
            return;
        }
        self.found = None;
        let served = core.serve();
        core.counting.received(served == 0);
        if served == 0 && !self.storm.allows(now) {
            // A peer that rings for nothing burns its own processor: this side looks by the clock
            // instead, awake so that honest bells are not needed.
            tokio::time::sleep(Storm::PAUSE).await;
        } else if served > 0 {
            yield_now().await;
        }
    }

    /// Tells the owner what became of the doorbell, and rings for what found nobody.
    fn follow(&mut self, core: &LinkCore, heard: &Heard) {
        let hung_up = heard.drained.hung_up;
        if heard.number != self.doorbell {
            (self.doorbell, self.peer_lost) = (heard.number, false);
            self.settling = Some(Settling::begin(Instant::now()));
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
            self.expiry = core.expire(now.into_std()).map(Instant::from_std);
        }
        if self.tick <= now {
            self.tick = now + BACKSTOP;
            if !core.has_waiters() {
                self.shared.backstop.store(false, Ordering::Relaxed);
            }
            if core.serve() > 0 {
                self.found = Some(now);
            }
        }
    }
}
