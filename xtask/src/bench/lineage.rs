//! Long chains of restores, and deep trees of forks, with traffic: nothing is lost, and the last one is like the first.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::{Sandbox, Zygote};

use super::Runs;
use super::command::proportional_megabytes;
use super::counter::{self, Progress};
use super::figure::{Figure, Goal, Samples};
use super::vm::{self, Threads};

/// How long the guest has been up before it is saved.
const SETTLED: Duration = Duration::from_secs(3);
/// Read and verified in each generation: more than a ring and a pipe hold, so what was on its way is followed by
/// what the guest prints then.
const TRAFFIC: u64 = 192 << 10;
/// So many of the first generations are compared with so many of the last.
const ENDS: usize = 5;

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    let (generations, deep, wide) = if runs.quick { (10, 3, 2) } else { (50, 5, 3) };
    let mut figures = vm::block_on(Threads::Two, async {
        let mut chain = Chain::default();
        chain.run(vm::boot(root).await?, generations).await?;
        chain.figures()
    })?;
    figures.extend(vm::block_on(Threads::Two, async {
        let mut tree = Tree { wide, levels: vec![Level::default(); deep], ..Tree::default() };
        let started = Instant::now();
        tree.plant(vm::boot(root).await?).await?;
        tree.figures(started.elapsed())
    })?);
    Ok(figures)
}

/// What each generation came to.
#[derive(Default)]
struct Chain {
    progress: Progress,
    ready_ms: Vec<f64>,
    stopped_ms: Vec<f64>,
    copied_mb: Vec<f64>,
    bundle_mb: Vec<f64>,
    own_mb: Vec<f64>,
    monitor_mb: Vec<f64>,
    carried: u64,
    /// Of the first bundle and of the last, in turn.
    again_ms: [Vec<f64>; 2],
}

impl Chain {
    async fn run(&mut self, mut sandbox: Sandbox, generations: usize) -> Result<()> {
        let folder = vm::folder()?;
        tokio::time::sleep(SETTLED).await;
        let mut counter = counter::start(&sandbox).await?;
        self.progress.read(&mut counter, TRAFFIC).await?;
        for generation in 0..generations {
            counter::half_full(&sandbox).await?;
            // Its handle is held until there is a bundle: nothing is closed.
            let (bundle, report) = sandbox.snapshot_and_stop(&folder.path().join(generation.to_string())).await?;
            drop(counter);
            self.stopped_ms.push(vm::millis(report.total));
            self.carried += report.carried.to_host;
            self.copied_mb.push(in_mb(report.copied + report.corrected));
            let (all, own) = megabytes(bundle.folder())?;
            self.bundle_mb.push(all);
            self.own_mb.push(own);
            let started = Instant::now();
            sandbox = Sandbox::restore(Bundle::open(bundle.folder())?).start().await?;
            self.ready_ms.push(vm::millis(started.elapsed()));
            if generation != 0 && generation + 1 != generations {
                std::fs::remove_dir_all(bundle.folder())?;
            }
            counter = counter::adopt(&sandbox)?;
            self.progress.read(&mut counter, TRAFFIC).await?;
            self.monitor_mb.push(monitor(&sandbox)?);
        }
        sandbox.kill().await?;
        self.compare([0, generations - 1].map(|end| folder.path().join(end.to_string()))).await
    }

    /// Restores both ends in turn: what else the machine does meets both.
    async fn compare(&mut self, ends: [PathBuf; 2]) -> Result<()> {
        for _ in 0..self.ready_ms.len().min(30) {
            for (end, again_ms) in ends.iter().zip(&mut self.again_ms) {
                let started = Instant::now();
                let sandbox = Sandbox::restore(Bundle::open(end)?).start().await?;
                again_ms.push(vm::millis(started.elapsed()));
                sandbox.kill().await?;
            }
        }
        Ok(())
    }

    fn figures(self) -> Result<Vec<Figure>> {
        let count = self.ready_ms.len();
        let (first, last) = (self.ready_ms[..ENDS].to_vec(), self.ready_ms[count - ENDS..].to_vec());
        let by = |last: &[f64], first: &[f64]| -> Result<Vec<f64>> {
            Ok(vec![Samples::new(last.to_vec())?.median() / Samples::new(first.to_vec())?.median()])
        };
        let in_course = Figure::new("… the last five by the first five", "", by(&last, &first)?)?;
        let [first_again, last_again] = self.again_ms;
        let ratio = Figure::new("… the last by the first", "", by(&last_again, &first_again)?)?;
        let verified =
            Figure::new("chain: output verified, nothing lost", "MB", vec![in_mb(self.progress.verified())])?;
        let bundle = Figure::new("chain: a bundle on disk", "MB", self.bundle_mb.clone())?;
        let own = Figure::new("… of it its own: the image has other names", "MB", self.own_mb.clone())?;
        let monitor = Figure::new("chain: memory of a monitor (PSS)", "MB", self.monitor_mb.clone())?;
        Ok(vec![
            verified.note(format!("{count} snapshots that stop, each restored, while a command prints")),
            Figure::new("chain: of it on its way at a snapshot", "MB", vec![in_mb(self.carried)])?,
            Figure::new("chain: restore to ready, all", "ms", self.ready_ms)?,
            Figure::new("… the first five", "ms", first)?,
            Figure::new("… the last five", "ms", last)?,
            in_course.note("in the course of the chain, so the machine's load at each end is in it"),
            Figure::new("chain: the first bundle again, restore to ready", "ms", first_again)?,
            Figure::new("… the last, in turn with it", "ms", last_again)?,
            ratio.goal(Goal::AtMost(1.1)),
            Figure::new("chain: snapshot that stops", "ms", self.stopped_ms)?,
            Figure::new("… RAM copied for it", "MB", self.copied_mb.clone())?.note(steps(&self.copied_mb)),
            bundle.note(steps(&self.bundle_mb)),
            own.note(steps(&self.own_mb)),
            monitor.note(steps(&self.monitor_mb)),
        ])
    }
}

/// What each node of a tree came to.
#[derive(Default)]
struct Tree {
    wide: usize,
    /// From the children of the root on.
    levels: Vec<Level>,
    epochs: HashSet<u128>,
    carried: u64,
    verified: u64,
}

#[derive(Clone, Default)]
struct Level {
    ready_ms: Vec<f64>,
    frozen_ms: Vec<f64>,
    zygote_mb: Vec<f64>,
    own_mb: Vec<f64>,
    monitor_mb: Vec<f64>,
}

impl Tree {
    async fn plant(&mut self, root: Sandbox) -> Result<()> {
        tokio::time::sleep(SETTLED).await;
        let (mut counter, mut progress) = (counter::start(&root).await?, Progress::default());
        progress.read(&mut counter, TRAFFIC).await?;
        self.verified += progress.verified();
        counter::half_full(&root).await?;
        let zygote = root.freeze().await?;
        drop(counter);
        self.grow(zygote, &progress, 0).await
    }

    /// Each child goes on with the counter, and is frozen in turn; depth first, so few are there at one time.
    async fn grow(&mut self, zygote: Zygote, progress: &Progress, level: usize) -> Result<()> {
        let (all, own) = megabytes(zygote.bundle().folder())?;
        self.levels[level].zygote_mb.push(all);
        self.levels[level].own_mb.push(own);
        if let Some(report) = zygote.report() {
            self.levels[level].frozen_ms.push(vm::millis(report.total));
            self.carried += report.carried.to_host;
        }
        for _ in 0..self.wide {
            let started = Instant::now();
            let child = zygote.spawn().start().await?;
            self.levels[level].ready_ms.push(vm::millis(started.elapsed()));
            ensure!(self.epochs.insert(child.link().timeline()), "two children have one epoch");
            let (mut counter, mut progress) = (counter::adopt(&child)?, progress.clone());
            let before = progress.verified();
            progress.read(&mut counter, TRAFFIC).await?;
            self.verified += progress.verified() - before;
            self.levels[level].monitor_mb.push(monitor(&child)?);
            if level + 1 == self.levels.len() {
                child.kill().await?;
            } else {
                counter::half_full(&child).await?;
                let zygote = child.freeze().await?;
                drop(counter);
                Box::pin(self.grow(zygote, &progress, level + 1)).await?;
            }
        }
        Ok(())
    }

    fn figures(self, took: Duration) -> Result<Vec<Figure>> {
        let shape = format!("{} deep, {} wide, depth first: each child reads on", self.levels.len(), self.wide);
        let nodes =
            Figure::new("tree: children, each verified", "", vec![f64::from(u32::try_from(self.epochs.len())?)])?;
        let took = Figure::new("tree: all of it", "s", vec![took.as_secs_f64()])?;
        let mut figures = vec![
            nodes.note(shape),
            took.note("boot included"),
            Figure::new("tree: output verified, nothing lost", "MB", vec![in_mb(self.verified)])?,
            Figure::new("tree: of it on its way at a freeze", "MB", vec![in_mb(self.carried)])?,
        ];
        for (level, Level { ready_ms, frozen_ms, zygote_mb, own_mb, monitor_mb }) in (1..).zip(self.levels) {
            figures.extend([
                Figure::new(format!("tree, level {level}: spawn to ready"), "ms", ready_ms)?,
                Figure::new("… memory of a child's monitor (PSS)", "MB", monitor_mb)?,
                Figure::new("… the zygote that it came from", "MB", zygote_mb)?,
                Figure::new("… of that its own: the image has other names", "MB", own_mb)?,
                Figure::new("… freezing that", "ms", frozen_ms)?,
            ]);
        }
        Ok(figures)
    }
}

fn monitor(sandbox: &Sandbox) -> Result<f64> {
    proportional_megabytes(sandbox.record().machine.pid.cast_unsigned())
}

/// What is allocated for the files of a folder, and how much of it for those that have no other name.
fn megabytes(folder: &Path) -> Result<(f64, f64)> {
    let (mut all, mut own) = (0, 0);
    for file in std::fs::read_dir(folder)? {
        let file = file?.metadata()?;
        all += file.blocks();
        own += if file.nlink() > 1 { 0 } else { file.blocks() };
    }
    Ok((in_mb(512 * all), in_mb(512 * own)))
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn in_mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Each step's figure.
fn steps(values: &[f64]) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("{value:.1}")).collect();
    format!("one by one: {}", values.join(" "))
}
