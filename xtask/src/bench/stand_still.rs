//! How long a guest stands still for a snapshot, as a program in it would suffer it.
//!
//! A program in the guest ticks each millisecond; the host stamps each tick with its own clock, since
//! the guest's clocks stand still as well. The largest distance between two ticks is the stand-still,
//! the period and the delivery included.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::{Sandbox, SnapshotReport};
use throughline_wire::ticker::Request;
use throughline_wire::{encode, port};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::Runs;
use super::figure::{Figure, Goal};
use super::vm::{self, Threads};

const PERIOD: Duration = Duration::from_millis(1);
/// Watched before and after what is measured.
const MARGIN: Duration = Duration::from_millis(100);
/// Without a tick for so long, the guest is dead.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    let folder = vm::folder()?;
    let bundle = folder.path().join("bundle");
    vm::block_on(Threads::Two, async {
        let sandbox = vm::boot(root).await?;
        let names = ["booted: largest gap of a 1 ms ticker", "booted: the processors' pause", "booted: RAM copied"];
        let mut figures = series(&sandbox, runs, folder.path(), names).await?;
        let quiet = "booted: largest gap without a snapshot";
        figures.push(Figure::new(quiet, "ms", baseline(&sandbox, runs).await?)?);
        sandbox.snapshot_and_stop(&bundle).await?;
        let sandbox = Sandbox::restore(Bundle::open(&bundle)?).start().await?;
        let names =
            ["restored: largest gap of a 1 ms ticker", "restored: the processors' pause", "restored: RAM copied"];
        figures.extend(series(&sandbox, runs, folder.path(), names).await?);
        sandbox.kill().await?;
        Ok(figures)
    })
}

/// Snapshots of one sandbox that goes on.
async fn series(sandbox: &Sandbox, runs: Runs, folder: &Path, names: [&'static str; 3]) -> Result<Vec<Figure>> {
    let ticks = Ticks::start(sandbox).await?;
    let (mut gaps, mut pauses, mut copied) = (Vec::new(), Vec::new(), Vec::new());
    let place = folder.join("going-on");
    for _ in 0..runs.usual() {
        let (gap, report) = ticks.largest_gap(async { Ok(sandbox.snapshot(&place).await?.1) }).await?;
        gaps.push(vm::millis(gap));
        pauses.push(vm::millis(report.stand_still));
        copied.push(mebibytes(report));
        std::fs::remove_dir_all(&place)?;
    }
    let gaps = Figure::new(names[0], "ms", gaps)?.goal(Goal::AtMost(50.0));
    Ok(vec![gaps, Figure::new(names[1], "ms", pauses)?, Figure::new(names[2], "MiB", copied)?])
}

async fn baseline(sandbox: &Sandbox, runs: Runs) -> Result<Vec<f64>> {
    let ticks = Ticks::start(sandbox).await?;
    let mut gaps = Vec::new();
    for _ in 0..runs.usual() {
        let wait = async {
            sleep(Duration::from_millis(300)).await;
            Ok(())
        };
        gaps.push(vm::millis(ticks.largest_gap(wait).await?.0));
    }
    Ok(gaps)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mebibytes(report: SnapshotReport) -> f64 {
    (report.copied + report.corrected) as f64 / f64::from(1 << 20)
}

/// When ticks arrived.
struct Ticks {
    arrivals: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<Result<()>>,
}

impl Drop for Ticks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ticks {
    async fn start(sandbox: &Sandbox) -> Result<Self> {
        let mut messages = sandbox.link().connect_messages(port::TICKER).await?;
        let period_us = u32::try_from(PERIOD.as_micros())?;
        messages.send(&encode(&Request { period_us })?).await?;
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let kept = arrivals.clone();
        let task = tokio::spawn(async move {
            loop {
                let tick = timeout(PATIENCE, messages.recv()).await.context("the ticks stopped")??;
                ensure!(tick.is_some(), "the ticker ended");
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        });
        Ok(Self { arrivals, task })
    }

    /// The largest gap while something is done, and for a while before and after.
    async fn largest_gap<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<(Duration, T)> {
        self.take();
        sleep(MARGIN).await;
        let done = doing.await?;
        sleep(MARGIN).await;
        ensure!(!self.task.is_finished(), "the ticks ended");
        let arrivals = self.take();
        ensure!(arrivals.len() > 2, "the guest does not tick");
        Ok((largest_gap(&arrivals), done))
    }

    fn take(&self) -> Vec<Instant> {
        std::mem::take(&mut *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn largest_gap(arrivals: &[Instant]) -> Duration {
    arrivals.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gap_is_between_neighbours() {
        let start = Instant::now();
        let at = |millis: &[u64]| millis.iter().map(|at| start + Duration::from_millis(*at)).collect::<Vec<_>>();
        assert_eq!(largest_gap(&at(&[0, 1, 9, 10, 14])), Duration::from_millis(8));
        assert_eq!(largest_gap(&at(&[5])), Duration::ZERO);
    }
}
