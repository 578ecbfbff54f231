//! Children that waited, rehearsed, to be taken.

use std::time::{Duration, Instant};

use anyhow::Result;
use throughline_sandbox::{Pool, Zygote};

use super::Runs;
use super::command::proportional_megabytes;
use super::figure::{Figure, Goal};
use super::vm;

/// Children that wait at one time.
const SIZE: usize = 2;
/// Until the pool's own work has ended that was under way.
const SETTLE: Duration = Duration::from_millis(200);

pub async fn measure(zygote: Zygote, runs: Runs) -> Result<Vec<Figure>> {
    let pool = zygote.pool(SIZE);
    let (mut ready, mut ran, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs.usual() {
        let Taken { ready_ms, ran_ms, megabytes } = one(&pool).await?;
        ready.push(ready_ms);
        ran.push(ran_ms);
        memory.push(megabytes);
    }
    Ok(vec![
        Figure::new("take: to ready (identity acknowledged)", "ms", ready)?,
        Figure::new("take: to the end of a first command", "ms", ran)?.goal(Goal::AtMost(25.0)),
        Figure::new("memory of the monitor of a child that was just taken (PSS)", "MB", memory)?,
    ])
}

struct Taken {
    ready_ms: f64,
    ran_ms: f64,
    megabytes: f64,
}

async fn one(pool: &Pool) -> Result<Taken> {
    pool.filled(SIZE).await;
    tokio::time::sleep(SETTLE).await;
    let started = Instant::now();
    let child = pool.take(None).await?;
    let ready = started.elapsed();
    child.command("true").output().await?;
    let ran = started.elapsed();
    let megabytes = proportional_megabytes(child.record().machine.pid.cast_unsigned())?;
    child.kill().await?;
    Ok(Taken { ready_ms: vm::millis(ready), ran_ms: vm::millis(ran), megabytes })
}
