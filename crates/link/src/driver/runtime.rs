//! The driver on tokio: a task of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::storm::Storm;
use super::{Brought, Rounds, Woken};
use crate::doorbell::{Edges, Heard, Line};
use crate::link::{LinkCore, Shared};

/// How the driver's task is reached.
#[derive(Debug, Default)]
pub(crate) struct Task {
    kick: Notify,
    /// Whether the backstop's timer runs.
    backstop: AtomicBool,
}

impl Task {
    /// Wakes the driver for a reason that no doorbell tells.
    pub(crate) fn kick(&self) {
        self.kick.notify_one();
    }

    /// Makes sure that the backstop's timer runs while somebody waits.
    pub(crate) fn arm_backstop(&self) {
        // The common case is a plain load: the timer has been running since the last wait.
        if !self.backstop.load(Ordering::Relaxed) && !self.backstop.swap(true, Ordering::Relaxed) {
            self.kick();
        }
    }

    /// Stops the timer where nobody waits.
    fn rest_backstop(&self, core: &LinkCore) {
        self.backstop.store(false, Ordering::Relaxed);
        // Who registers after this look sees the timer resting: registering ends with such a fence, too.
        fence(Ordering::SeqCst);
        if core.has_waiters() {
            self.backstop.store(true, Ordering::Relaxed);
        }
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

struct Driver {
    shared: Arc<Shared>,
    task: Arc<Task>,
    waiting: Waiting,
    rounds: Rounds,
}

/// Drives a link until it is aborted.
pub(crate) async fn drive(shared: Arc<Shared>, task: Arc<Task>, waiting: Waiting, spin: Duration) {
    let rounds = Rounds::begin(spin, Instant::now().into_std());
    let mut driver = Driver { shared, task, waiting, rounds };
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
        if self.rounds.spin(core) {
            return;
        }
        if !core.fall_asleep() {
            yield_now().await;
            return;
        }
        let slept = Instant::now();
        let woken = self.wait(core).await;
        if matches!(woken, Woken::Timer) {
            self.task.rest_backstop(core);
        }
        let now = Instant::now();
        if let Some(heard) = self.rounds.wake_up(core, woken, slept.into_std(), now.into_std()) {
            self.take_bells(core, heard, now).await;
        }
    }

    async fn wait(&self, core: &LinkCore) -> Woken {
        let due = self.rounds.due(self.task.backstop.load(Ordering::Relaxed));
        let timer = async {
            match due {
                Some(due) => sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            heard = self.waiting.bell(core.bell()) => Woken::Bell(heard),
            () = self.task.kick.notified() => Woken::Kick,
            () = timer => Woken::Timer,
        }
    }

    async fn take_bells(&mut self, core: &LinkCore, mut heard: Heard, now: Instant) {
        let now = now.into_std();
        let mut bells = false;
        loop {
            self.rounds.follow(core, &heard, now);
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
        match self.rounds.take_bell(core, now) {
            Brought::Nothing => {}
            Brought::Work => yield_now().await,
            Brought::Storm => tokio::time::sleep(Storm::PAUSE).await,
        }
    }
}
