//! The driver without a runtime: of the threads that wait, one drives for all of them.
//!
//! A thread that has to wait takes the seat if nobody has it, and drives until what it waits for is there;
//! otherwise it parks, until whoever drives wakes it. A driver that leaves asks one of the parked to drive on.
//! While nobody waits nobody drives: this side is awake in the peer's eyes, and no bell is rung for it.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;

use super::storm::Storm;
use super::{Brought, Rounds, Woken};
use crate::doorbell::Line;
use crate::link::LinkCore;

thread_local! {
    /// This thread, for those who wake it. It waits in one call at a time.
    static WAITER: OnceCell<Arc<Waiter>> = const { OnceCell::new() };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that waits.
#[derive(Debug, Default)]
struct Waiter {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// What it waits for may be there, or it is asked to drive.
    woken: bool,
    /// It drives, and waits for the doorbell.
    at_the_bell: Option<Kick>,
}

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        state.woken = true;
        match &state.at_the_bell {
            Some(kick) => kick.kick(),
            None => self.changed.notify_one(),
        }
    }
}

impl Waiter {
    fn of_this_thread() -> Arc<Self> {
        WAITER.with(|waiter| waiter.get_or_init(Arc::default).clone())
    }

    /// Waits until it is woken.
    fn park(&self, until: Option<Instant>) {
        let mut state = lock(&self.state);
        while !state.woken {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        state.woken = false;
    }

    /// Waits for the doorbell, unless it is woken; whether the doorbell tells something.
    fn wait_for_bell(&self, line: &Line, kick: &Kick, due: Option<Instant>) -> bool {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.woken) {
            return false;
        }
        state.at_the_bell = Some(kick.clone());
        drop(state);
        let told = line.wait(due.map(|due| due.saturating_duration_since(Instant::now())));
        let mut state = lock(&self.state);
        state.at_the_bell = None;
        state.woken = false;
        told
    }
}

/// Gets a driver away from the doorbell. Its edge is what counts, so that nobody reads it.
#[derive(Clone, Debug)]
struct Kick(Arc<OwnedFd>);

impl Kick {
    fn kick(&self) {
        // A counter that is full was written to before, and that edge is still there.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes()));
    }
}

/// Where the thread that drives sits.
#[derive(Debug)]
pub(crate) struct Seat {
    driver: Mutex<Driver>,
    parked: Mutex<Vec<Arc<Waiter>>>,
    kick: Kick,
}

#[derive(Debug)]
struct Driver {
    rounds: Rounds,
    /// Bells are left in the doorbell, of which no edge will tell.
    more: bool,
}

impl Seat {
    pub(crate) fn new(line: &Line, spin: Duration) -> io::Result<Self> {
        let kick = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        line.watch_beside(&kick)?;
        let driver = Driver { rounds: Rounds::begin(spin, Instant::now()), more: false };
        Ok(Self { driver: Mutex::new(driver), parked: Mutex::default(), kick: Kick(Arc::new(kick)) })
    }

    /// Wakes whoever drives, for a reason that no doorbell tells.
    pub(crate) fn kick(&self) {
        self.kick.kick();
    }

    /// Waits for a future, driving the link meanwhile if nobody else does.
    pub(crate) fn wait<T>(&self, core: &LinkCore, future: impl Future<Output = T>) -> T {
        let mut wait = Wait { turn: Turn::new(self, core), future: pin!(future) };
        loop {
            if let Poll::Ready(value) = wait.look() {
                return value;
            }
            wait.turn.take(None);
        }
    }

    /// The same, at most until a time. It looks and drives once even if that has come.
    pub(crate) fn wait_until<T>(&self, core: &LinkCore, until: Instant, future: impl Future<Output = T>) -> Option<T> {
        let mut wait = Wait { turn: Turn::new(self, core), future: pin!(future) };
        let mut late = false;
        loop {
            match wait.look() {
                Poll::Ready(value) => return Some(value),
                Poll::Pending if late => return None,
                Poll::Pending => wait.turn.take(Some(until)),
            }
            late = until <= Instant::now();
        }
    }

    /// The same for a time, or for ever.
    pub(crate) fn wait_for<T>(
        &self,
        core: &LinkCore,
        timeout: Option<Duration>,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        // A time that no clock reaches is for ever.
        match timeout.map(|timeout| Instant::now().checked_add(timeout)) {
            Some(Some(until)) => self.wait_until(core, until, future),
            None | Some(None) => Some(self.wait(core, future)),
        }
    }

    fn try_sit(&self) -> Option<MutexGuard<'_, Driver>> {
        match self.driver.try_lock() {
            Ok(driver) => Some(driver),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// One thread's wait for a future.
struct Wait<'a, F> {
    turn: Turn<'a>,
    future: std::pin::Pin<&'a mut F>,
}

impl<F: Future> Wait<'_, F> {
    fn look(&mut self) -> Poll<F::Output> {
        self.future.as_mut().poll(&mut Context::from_waker(&self.turn.waker))
    }
}

/// Its part in driving the link.
struct Turn<'a> {
    seat: &'a Seat,
    core: &'a LinkCore,
    waiter: Arc<Waiter>,
    waker: Waker,
    /// It drives.
    driver: Option<MutexGuard<'a, Driver>>,
    waited: bool,
}

impl<'a> Turn<'a> {
    fn new(seat: &'a Seat, core: &'a LinkCore) -> Self {
        let waiter = Waiter::of_this_thread();
        let waker = waiter.clone().into();
        Self { seat, core, waiter, waker, driver: None, waited: false }
    }

    /// Drives one round, or waits while another thread drives.
    fn take(&mut self, until: Option<Instant>) {
        self.waited = true;
        if self.driver.is_none() {
            // Among the parked first: whoever leaves the seat after this look asks one of them.
            lock(&self.seat.parked).push(self.waiter.clone());
            self.driver = self.seat.try_sit();
            if self.driver.is_none() {
                self.waiter.park(until);
            }
            lock(&self.seat.parked).retain(|parked| !Arc::ptr_eq(parked, &self.waiter));
        }
        if let Some(driver) = &mut self.driver {
            driver.round(self.core, &self.waiter, &self.seat.kick, until);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.driver = None;
        // Whoever waited looks, having driven or not: it may have been the one who was asked to.
        if self.waited
            && self.seat.try_sit().is_some()
            && let Some(next) = lock(&self.seat.parked).pop()
        {
            next.wake();
        }
    }
}

impl Driver {
    fn round(&mut self, core: &LinkCore, waiter: &Waiter, kick: &Kick, until: Option<Instant>) {
        if std::mem::take(&mut self.more) {
            return self.take_bells(core);
        }
        // Whom serving woke may be the driver itself.
        if core.serve() > 0 || self.rounds.spin(core) || !core.fall_asleep() {
            return;
        }
        let slept = Instant::now();
        let due = self.rounds.due(true).into_iter().chain(until).min();
        let told = waiter.wait_for_bell(core.bell(), kick, due);
        let now = Instant::now();
        let woken = match told {
            true => Woken::Bell(core.bell().drain()),
            false if due.is_some_and(|due| due <= now) => Woken::Timer,
            false => Woken::Kick,
        };
        if let Some(heard) = self.rounds.wake_up(core, woken, slept, now) {
            self.take(core, &heard, now);
        }
    }

    fn take_bells(&mut self, core: &LinkCore) {
        self.take(core, &core.bell().drain(), Instant::now());
    }

    fn take(&mut self, core: &LinkCore, heard: &crate::doorbell::Heard, now: Instant) {
        self.rounds.follow(core, heard, now);
        self.more = heard.drained.more;
        if heard.drained.bells && self.rounds.take_bell(core, now) == Brought::Storm {
            std::thread::sleep(Storm::PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Doorbell;

    /// Without a kick and a look before the wait, these would hang.
    #[test]
    fn a_wake_up_ends_the_wait_for_the_bell_whenever_it_comes() {
        let line = Line::new(Doorbell::eventfd_pair().unwrap().0).unwrap();
        let seat = Seat::new(&line, Duration::ZERO).unwrap();
        let waiter = Arc::new(Waiter::default());
        waiter.wake_by_ref();
        assert!(!waiter.wait_for_bell(&line, &seat.kick, None));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| waiter.wait_for_bell(&line, &seat.kick, None));
            while lock(&waiter.state).at_the_bell.is_none() {
                std::thread::yield_now();
            }
            waiter.wake_by_ref();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn a_wake_up_ends_parking_whenever_it_comes() {
        let waiter = Arc::new(Waiter::default());
        waiter.wake_by_ref();
        waiter.park(None);
        waiter.park(Some(Instant::now()));
        std::thread::scope(|scope| {
            let parked = scope.spawn(|| waiter.park(None));
            waiter.wake_by_ref();
            parked.join().unwrap();
        });
    }
}
