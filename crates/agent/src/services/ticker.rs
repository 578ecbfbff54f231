//! Numbered ticks; see [`throughline_wire::ticker`].

use std::fs::File;
use std::io::{self, Read};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use throughline::Messages;
use throughline_wire::ticker::{Request, Tick};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{ServiceError, recv, send};

pub(super) async fn serve(mut messages: Messages) -> Result<(), ServiceError> {
    let Some(request) = recv::<Request>(&mut messages).await? else { return Ok(()) };
    let timer = timer(request.period_us.max(Request::MIN_PERIOD))?;
    let mut tick = Tick { number: 0, periods: 0, monotonic_ns: 0, realtime_ns: 0 };
    loop {
        tick.periods += expirations(&timer).await?;
        tick.monotonic_ns = nanoseconds(ClockId::Monotonic);
        tick.realtime_ns = nanoseconds(ClockId::Realtime);
        send(&mut messages, &tick).await?;
        tick.number += 1;
    }
}

/// A kernel timer: the runtime's own have a resolution of a millisecond.
fn timer(period_us: u32) -> io::Result<AsyncFd<File>> {
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let period = Timespec { tv_sec: (period_us / 1_000_000).into(), tv_nsec: (period_us % 1_000_000 * 1000).into() };
    let timer = Itimerspec { it_interval: period, it_value: period };
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &timer)?;
    crate::sys::watch(fd.into(), Interest::READABLE)
}

/// Waits until at least one period is over, and takes all that are.
async fn expirations(timer: &AsyncFd<File>) -> io::Result<u64> {
    loop {
        let mut ready = timer.readable().await?;
        let mut count = [0; 8];
        match ready.try_io(|timer| timer.get_ref().read_exact(&mut count)) {
            Ok(result) => return result.map(|()| u64::from_ne_bytes(count)),
            Err(_would_block) => {}
        }
    }
}

/// A clock in nanoseconds; zero before its epoch.
pub(super) fn nanoseconds(clock: ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
