//! The chain: boot, snapshot, kill, move, restore, and again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use throughline_sandbox::bundle::{RAM, STATE};

use super::output::Progress;
use super::process::{Worker, output, this_program};
use super::sabotage::Break;
use super::verdict::Verdict;
use super::worker::Line;

/// Folder of the clients' records.
pub const RECORDS: &str = "records";

/// Folder of the bundles, where each is moved to.
pub const BUNDLES: &str = "bundles";

/// How long a worker may be silent.
const PATIENCE: Duration = Duration::from_secs(90);

/// A run of the demo.
pub struct Chain<'a> {
    pub folder: &'a Path,
    pub restores: usize,
    pub broken: Option<Break>,
    /// Whether bundles stay whole.
    pub keep: bool,
}

/// What this process measured.
#[derive(Debug, Default)]
pub struct Run {
    pub timelines: Vec<Measured>,
    /// Why it stopped before its end.
    pub failure: Option<String>,
}

/// One timeline.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Measured {
    /// From the call until the guest was ready.
    pub ready_ms: f64,
    /// From the call until the first acknowledged exchange.
    pub exchange_ms: f64,
    /// How long its guest stood still for the snapshot.
    pub pause_ms: Option<f64>,
    /// Memory of machine and host process.
    pub memory_bytes: u64,
}

/// The name of a timeline's sandbox.
pub fn name(timeline: usize) -> String {
    format!("demo-{}-{timeline}", std::process::id())
}

impl Chain<'_> {
    /// Runs it. A timeline that fails ends the chain, and is the judge's to explain.
    pub async fn run(&self, progress: &Progress) -> Result<Run> {
        let mut run = Run::default();
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        for timeline in 0..=self.restores {
            let doing = if timeline == 0 { "boot".to_owned() } else { format!("restore {timeline}") };
            progress.step(&doing);
            let mut measured = Measured::default();
            let result = self.timeline(timeline, u64::from_le_bytes(seed), &mut measured, progress).await;
            run.timelines.push(measured);
            if let Err(error) = result {
                run.failure = Some(format!("{doing}: {error:#}"));
                break;
            }
        }
        Ok(run)
    }

    async fn timeline(&self, timeline: usize, seed: u64, measured: &mut Measured, progress: &Progress) -> Result<()> {
        let next = (timeline < self.restores).then(|| self.folder.join(format!("snapshot-{}", timeline + 1)));
        let mut worker = self.start(timeline, seed, next.as_deref())?;
        let Line::Running { ready_ms, exchange_ms, .. } = worker.line(PATIENCE).await? else { bail!(OUT_OF_TURN) };
        (measured.ready_ms, measured.exchange_ms) = (ready_ms, exchange_ms);
        progress.step(&format!("timeline {timeline}: traffic until every ring holds unread bytes"));
        if timeline > 0 && !self.keep {
            // The machine has them open; what the judge looks at stays.
            for name in [RAM, STATE] {
                fs::remove_file(self.bundle(timeline).join(name))?;
            }
        }
        let Line::Flowing { sidecar } = worker.line(PATIENCE).await? else { bail!(OUT_OF_TURN) };
        let old_sidecar = self.folder.join("old-sidecar");
        if timeline == 0 && self.broken == Some(Break::Sidecar) {
            fs::copy(sidecar, &old_sidecar)?;
        }
        measured.memory_bytes = worker.memory()?;
        let Some(place) = next else {
            progress.step(&format!("timeline {timeline}: everything comes to its end"));
            let Line::Finished = worker.line(PATIENCE).await? else { bail!(OUT_OF_TURN) };
            return worker.gone().await;
        };
        progress.step(&format!("timeline {timeline}: snapshot in the middle of it"));
        let Line::Snapshot { pause_ms } = worker.line(PATIENCE).await? else { bail!(OUT_OF_TURN) };
        measured.pause_ms = Some(pause_ms);
        progress.step(&format!("timeline {timeline}: goes on, to be killed"));
        let Line::WentOn = worker.line(PATIENCE).await? else { bail!(OUT_OF_TURN) };
        worker.kill().await?;
        let moved = self.bundle(timeline + 1);
        fs::rename(&place, &moved).context("cannot move the bundle")?;
        match self.broken {
            Some(broken) if timeline == 0 => broken.alter(&moved, &old_sidecar).context("cannot break the bundle"),
            _ => Ok(()),
        }
    }

    fn start(&self, timeline: usize, seed: u64, next: Option<&Path>) -> Result<Worker> {
        let name = name(timeline);
        let mut command = this_program();
        command.arg("demo-worker").arg("--records").arg(self.folder.join(RECORDS));
        command.args(["--name", &name, "--timeline", &timeline.to_string()]);
        if timeline > 0 {
            command.arg("--restore").arg(self.bundle(timeline));
        } else {
            command.args(["--seed", &seed.to_string()]);
        }
        if let Some(next) = next {
            command.arg("--snapshot").arg(next);
        }
        if self.broken == Some(Break::Scrub) {
            command.arg("--unscrubbed");
        }
        Worker::start(&name, command)
    }

    /// Where the bundle lies that this timeline is restored from.
    fn bundle(&self, timeline: usize) -> PathBuf {
        self.folder.join(BUNDLES).join(timeline.to_string())
    }

    /// Lets another process judge.
    pub async fn judge(&self) -> Result<Verdict> {
        let mut command = this_program();
        command.arg("demo-judge").arg("--folder").arg(self.folder);
        command.args(["--restores", &self.restores.to_string()]);
        let printed = output(command, PATIENCE).await.context("the judge")?;
        Ok(serde_json::from_slice(&printed)?)
    }
}

const OUT_OF_TURN: &str = "the client says something out of turn";
