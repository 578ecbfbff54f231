//! From a call to a guest that is ready; and a snapshot that ends the sandbox, which copies no RAM.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::Runs;
use super::figure::{Figure, Goal};
use super::vm::{self, Threads};

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    let folder = vm::folder()?;
    // Built before the clock starts.
    vm::image(root)?;
    vm::block_on(Threads::Two, async {
        let (mut ready, mut stopped, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..runs.slow() {
            let started = Instant::now();
            let sandbox = vm::boot(root).await?;
            ready.push(started.elapsed().as_secs_f64());
            let place = folder.path().join(run.to_string());
            let (_, report) = sandbox.snapshot_and_stop(&place).await?;
            stopped.push(vm::millis(report.total));
            copied.push(report.copied as f64);
            std::fs::remove_dir_all(place)?;
        }
        Ok(vec![
            Figure::new("boot: from the call to ready", "s", ready)?,
            Figure::new("snapshot that stops: RAM copied", "B", copied)?.goal(Goal::AtMost(0.0)),
            Figure::new("snapshot that stops: from call to bundle", "ms", stopped)?,
        ])
    })
}
