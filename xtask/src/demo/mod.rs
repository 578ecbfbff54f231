//! `cargo xtask demo`: the promise, shown on a real guest.
//!
//! ```text
//!   this process ── starts, kills ──► a worker per timeline: host (sandbox, link) and client, with its machine
//!        │                                │ snapshot in the middle of the traffic, every ring holding unread bytes
//!        │                                ▼
//!        │ moves ─────────────────────► bundle ── all that the next worker gets
//!        ▼
//!   a judge, which reads what clients and guests wrote down, and looks into the bundles
//! ```
//!
//! Host and client are one process, as they are for whoever embeds the sandbox: the link lives in the caller.

mod chain;
mod command;
mod course;
mod fork;
mod history;
mod output;
mod process;
mod received;
mod record;
mod rings;
mod sabotage;
mod traffic;
mod verdict;
mod worker;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use throughline_sandbox::Sandbox;
use throughline_sandbox::engine::{Accelerator, Engine, Qemu};
use throughline_sandbox::image::ImageBuilder;
use tokio::signal::unix::{SignalKind, signal};

use crate::{leftovers, setup};
use chain::Chain;
use output::Progress;

pub use sabotage::Break;
pub use verdict::Arguments as JudgeArguments;
pub use worker::Arguments as WorkerArguments;

/// How to run the demo.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Print one JSON object per timeline, and the result as the last line
    #[arg(long)]
    json: bool,
    /// How often to snapshot, kill and restore, in a chain
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    restores: u16,
    /// Keep bundles and records in this new folder
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Switch a part of the product off; the demo must then fail
    #[arg(long = "break", value_enum, hide = true)]
    broken: Option<Break>,
}

/// Another promise.
#[derive(clap::Subcommand)]
enum Other {
    /// Prepare a process once, in a Debian, and go on with it in many children: each answers for itself
    Fork(fork::Arguments),
}

/// Runs the demo; whether nothing was lost.
pub fn run(arguments: &Arguments) -> Result<bool> {
    if let Some(Other::Fork(arguments)) = &arguments.other {
        return fork::run(arguments);
    }
    setup::ensure()?;
    leftovers::adopt_orphans()?;
    let place = Place::new(arguments.keep.as_deref())?;
    let result = until_told_to_end(show(arguments, &place));
    for timeline in 0..=arguments.restores {
        Sandbox::clear(&chain::name(timeline.into()))?;
    }
    result
}

/// Does this work, unless somebody wants this process to end. No process of it stays behind, whatever came of it.
fn until_told_to_end(work: impl Future<Output = Result<bool>>) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            result = work => result,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
            _ = hangup.recv() => bail!("the terminal is gone"),
        }
    });
    runtime.shutdown_background();
    leftovers::end_descendants()?;
    result
}

/// Brings a timeline about; see [`worker`].
pub fn work(arguments: &WorkerArguments) -> Result<bool> {
    worker::run(arguments)
}

/// Judges; see [`verdict`].
pub fn judge(arguments: &JudgeArguments) -> Result<bool> {
    verdict::run(arguments)
}

async fn show(arguments: &Arguments, place: &Place) -> Result<bool> {
    // Image, three steps a timeline and a fourth for all but the last, verdict.
    let progress = Progress::new(u64::from(arguments.restores) * 4 + 5);
    progress.step("image of the guest");
    tokio::task::spawn_blocking(|| ImageBuilder::new().build()).await??;
    hint_at_emulation(&progress).await?;
    let chain = Chain {
        folder: place.path(),
        restores: arguments.restores.into(),
        broken: arguments.broken,
        keep: arguments.keep.is_some(),
    };
    let run = chain.run(&progress).await?;
    progress.step("verdict");
    let verdict = chain.judge().await?;
    progress.end();
    let result = output::Result::new(arguments.restores, &run, &verdict);
    if arguments.json {
        output::json(&run, &verdict, &result)?;
    } else {
        output::table(&run, &verdict, &result);
    }
    Ok(run.failure.is_none() && verdict.passed())
}

/// Says so where times are those of emulated guests.
async fn hint_at_emulation(progress: &Progress) -> Result<()> {
    let capabilities = Qemu::new().capabilities().await?;
    if capabilities.machine.accelerator == Accelerator::Tcg {
        progress.note(&format!("guests are emulated here, and slow: {}", capabilities.accelerator_reason));
    }
    Ok(())
}

/// Where bundles and records lie: in memory, and gone at the end, or where they are kept.
enum Place {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl Place {
    fn new(keep: Option<&Path>) -> Result<Self> {
        let place = match keep {
            None => {
                let prefix = format!("throughline-demo-{}-", std::process::id());
                Self::Temporary(tempfile::Builder::new().prefix(&prefix).tempdir_in("/dev/shm")?)
            }
            Some(folder) => {
                std::fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
                Self::Kept(folder.canonicalize()?)
            }
        };
        for folder in [chain::RECORDS, chain::BUNDLES] {
            std::fs::create_dir(place.path().join(folder))?;
        }
        Ok(place)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(folder) => folder,
        }
    }
}
