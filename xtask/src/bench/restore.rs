//! From a bundle to the first answer of its guest.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use throughline::{Channel, Messages};
use throughline_sandbox::Sandbox;
use throughline_sandbox::bundle::Bundle;
use throughline_wire::port;

use super::Runs;
use super::figure::{Figure, Goal};
use super::vm::{self, Threads};

/// How long the guest has been up before it is saved. In its first second a kernel still calibrates its clocks,
/// and would go on with that after the restore.
const SETTLED: Duration = Duration::from_secs(3);

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    let folder = vm::folder()?;
    let place = folder.path().join("bundle");
    vm::block_on(Threads::Two, async {
        let sandbox = vm::boot(root).await?;
        tokio::time::sleep(SETTLED).await;
        // A channel that lives on.
        let echo = Echo::connect(&sandbox).await?;
        sandbox.snapshot_and_stop(&place).await?;
        drop(echo);
        let mut laps = Laps::default();
        for _ in 0..runs.usual() {
            laps.run(&place).await?;
        }
        laps.figures()
    })
}

/// Milliseconds from the call, which opens and checks the bundle.
#[derive(Default)]
struct Laps {
    loaded: Vec<f64>,
    ready: Vec<f64>,
    answered: Vec<f64>,
    connected: Vec<f64>,
    run: Vec<f64>,
}

impl Laps {
    async fn run(&mut self, place: &Path) -> Result<()> {
        let started = Instant::now();
        let since = || vm::millis(started.elapsed());
        let sandbox = Sandbox::restore(Bundle::open(place)?).start().await?;
        self.ready.push(since());
        Echo::adopt(&sandbox)?.ask().await?;
        self.answered.push(since());
        Echo::connect(&sandbox).await?.ask().await?;
        self.connected.push(since());
        sandbox.command("true").output().await?;
        self.run.push(since());
        self.loaded.push(vm::millis(sandbox.timings().machine));
        sandbox.kill().await?;
        Ok(())
    }

    fn figures(self) -> Result<Vec<Figure>> {
        let answered = Figure::new("restore: to an answer on a channel that was open", "ms", self.answered)?;
        Ok(vec![
            Figure::new("restore: to the loaded machine", "ms", self.loaded)?,
            Figure::new("restore: to ready (identity acknowledged)", "ms", self.ready)?,
            answered.goal(Goal::AtMost(90.0)).note("from the call, opening and checking the bundle included"),
            Figure::new("restore: then to an answer on a new channel", "ms", self.connected)?,
            Figure::new("restore: then to the end of a first command", "ms", self.run)?,
        ])
    }
}

/// A channel whose messages come back.
struct Echo(Messages);

impl Echo {
    async fn connect(sandbox: &Sandbox) -> Result<Self> {
        Ok(Self(sandbox.link().connect_with(port::ECHO).unanswered().messages().await?))
    }

    fn adopt(sandbox: &Sandbox) -> Result<Self> {
        let link = sandbox.link();
        let open = link.channels().into_iter().find(|channel| channel.port == port::ECHO);
        match link.adopt(open.context("no channel lived on")?.id)? {
            Channel::Messages(messages) => Ok(Self(messages)),
            Channel::Stream(_) => bail!("the channel that lived on is a stream"),
        }
    }

    async fn ask(&mut self) -> Result<()> {
        self.0.send(b"first").await?;
        let answer = self.0.recv().await?.context("the guest closed its echo channel")?;
        ensure!(answer == b"first", "the guest's echo is not what was sent");
        Ok(())
    }
}
