//! How fast a command's output comes through exec.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use throughline_sandbox::{ChildEvent, Sandbox};

use super::Runs;
use super::figure::Figure;
use super::vm::{self, Threads};

/// Bytes of one run's output.
const BYTES: usize = 64 << 20;

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    vm::block_on(Threads::Two, async {
        let sandbox = vm::boot(root).await?;
        let (mut rates, mut short) = (Vec::new(), Vec::new());
        for _ in 0..runs.usual() {
            let started = Instant::now();
            sandbox.command("true").output().await?;
            short.push(vm::millis(started.elapsed()));
            rates.push(rate(&sandbox).await?);
        }
        sandbox.kill().await?;
        Ok(vec![
            Figure::new("exec of `true`, from call to exit", "ms", short)?,
            Figure::new("output of a command: 64 MiB from `dd`", "MB/s", rates)?,
        ])
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
async fn rate(sandbox: &Sandbox) -> Result<f64> {
    let started = Instant::now();
    // Not `head -c`: busybox's goes byte by byte, and would be what is measured.
    let command = sandbox.command("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("count={}", BYTES >> 16));
    let mut child = command.spawn().await?;
    let mut count = 0;
    while let Some(event) = child.events.next().await? {
        if let ChildEvent::Stdout { data, .. } = event {
            count += data.len();
        }
    }
    ensure!(count == BYTES, "{count} bytes of {BYTES} came");
    Ok(BYTES as f64 / 1e6 / started.elapsed().as_secs_f64())
}
