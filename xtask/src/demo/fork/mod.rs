//! `cargo xtask demo fork`: one process is prepared; its children, each a guest of its own, go on with what it has.
//!
//! ```text
//!   Debian boots, python3 prepares its state, and prints line after line ── seconds, once
//!        │ zygote: the source stands still for a moment, and goes on
//!        ├──────────────┬──────────────┐
//!     child 1        child 2        child n   ── each goes on at the same byte
//!        │ ask          │              │
//!     answers from the same state, with what only this guest has: all right, no two alike
//! ```

mod check;
mod report;
mod transcript;
mod userland;
mod warmed;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Pid;
use throughline::Event;
use throughline_sandbox::image::Image;
use throughline_sandbox::{Restore, Sandbox, Zygote};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::output::Progress;
use super::process::proportional_memory;
use super::{hint_at_emulation, until_told_to_end};
use crate::{leftovers, setup};
use check::{Fork, Forked, Source};
use report::Report;
use transcript::{Prepared, Transcript};
use warmed::{PATIENCE, Warmed};

/// Memory of a guest, in MiB.
const MEMORY: u32 = 512;
/// Lines that the process has printed when the fork comes, and lines that each goes on for after its answer.
const BEFORE: u64 = 10;
const AFTER: u64 = 2;

/// How to run it.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print one JSON object per child, and the result as the last line
    #[arg(long)]
    json: bool,
    /// How many children
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(2..=100))]
    children: u16,
    /// Spoil something; the demo must then fail
    #[arg(long = "break", value_enum, hide = true)]
    broken: Option<Break>,
}

/// What is spoilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Break {
    /// The first two children use nothing of their own for their answers
    Alike,
    /// A byte of the second child's output is lost on the way
    Byte,
}

/// Runs it; whether everything was as it must be.
pub fn run(arguments: &Arguments) -> Result<bool> {
    setup::ensure()?;
    leftovers::adopt_orphans()?;
    let prefix = format!("throughline-demo-{}-", std::process::id());
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir().context("cannot create a temporary folder")?;
    // The scripts of the userland's packages run under other names, too.
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711))?;
    let result = until_told_to_end(show(arguments, folder.path()));
    for index in 1..=arguments.children {
        Sandbox::clear(&name(&format!("child-{index}")))?;
    }
    Sandbox::clear(&name("source"))?;
    result
}

/// The name of one of this run's sandboxes.
fn name(part: &str) -> String {
    format!("demo-{}-{part}", std::process::id())
}

async fn show(arguments: &Arguments, folder: &Path) -> Result<bool> {
    // Userland, boot, preparation, lines, fork, children, end.
    let progress = Progress::new(u64::from(arguments.children) + 6);
    progress.step("userland of the guests");
    let image = userland::image(folder, &progress).await?;
    hint_at_emulation(&progress).await?;
    let prepared = Arc::new(tokio::task::spawn_blocking(Prepared::new).await?);
    let (sandbox, mut process, mut source) = prepare(image, prepared.clone(), &progress).await?;
    progress.step("fork");
    let zygote = sandbox.zygote().await?;
    source.fork = Fork::of(&zygote)?;
    let begun = Instant::now();
    let children = raise_all(&zygote, process.transcript(), arguments, &progress).await?;
    source.all_ms = millis(begun.elapsed());
    progress.step("to the end");
    let children = end_all(children).await?;
    source.answer = Some(process.ask("ask").await?);
    process.lines(AFTER).await?;
    source.findings = process.finish().await?;
    sandbox.kill().await?;
    progress.end();
    let verdict = check::judge(&prepared, &source, &children);
    let report = Report::new(&source, &children, &verdict);
    if arguments.json {
        report.json()?;
    } else {
        report.table();
    }
    Ok(verdict.passed())
}

/// Boots a guest, and prepares the process in it: what every child is spared.
async fn prepare(image: Image, prepared: Arc<Prepared>, progress: &Progress) -> Result<(Sandbox, Warmed, Source)> {
    progress.step("boot");
    let begun = Instant::now();
    let sandbox = Sandbox::builder(image).name(name("source")).memory_mib(MEMORY).create().await?;
    let boot_ms = millis(begun.elapsed());
    progress.step("preparation");
    let (mut process, preparation) = Warmed::start(&sandbox, prepared).await?;
    let afresh_ms = millis(begun.elapsed());
    progress.step("lines");
    process.lines(BEFORE).await?;
    let source = Source {
        timeline: sandbox.link().timeline(),
        preparation,
        from: process.transcript().bytes(),
        boot_ms,
        afresh_ms,
        memory_bytes: memory(&sandbox)?,
        fork: Fork::default(),
        all_ms: 0.0,
        answer: None,
        findings: Vec::new(),
    };
    Ok((sandbox, process, source))
}

/// A child that has answered.
struct Raised {
    sandbox: Sandbox,
    process: Warmed,
    child: Forked,
}

/// All children, each asked as soon as it is there; in their order.
async fn raise_all(
    zygote: &Zygote,
    transcript: &Transcript,
    arguments: &Arguments,
    progress: &Progress,
) -> Result<Vec<Raised>> {
    // More at once would only wait for each other.
    let room = Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(2, std::num::NonZero::get)));
    let mut coming = JoinSet::new();
    for index in 1..=arguments.children {
        let (room, transcript) = (room.clone(), transcript.clone());
        let child = zygote.spawn().name(name(&format!("child-{index}")));
        let broken = arguments.broken;
        coming.spawn(async move {
            let _room = room.acquire().await?;
            raise(child, index, transcript, broken).await.with_context(|| format!("child {index}"))
        });
    }
    let mut children = Vec::new();
    while let Some(raised) = coming.join_next().await {
        let raised = raised??;
        progress.step(&format!("child {} has answered", raised.child.index));
        children.push(raised);
    }
    children.sort_by_key(|raised| raised.child.index);
    // All of them live, and share what they share.
    for raised in &mut children {
        raised.child.memory_bytes = memory(&raised.sandbox)?;
    }
    Ok(children)
}

async fn raise(child: Restore, index: u16, transcript: Transcript, broken: Option<Break>) -> Result<Raised> {
    let begun = Instant::now();
    let sandbox = child.start().await?;
    let ready_ms = millis(begun.elapsed());
    let mut process = Warmed::adopt(&sandbox, transcript)?;
    if broken == Some(Break::Byte) && index == 2 {
        process.lose_a_byte();
    }
    let question = if broken == Some(Break::Alike) && index <= 2 { "alike" } else { "ask" };
    let answer = process.ask(question).await?;
    let answer_ms = millis(begun.elapsed());
    let event = timeout(PATIENCE, sandbox.link().event()).await.context("nobody says whose child it is")?;
    let child = Forked {
        index,
        ready_ms,
        answer_ms,
        timeline: sandbox.link().timeline(),
        from: process.from(),
        answer,
        lineage: lineage(event),
        memory_bytes: 0,
        findings: Vec::new(),
    };
    Ok(Raised { sandbox, process, child })
}

/// The timeline that an event says to be forked from, and the child's number.
fn lineage(event: Event) -> Option<(u128, u64)> {
    if let Event::Forked { from, index, .. } = event { Some((from, index)) } else { None }
}

/// Lets all of them go on, and end; in their order.
async fn end_all(raised: Vec<Raised>) -> Result<Vec<Forked>> {
    let mut ending: JoinSet<_> = raised.into_iter().map(end).collect();
    let mut children = Vec::new();
    while let Some(child) = ending.join_next().await {
        children.push(child??);
    }
    children.sort_by_key(|child| child.index);
    Ok(children)
}

async fn end(raised: Raised) -> Result<Forked> {
    let Raised { sandbox, mut process, mut child } = raised;
    let went_on = async {
        process.lines(AFTER).await?;
        process.finish().await
    };
    match went_on.await {
        Ok(findings) => child.findings.extend(findings),
        Err(error) => child.findings.push(format!("{error:#}")),
    }
    sandbox.kill().await?;
    Ok(child)
}

/// Memory of a sandbox's machine.
fn memory(sandbox: &Sandbox) -> Result<u64> {
    proportional_memory(Pid::from_raw(sandbox.machine().pid).context("no process of that number")?)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
