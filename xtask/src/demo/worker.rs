//! One timeline's process: it embeds the sandbox and its link (host), and runs the client. It is meant to be killed.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use throughline::{Link, Messages};
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::image::ImageBuilder;
use throughline_sandbox::{Sandbox, Stage};
use throughline_wire::report::{self, Reply};
use throughline_wire::{decode, encode, info, port};
use tokio::time::{sleep, timeout};

use super::course::Course;
use super::record::{Event, Mark, Writer};
use super::traffic::Traffic;

/// Bytes that each ring must hold before a snapshot is taken.
const ENOUGH: u64 = 8 << 10;

/// How long traffic runs, once the rings have filled, before what comes next.
const RUN: Duration = Duration::from_millis(500);

/// How long a source goes on after its snapshot before it may be killed, at least.
const GOES_ON: Duration = Duration::from_millis(250);

/// How long anything that is not a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a source goes on before it gives up waiting to be killed.
const UNTIL_KILLED: Duration = Duration::from_mins(1);

/// What a worker is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folder of the clients' records
    #[arg(long)]
    records: PathBuf,
    /// Number of the timeline, which names its record
    #[arg(long)]
    timeline: usize,
    /// Name of the sandbox
    #[arg(long)]
    name: String,
    /// The bundle to restore; boots without one
    #[arg(long)]
    restore: Option<PathBuf>,
    /// Seed of the traffic, for a boot; a bundle brings its own
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the snapshot shall lie; without one the traffic is brought to its end
    #[arg(long)]
    snapshot: Option<PathBuf>,
    /// Leave consumed bytes as they are
    #[arg(long)]
    unscrubbed: bool,
}

/// What a worker says on its standard output, a line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Line {
    /// The guest has answered for the first time, and traffic runs.
    Running {
        /// The monitor's process.
        machine: i32,
        /// From the call until the guest was ready.
        ready_ms: f64,
        /// From the call until the first acknowledged exchange.
        exchange_ms: f64,
    },
    /// Every ring has held unread bytes; the host's words then, for [`Break::Sidecar`](super::Break::Sidecar).
    Flowing {
        /// The host's own copy of its words.
        sidecar: PathBuf,
    },
    /// The snapshot is complete, and the source goes on.
    Snapshot {
        /// How long the guest stood still.
        pause_ms: f64,
    },
    /// The source has gone on for long enough, with traffic in both directions of both channels; it goes on still.
    WentOn,
    /// Everything has come to its end.
    Finished,
    /// Something failed.
    Failed(String),
}

impl Line {
    fn say(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(self)?)?;
        Ok(out.flush()?)
    }
}

/// Runs a timeline.
pub fn run(arguments: &Arguments) -> Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if arguments.unscrubbed {
        throughline_ring::switches::stop_scrubbing();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(timeline(arguments));
    match &result {
        Ok(()) => Line::Finished.say()?,
        Err(error) => Line::Failed(format!("{error:#}")).say()?,
    }
    Ok(result.is_ok())
}

async fn timeline(arguments: &Arguments) -> Result<()> {
    let writer = Writer::create(&arguments.records, arguments.timeline)?;
    let started = Instant::now();
    let mut sandbox = start(arguments).await?;
    // On a machine that is busy with other things an emulated guest may take long; the demo measures no deadline.
    sandbox.quiet_deadline(PATIENCE);
    exchange(&sandbox).await?;
    let exchange_ms = milliseconds(started.elapsed());
    let link = sandbox.link();
    writer.add(Event::Began { timeline: link.timeline(), marks: Mark::all(link) })?;
    let running =
        Line::Running { machine: sandbox.machine().pid, ready_ms: milliseconds(sandbox.timings().ready), exchange_ms };
    running.say()?;
    let mut traffic = match arguments.restore {
        Some(_) => Traffic::resume(link, &writer)?,
        None => Traffic::begin(link, arguments.seed, &writer).await?,
    };
    let first = tokio::select! {
        result = lead(&sandbox, arguments, &writer) => result,
        error = traffic.failed(&writer) => Err(error),
    };
    let result = match first {
        Ok(()) => timeout(PATIENCE, traffic.finish(&writer)).await.context("the traffic did not come to its end")?,
        Err(error) => {
            traffic.linger(RUN, &writer).await;
            Err(error)
        }
    };
    let guest = timeout(PATIENCE, guest_record(sandbox.link())).await;
    if let Ok(Ok(guest)) = guest {
        writer.add(Event::Guest(guest))?;
    }
    if result.is_ok() {
        writer.add(Event::Finished)?;
    }
    sandbox.kill().await?;
    result
}

async fn start(arguments: &Arguments) -> Result<Sandbox> {
    let Some(place) = &arguments.restore else {
        let image = tokio::task::spawn_blocking(|| ImageBuilder::new().build()).await??;
        return Ok(Sandbox::builder(image).name(&arguments.name).create().await?);
    };
    let bundle = Bundle::open(place)?;
    Ok(Sandbox::restore(bundle).name(&arguments.name).start().await?)
}

/// Leads a timeline up to its end, or until it is killed.
async fn lead(sandbox: &Sandbox, arguments: &Arguments, writer: &Writer) -> Result<()> {
    filled(sandbox.link()).await?;
    Line::Flowing { sidecar: sandbox.memory().join("sidecar") }.say()?;
    sleep(RUN).await;
    let Some(place) = &arguments.snapshot else { return Ok(()) };
    filled(sandbox.link()).await?;
    let (link, frozen) = (sandbox.link().clone(), writer.clone());
    let observer = move |stage| {
        if stage == Stage::Paused {
            // Without this entry the verdict finds no snapshot, and says so.
            let _ = frozen.add(Event::Frozen(Mark::all(&link)));
        }
    };
    let (_, report) = sandbox.snapshot_with(place).observer(observer).take().await?;
    writer.add(Event::GoesOn)?;
    Line::Snapshot { pause_ms: milliseconds(report.stand_still) }.say()?;
    timeout(UNTIL_KILLED, go_on(sandbox.link(), writer)).await.context("the source was not killed")?
}

/// Waits until every ring holds unread bytes.
async fn filled(link: &Link) -> Result<()> {
    let full = || {
        let marks = Mark::all(link);
        let mut records = marks.iter().filter(|mark| Course::RECORDS.contains(&mark.course));
        records.clone().count() == Course::RECORDS.len()
            && records.all(|mark| mark.unread >= ENOUGH && mark.sent_unread >= ENOUGH)
    };
    let filling = async {
        while !full() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let filled = timeout(PATIENCE, filling).await;
    filled.with_context(|| format!("the rings did not fill: {:?}", Mark::all(link)))
}

/// Goes on until it is killed, and writes down again and again what the guest has written down.
async fn go_on(link: &Link, writer: &Writer) -> Result<()> {
    let (since, mut before, mut told) = (Instant::now(), Mark::all(link), false);
    before.retain(|mark| Course::RECORDS.contains(&mark.course));
    loop {
        writer.add(Event::Guest(guest_record(link).await?))?;
        let now = Mark::all(link);
        let moved = |before: &Mark| {
            let now = now.iter().find(|now| now.course == before.course);
            now.is_some_and(|now| now.sent > before.sent && now.received > before.received)
        };
        if !told && since.elapsed() >= GOES_ON && before.iter().all(moved) {
            Line::WentOn.say()?;
            told = true;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// What the guest has written down.
async fn guest_record(link: &Link) -> Result<Vec<report::Channel>> {
    let mut messages = link.connect_messages(port::REPORT).await?;
    messages.send(&encode(&report::Request::All)?).await?;
    let mut channels = Vec::new();
    loop {
        match decode(&answer(&mut messages).await?)? {
            Reply::Channel(channel) => channels.push(*channel),
            Reply::End { .. } => return Ok(channels),
        }
    }
}

async fn answer(messages: &mut Messages) -> Result<Vec<u8>> {
    messages.recv().await?.context("the guest ended the channel without an answer")
}

/// A question and its answer.
async fn exchange(sandbox: &Sandbox) -> Result<()> {
    let ask = async {
        let mut messages = sandbox.link().connect_messages(port::INFO).await?;
        messages.send(&encode(&info::Request)?).await?;
        let info: info::Info = decode(&answer(&mut messages).await?)?;
        if info.epoch != sandbox.link().timeline() {
            bail!("the guest serves under another identity than its timeline's");
        }
        Ok(())
    };
    timeout(PATIENCE, ask).await.context("the guest does not answer")?
}

/// For people: milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
