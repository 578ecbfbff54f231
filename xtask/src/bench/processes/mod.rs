//! Two processes, each pinned to a core of its own, over a memfd and eventfds.
//!
//! What two cores cost each other depends on where the hypervisor has put them, and changes while one
//! measures. So every run begins and ends with a probe, a signal that goes to and fro; runs in which
//! the cores were far apart are discarded, and counted. Ratios are taken within a run.

#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod line;
mod memory;
mod pair;
mod peer;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Runs;
use super::figure::{Figure, Goal};
use line::Gait;
use memory::Copies;
use pair::Pair;

pub use line::Patience;
pub use peer::be_peer;

/// A slower cache line means cores that are far apart: neighbours need some 110 ns.
const FAR: f64 = 200.0;
/// How long to wait for the cores to come near; then what there is has to do.
const PATIENCE: [Duration; 2] = [Duration::from_mins(1), Duration::from_secs(15)];
/// Between two probes, while they are far apart.
const PAUSE: Duration = Duration::from_millis(100);
const BLOCK: usize = 64 << 10;
const SLEEPING: usize = 300;

/// What one run came to; nanoseconds a round trip, and messages a second.
#[derive(Clone, Copy)]
struct Run {
    line: f64,
    /// The same at the end.
    line_after: f64,
    line_paused: f64,
    round_trip: f64,
    /// Bells in all of the round trips.
    bells: u64,
    blocks: f64,
    copies: Copies,
    small: f64,
    medium: f64,
}

impl Run {
    fn is_near(&self) -> bool {
        self.line.max(self.line_after) <= FAR
    }
}

pub fn measure(runs: Runs) -> Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cores = pair::cores()?;
    let before = rustix::thread::sched_getaffinity(None)?;
    pair::pin(cores[0])?;
    let figures = runtime.block_on(async {
        let pair = Pair::start(cores[1]).await?;
        let mut figures = polled(&pair, runs).await?;
        figures.extend(sleeping(&pair, runs).await?);
        pair.end()?;
        Ok(figures)
    });
    rustix::thread::sched_setaffinity(None, &before)?;
    figures
}

async fn polled(pair: &Pair, runs: Runs) -> Result<Vec<Figure>> {
    let until = Instant::now() + PATIENCE[usize::from(runs.quick)];
    let (mut good, mut poor) = (Vec::new(), Vec::new());
    while good.len() < runs.usual() && (Instant::now() < until || poor.len() < runs.usual()) {
        if Instant::now() < until && pair.line(Gait::Rush).await? > FAR {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let run = one_run(pair).await?;
        if run.is_near() { good.push(run) } else { poor.push(run) }
    }
    let note = match good.len() {
        0 => "the cores were far apart all the time: only the ratios mean anything".to_owned(),
        _ => format!("{} runs discarded: the cores were far apart (a line took more than {FAR} ns)", poor.len()),
    };
    describe(if good.is_empty() { &poor } else { &good }, &note)
}

async fn one_run(pair: &Pair) -> Result<Run> {
    let line = pair.line(Gait::Rush).await?;
    let line_paused = pair.line(Gait::Pause).await?;
    let (round_trip, bells) = traffic::round_trips(pair).await?;
    let copies = memory::copies(BLOCK);
    let blocks = traffic::one_way(pair, BLOCK).await?;
    let small = traffic::one_way(pair, 64).await?;
    let medium = traffic::one_way(pair, 1 << 10).await?;
    let line_after = pair.line(Gait::Rush).await?;
    Ok(Run { line, line_after, line_paused, round_trip, bells, blocks, copies, small, medium })
}

fn describe(runs: &[Run], note: &str) -> Result<Vec<Figure>> {
    let of = |value: fn(&Run) -> f64| runs.iter().map(value).collect::<Vec<f64>>();
    let rate = |run: &Run| run.blocks * BLOCK as f64;
    let trips = Figure::new("8 B round trip, both polling / cache line", "×", of(|run| run.round_trip / run.line))?;
    let bulk = Figure::new("64 KiB messages / memcpy, hot in L2", "%", {
        runs.iter().map(|run| 100.0 * rate(run) / run.copies.hot).collect()
    })?;
    let streaming = runs.iter().map(|run| 100.0 * rate(run) / run.copies.streaming).collect();
    let giga = |bytes: f64| bytes / 1e9;
    Ok(vec![
        Figure::new("cache line, to and fro", "ns", of(|run| run.line))?.note(note),
        Figure::new("cache line, pausing while it waits", "ns", of(|run| run.line_paused))?,
        Figure::new("8 B round trip, both polling", "ns", of(|run| run.round_trip))?,
        trips.goal(Goal::AtMost(2.0)).note("of the same run, without pauses"),
        Figure::new("bells while both poll", "bells", of(|run| run.bells as f64))?.goal(Goal::AtMost(0.0)),
        Figure::new("memcpy, 64 KiB blocks hot in L2", "GB/s", of(|run| run.copies.hot / 1e9))?,
        Figure::new("memcpy, 64 KiB through a buffer of 4 MiB", "GB/s", of(|run| run.copies.streaming / 1e9))?,
        Figure::new("64 KiB messages, one way", "GB/s", runs.iter().map(|run| giga(rate(run))).collect())?,
        bulk.goal(Goal::AtLeast(50.0)).note("of the same run; the ring is 4 MiB a direction"),
        Figure::new("64 KiB messages / memcpy through 4 MiB", "%", streaming)?,
        Figure::new("64 B messages, one way, fed and flushed", "M/s", of(|run| run.small / 1e6))?,
        Figure::new("1 KiB messages, one way, fed and flushed", "M/s", of(|run| run.medium / 1e6))?,
    ])
}

/// Both sides sleep at once; each message wakes its receiver.
async fn sleeping(pair: &Pair, runs: Runs) -> Result<Vec<Figure>> {
    let mut medians = Vec::new();
    traffic::sleeping(pair, SLEEPING).await?;
    let slept = pair.peer_slept().await?;
    let sent = pair.link.counters().bells_sent;
    for _ in 0..runs.usual() {
        medians.push(traffic::sleeping(pair, SLEEPING).await? / 1e3);
    }
    // Counted within the time in which the sleeps are, so that no bell lacks its sleep.
    let bells = pair.link.counters().bells_sent - sent;
    let sleeps = pair.peer_slept().await? - slept;
    let figure = Figure::new("bells for a sleep of the peer", "bells", vec![bells as f64 / sleeps.max(1) as f64])?;
    Ok(vec![
        Figure::new("8 B round trip, both sleeping (p50 of a run)", "µs", medians)?,
        figure.goal(Goal::ONE_BELL).note(format!("{bells} bells, {sleeps} sleeps")),
    ])
}
