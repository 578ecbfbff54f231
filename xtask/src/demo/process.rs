//! The demo's own processes: started from this very program, killed without warning.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use throughline_sandbox::Sandbox;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use super::worker::Line;

/// How long a killed process may take to go.
const GONE: Duration = Duration::from_secs(10);

/// This program once more, whatever has become of its file.
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    // Its own group: Ctrl-C is this process's affair.
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A timeline's process and its machine.
pub struct Worker {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    machine: Option<Pid>,
}

impl Worker {
    /// Starts a worker whose sandbox has this name.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let mut child = command.spawn().context("cannot start this program again")?;
        let lines = child.stdout.take().context("no standard output")?;
        Ok(Self { name: name.to_owned(), child, lines: BufReader::new(lines).lines(), machine: None })
    }

    /// The worker's next word. An error if it fails, ends or hangs.
    pub async fn line(&mut self, deadline: Duration) -> Result<Line> {
        let Ok(line) = timeout(deadline, self.lines.next_line()).await else {
            bail!("no word from the client of {} for {} s", self.name, deadline.as_secs());
        };
        let Some(line) = line? else { bail!("the client of {} has ended unasked", self.name) };
        let line = serde_json::from_str(&line).with_context(|| format!("not a word of a client: {line}"))?;
        match line {
            Line::Failed(error) => bail!("{}: {error}", self.name),
            Line::Running { machine, .. } => self.machine = Pid::from_raw(machine),
            _ => {}
        }
        Ok(line)
    }

    /// Memory of the machine and of the worker: shared pages in proportion.
    pub fn memory(&self) -> Result<u64> {
        let worker = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        [worker, self.machine].into_iter().flatten().map(proportional_memory).sum()
    }

    /// Kills host process, client and machine, waits until they are gone, and removes what they could not.
    pub async fn kill(mut self) -> Result<()> {
        self.child.start_kill().context("cannot kill the client")?;
        if let Some(machine) = self.machine {
            kill_process(machine, Signal::KILL).context("cannot kill the machine")?;
        }
        self.gone().await
    }

    /// Waits for the end of a worker that ends by itself.
    pub async fn gone(mut self) -> Result<()> {
        timeout(GONE, self.child.wait()).await.context("the client does not go")??;
        if let Some(machine) = self.machine {
            timeout(GONE, reaped(machine)).await.context("the machine does not go")?;
        }
        Ok(Sandbox::clear(&self.name)?)
    }
}

/// Waits for the end of a machine whose own parent has died: it is this process's child now.
async fn reaped(machine: Pid) {
    // An error says that it is nobody's child here: its worker had reaped it.
    while let Ok(None) = waitpid(Some(machine), WaitOptions::NOHANG) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Runs this program to its end, and returns what it prints.
pub async fn output(mut command: Command, deadline: Duration) -> Result<Vec<u8>> {
    let output = timeout(deadline, command.output()).await.context("it hangs")??;
    if !output.status.success() {
        bail!("it failed ({})", output.status);
    }
    Ok(output.stdout)
}

/// Memory of a process: shared pages in proportion.
pub fn proportional_memory(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(Path::new(&path)).with_context(|| format!("cannot read {path}"))?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kilobytes: u64 = kilobytes.ok_or_else(|| io::Error::other(format!("{path} has no Pss")))?;
    Ok(kilobytes << 10)
}
