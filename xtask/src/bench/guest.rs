//! Between host and guest: round trips, and the bells that they cost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use throughline::{Counters, Messages, TryRecv};
use throughline_sandbox::Sandbox;
use throughline_wire::echo::Poll;
use throughline_wire::info::Info;
use throughline_wire::{encode, port};

use super::Runs;
use super::figure::{Figure, Goal, Samples};
use super::processes::Patience;
use super::vm::{self, Informant, Threads};

const POLLED: usize = 5000;
const SLEEPING: usize = 200;
/// Longer than the guest polls before it sleeps. The host's core stays awake meanwhile: what is measured
/// is the doorbell, not how deep an idle processor sleeps.
const PAUSE: Duration = Duration::from_micros(100);
const MESSAGE: [u8; 8] = [7; 8];

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    vm::block_on(Threads::One, async {
        let sandbox = vm::boot(root).await?;
        let mut figures = polled(&sandbox, runs).await?;
        figures.extend(sleeping(&sandbox, runs).await?);
        sandbox.kill().await?;
        Ok(figures)
    })
}

/// Both sides poll.
async fn polled(sandbox: &Sandbox, runs: Runs) -> Result<Vec<Figure>> {
    let mut echo = sandbox.link().connect_messages(port::ECHO_POLL).await?;
    echo.send(&encode(&Poll { millis: 5000 })?).await?;
    // The code is translated on its first runs.
    poll_round_trips(&mut echo, 2 * POLLED)?;
    let mut watch = Watch::begin(sandbox).await?;
    let mut medians = Vec::new();
    for _ in 0..runs.usual() {
        poll_round_trips(&mut echo, POLLED / 10)?;
        medians.push(Samples::new(poll_round_trips(&mut echo, POLLED)?)?.median() / 1e3);
        tokio::task::yield_now().await;
    }
    let bells = watch.end(sandbox).await?;
    // Asking for the guest's counters takes bells too.
    let mut watch = Watch::begin(sandbox).await?;
    let asking = watch.end(sandbox).await?;
    let host = bells.host_rang.saturating_sub(asking.host_rang);
    let guest = bells.guest_rang.saturating_sub(asking.guest_rang);
    let note = format!("{host} by the host, {guest} by the guest, in {} round trips", runs.usual() * POLLED);
    let median = Figure::new("8 B round trip, both polling (p50 of a run)", "µs", medians)?;
    let bells = Figure::new("bells while both poll", "bells", vec![count(host + guest)])?;
    Ok(vec![median.goal(Goal::AtMost(2.0)), bells.goal(Goal::AtMost(0.0)).note(note)])
}

/// Both sides sleep; each message wakes its receiver through the doorbell.
async fn sleeping(sandbox: &Sandbox, runs: Runs) -> Result<Vec<Figure>> {
    let mut echo = sandbox.link().connect_messages(port::ECHO).await?;
    sleep_round_trips(&mut echo, SLEEPING).await?;
    let mut watch = Watch::begin(sandbox).await?;
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for _ in 0..runs.usual() {
        let times = Samples::new(sleep_round_trips(&mut echo, SLEEPING).await?)?;
        medians.push(times.median() / 1e3);
        tails.push(times.percentile(99) / 1e3);
    }
    let bells = watch.end(sandbox).await?;
    let trips = count((runs.usual() * SLEEPING) as u64);
    let slept = [bells.guest_slept, bells.host_slept].map(|slept| count(slept) / trips);
    let note = format!("sleeps of the guest in a round trip {:.2}, of the host {:.2}", slept[0], slept[1]);
    let sent = |bells: u64, sleeps: u64| vec![count(bells) / count(sleeps.max(1))];
    let note_of = |bells: u64, sleeps: u64| format!("{bells} bells, {sleeps} sleeps");
    let median = Figure::new("8 B round trip, both sleeping (p50 of a run)", "µs", medians)?;
    let to_guest = Figure::new("bells for a sleep of the guest", "bells", sent(bells.host_rang, bells.guest_slept))?;
    let to_host = Figure::new("bells for a sleep of the host", "bells", sent(bells.guest_rang, bells.host_slept))?;
    let found = bells.backstop;
    Ok(vec![
        median.goal(Goal::AtMost(250.0)).note(note),
        Figure::new("the same, p99 of a run", "µs", tails)?,
        to_guest.goal(Goal::ONE_BELL).note(note_of(bells.host_rang, bells.guest_slept)),
        to_host.goal(Goal::ONE_BELL).note(note_of(bells.guest_rang, bells.host_slept)),
        Figure::new("messages that only the backstop found", "", vec![count(found)])?.goal(Goal::AtMost(0.0)),
    ])
}

fn poll_round_trips(echo: &mut Messages, trips: usize) -> Result<Vec<f64>> {
    let mut answer = Vec::new();
    let mut times = Vec::with_capacity(trips);
    for _ in 0..trips {
        let started = Instant::now();
        let mut patience = Patience::new();
        while !echo.try_send(&MESSAGE)? {
            patience.look()?;
        }
        while echo.try_recv(&mut answer)? != TryRecv::Message {
            patience.look()?;
        }
        times.push(nanos(started));
    }
    Ok(times)
}

async fn sleep_round_trips(echo: &mut Messages, trips: usize) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(trips);
    for _ in 0..trips {
        let paused = Instant::now();
        while paused.elapsed() < PAUSE {
            std::hint::spin_loop();
        }
        let started = Instant::now();
        echo.send(&MESSAGE).await?;
        echo.recv().await?.context("the echo ended")?;
        times.push(nanos(started));
    }
    Ok(times)
}

/// What both sides counted in a while.
struct Bells {
    host_rang: u64,
    host_slept: u64,
    guest_rang: u64,
    guest_slept: u64,
    backstop: u64,
}

/// Counts from here on. Bells are counted within the time in which the sleeps are, so that a bell
/// never lacks its sleep.
struct Watch {
    informant: Informant,
    sleeps: Counters,
    guest: Info,
    bells: Counters,
}

impl Watch {
    async fn begin(sandbox: &Sandbox) -> Result<Self> {
        let mut informant = Informant::connect(sandbox).await?;
        informant.ask().await?;
        let sleeps = sandbox.link().counters();
        let guest = informant.ask().await?;
        Ok(Self { informant, sleeps, guest, bells: sandbox.link().counters() })
    }

    async fn end(&mut self, sandbox: &Sandbox) -> Result<Bells> {
        let bells = sandbox.link().counters();
        let guest = self.informant.ask().await?;
        let host = sandbox.link().counters();
        let counted = |name| -> Result<u64> { Ok(counter(&guest, name)? - counter(&self.guest, name)?) };
        Ok(Bells {
            host_rang: bells.bells_sent - self.bells.bells_sent,
            host_slept: host.sleeps - self.sleeps.sleeps,
            guest_rang: counted("bells_sent")?,
            guest_slept: counted("sleeps")?,
            backstop: host.backstop_finds - self.sleeps.backstop_finds + counted("backstop_finds")?,
        })
    }
}

fn counter(info: &Info, name: &str) -> Result<u64> {
    let found = info.counters.iter().find(|(counter, _)| counter == name);
    found.map(|(_, value)| *value).with_context(|| format!("the guest does not count {name}"))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn count(value: u64) -> f64 {
    value as f64
}

fn nanos(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e9
}
