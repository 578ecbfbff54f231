//! From a bundle to the first answer of its guest.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use throughline_sandbox::Sandbox;
use throughline_sandbox::bundle::Bundle;

use super::Runs;
use super::figure::{Figure, Goal};
use super::vm::{self, Informant, Threads};

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    let folder = vm::folder()?;
    let place = folder.path().join("bundle");
    vm::block_on(Threads::Two, async {
        vm::boot(root).await?.snapshot_and_stop(&place).await?;
        let (mut loaded, mut ready, mut answered, mut run) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs.usual() {
            let started = Instant::now();
            let sandbox = Sandbox::restore(Bundle::open(&place)?).start().await?;
            ready.push(vm::millis(started.elapsed()));
            Informant::connect(&sandbox).await?.ask().await?;
            answered.push(vm::millis(started.elapsed()));
            sandbox.command("true").output().await?;
            run.push(vm::millis(started.elapsed()));
            loaded.push(vm::millis(sandbox.timings().machine));
            sandbox.kill().await?;
        }
        let answered = Figure::new("restore: to the first answered request", "ms", answered)?;
        Ok(vec![
            Figure::new("restore: to the loaded machine", "ms", loaded)?,
            Figure::new("restore: to ready (identity acknowledged)", "ms", ready)?,
            answered.goal(Goal::AtMost(90.0)).note("from the call, opening and checking the bundle included"),
            Figure::new("restore: to the end of a first command", "ms", run)?,
        ])
    })
}
