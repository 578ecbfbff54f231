//! Children of one moment: how soon they work, and what they take; a source that goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use throughline_sandbox::{Sandbox, Zygote};

use super::Runs;
use super::command::proportional_megabytes;
use super::figure::{Figure, Goal};
use super::vm::{self, Threads};

/// How long the guest has been up before it is saved.
const SETTLED: Duration = Duration::from_secs(3);
/// What the guest has touched, and what it touches between two snapshots.
const TOUCHED: &str = "dd if=/dev/urandom of=/dev/shm/touched bs=1M count=100";
const TOUCHED_AGAIN: &str = "dd if=/dev/urandom of=/dev/shm/touched bs=1M count=16 conv=notrunc";
const ALL_TOUCHED_AGAIN: &str = "dd if=/dev/urandom of=/dev/shm/touched bs=1M count=100 conv=notrunc";
const IN_A_ROW: usize = 10;

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    vm::block_on(Threads::Two, async {
        let sandbox = vm::boot(root).await?;
        tokio::time::sleep(SETTLED).await;
        let zygote = sandbox.zygote().await?;
        let mut figures = one(&zygote, runs).await?;
        figures.extend(many(&zygote, runs).await?);
        figures.extend(super::pool::measure(zygote, runs).await?);
        figures.extend(going_on(&sandbox, runs).await?);
        sandbox.kill().await?;
        Ok(figures)
    })
}

/// One after another.
async fn one(zygote: &Zygote, runs: Runs) -> Result<Vec<Figure>> {
    let (mut ready, mut ran) = (Vec::new(), Vec::new());
    for _ in 0..runs.usual() {
        let started = Instant::now();
        let child = zygote.spawn().start().await?;
        ready.push(vm::millis(started.elapsed()));
        child.command("true").output().await?;
        ran.push(vm::millis(started.elapsed()));
        child.kill().await?;
    }
    let ran = Figure::new("spawn: to the end of a first command", "ms", ran)?.goal(Goal::AtMost(90.0));
    Ok(vec![Figure::new("spawn: to ready (identity acknowledged)", "ms", ready)?, ran])
}

/// As many at once as there is to do for, again and again.
async fn many(zygote: &Zygote, runs: Runs) -> Result<Vec<Figure>> {
    let (mut took, mut memory) = (Vec::new(), Vec::new());
    let count = if runs.quick { 20 } else { 100 };
    for _ in 0..runs.usual() {
        let started = Instant::now();
        let children = zygote.spawn_many(count).await;
        took.push(started.elapsed().as_secs_f64());
        let children = children.into_iter().collect::<Result<Vec<_>, _>>()?;
        for child in &children {
            memory.push(proportional_megabytes(child.record().machine.pid.cast_unsigned())?);
        }
        for child in children {
            child.kill().await?;
        }
    }
    let all = Figure::new("spawn_many: all of them ready", "s", took)?;
    let all = if runs.quick { all } else { all.goal(Goal::AtMost(5.0)) };
    let memory = Figure::new("memory of a child's monitor (PSS)", "MB", memory)?.goal(Goal::AtMost(20.0));
    let host = "without shims, which take as much each as the command's figures say; the host process is one for all";
    Ok(vec![all.note(format!("{count} children")), memory.note(host)])
}

/// A source that goes on, time after time.
async fn going_on(sandbox: &Sandbox, runs: Runs) -> Result<Vec<Figure>> {
    touch(sandbox, TOUCHED).await?;
    let (mut first, mut last, mut all) = (Vec::new(), Vec::new(), Vec::new());
    // Thirty rows for the record: the first and the tenth are held against each other.
    for _ in 0..if runs.quick { 3 } else { runs.usual() } {
        let row = stand_stills(sandbox, TOUCHED_AGAIN, IN_A_ROW).await?;
        first.extend(row.first());
        last.extend(row.last());
        all.extend(row);
    }
    let more = stand_stills(sandbox, ALL_TOUCHED_AGAIN, runs.usual()).await?;
    let all = Figure::new("stand-still of a source that goes on", "ms", all)?.goal(Goal::AtMost(50.0));
    Ok(vec![
        all.note("100 MiB touched in all, 16 MiB since the one before"),
        Figure::new("… the first of ten in a row", "ms", first)?,
        Figure::new("… the tenth", "ms", last)?,
        Figure::new("… with all 100 MiB touched since the one before", "ms", more)?,
    ])
}

/// Of so many snapshots in a row, with a command before each.
async fn stand_stills(sandbox: &Sandbox, before: &str, count: usize) -> Result<Vec<f64>> {
    let folder = vm::folder()?;
    let mut stood = Vec::with_capacity(count);
    for _ in 0..count {
        touch(sandbox, before).await?;
        let place = folder.path().join("bundle");
        let (_, report) = sandbox.snapshot(&place).await?;
        std::fs::remove_dir_all(&place).context("cannot remove a bundle")?;
        stood.push(vm::millis(report.stand_still));
    }
    Ok(stood)
}

async fn touch(sandbox: &Sandbox, command: &str) -> Result<()> {
    let output = sandbox.command("sh").arg("-c").arg(command).output().await?;
    anyhow::ensure!(output.exit == throughline_wire::exec::Exit::Code(0), "{command}: {:?}", output.exit);
    Ok(())
}
