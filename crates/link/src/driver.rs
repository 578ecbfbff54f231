//! The tokio driver: it waits, and nothing else. What to wait for and what to do is the core's.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::Event;
use crate::doorbell::Drained;
use crate::link::{LinkCore, Shared};
use crate::spin::Spin;
use crate::storm::Storm;

/// How often the backstop looks while somebody waits.
const BACKSTOP: Duration = Duration::from_millis(500);
/// How long a bell may lag behind what the backstop found, before it counts as lost.
const GRACE: Duration = Duration::from_millis(100);

/// Waits for the doorbell, edge-triggered.
///
/// The doorbell sits in an epoll instance of its own: a guest's port whose host is away is readable
/// and hung up at once, which a reactor would take for a final state.
#[derive(Debug)]
pub(crate) struct Waiting(AsyncFd<Edge>);

#[derive(Debug)]
struct Edge(OwnedFd);

impl Edge {
    /// Takes the edge, so that the next bell makes another.
    fn take(&self) {
        let mut events = [const { MaybeUninit::uninit() }; 1];
        // Nothing to learn from it: the doorbell is drained in any case.
        let _ = epoll::wait(&self.0, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
}

impl AsRawFd for Edge {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Waiting {
    pub(crate) fn new(core: &LinkCore) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &poll,
            core.bell().as_fd(),
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        #[expect(unsafe_code, reason = "tokio cannot see that the descriptor stays the same")]
        // SAFETY: `Edge` owns its descriptor, always returns that one, and closes it only when dropped.
        let watched = unsafe { AsyncFd::register_with_interest(Edge(poll), Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits for an edge, and takes the bells. Cancel-safe.
    async fn bell(&self, core: &LinkCore) -> Drained {
        // The epoll instance lives as long as the driver, so that this cannot fail; if it did, the
        // backstop would serve.
        let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
        // Cleared first: a bell after this makes a new edge, one before it is drained below.
        ready.clear_ready();
        self.0.get_ref().take();
        core.bell().drain()
    }
}

/// Why the driver woke up.
enum Woken {
    Bell(Drained),
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
    peer_lost: bool,
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
        peer_lost: false,
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
        self.spin.slept(now - slept);
        if let Woken::Bell(drained) = woken {
            self.take_bell(core, drained, now).await;
        }
    }

    async fn wait(&self, core: &LinkCore) -> Woken {
        let armed = self.shared.backstop.load(Ordering::Relaxed);
        let due = [armed.then_some(self.tick), self.found.map(|found| found + GRACE), self.expiry];
        let due = due.into_iter().flatten().min();
        let timer = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            drained = self.waiting.bell(core) => Woken::Bell(drained),
            () = self.shared.kick.notified() => Woken::Kick,
            () = timer => Woken::Timer,
        }
    }

    async fn take_bell(&mut self, core: &LinkCore, mut drained: Drained, now: Instant) {
        if drained.hung_up != self.peer_lost {
            self.peer_lost = drained.hung_up;
            core.tell(if drained.hung_up { Event::PeerLost } else { Event::PeerAttached });
        }
        // All of them: a full doorbell left behind would make no new edge.
        while drained.more {
            yield_now().await;
            drained = core.bell().drain();
        }
        if !drained.bells {
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
