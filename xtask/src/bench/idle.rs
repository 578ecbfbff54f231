//! What a sandbox that does nothing costs: this process and its monitor together.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use throughline_wire::port;

use super::Runs;
use super::figure::{Figure, Goal};
use super::vm::{self, Threads};

/// Until what the boot began has ended.
const SETTLE: Duration = Duration::from_secs(3);
const WINDOW: Duration = Duration::from_secs(1);

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    vm::block_on(Threads::Two, async {
        let sandbox = vm::boot(root).await?;
        let monitor = clock_getcpuclockid(Pid::from_raw(sandbox.machine().pid))?;
        // Somebody waits for a message, as somebody would: so the backstop runs.
        let mut waiting = sandbox.link().connect_messages(port::ECHO).await?;
        let waiting = tokio::spawn(async move { waiting.recv().await });
        tokio::time::sleep(SETTLE).await;
        let (mut host, mut guest, mut both) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs.usual() {
            let (started, before) = (Instant::now(), spent(monitor)?);
            tokio::time::sleep(WINDOW).await;
            let (elapsed, after) = (started.elapsed(), spent(monitor)?);
            let share = |spent: Duration| 100.0 * spent.as_secs_f64() / elapsed.as_secs_f64();
            let shares = (share(after.0.saturating_sub(before.0)), share(after.1.saturating_sub(before.1)));
            host.push(shares.0);
            guest.push(shares.1);
            both.push(shares.0 + shares.1);
        }
        waiting.abort();
        sandbox.kill().await?;
        let both = Figure::new("idle: host process and monitor", "%", both)?.goal(Goal::AtMost(1.0));
        Ok(vec![
            both.note("of a core, in successive windows of a second; a task waits for a message meanwhile"),
            Figure::new("idle: the host process alone", "%", host)?,
            Figure::new("idle: the monitor alone", "%", guest)?,
        ])
    })
}

/// Processor time of this process and of the monitor.
fn spent(monitor: ClockId) -> Result<(Duration, Duration)> {
    Ok((ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?.into(), monitor.now()?.into()))
}
