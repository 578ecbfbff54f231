//! What the `throughline` command costs, and the shim behind it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use throughline_shim::client::Remote;
use throughline_shim::start::Program;

use super::Runs;
use super::figure::{Figure, Goal};
use super::vm::{self, Threads};

/// Until what the start began has ended.
const SETTLE: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(1);

pub fn measure(runs: Runs, root: &Path) -> Result<Vec<Figure>> {
    let program = build(root)?;
    let mut starts = Vec::new();
    for run in 0..runs.slow() {
        let sandbox = Running::start(&program, &run.to_string(), &[])?;
        starts.push(vm::millis(sandbox.took));
    }
    let sandbox = Running::start(&program, "last", &[])?;
    let mut whole = Vec::new();
    for _ in 0..runs.usual() {
        let started = Instant::now();
        sandbox.run(&["exec", &sandbox.name, "--", "true"])?;
        whole.push(vm::millis(started.elapsed()));
    }
    let (library, memory, idle) = vm::block_on(Threads::Two, through_shim(runs, &sandbox))?;
    let forks = forks(runs, &sandbox)?;
    drop(sandbox);
    let mut figures = vec![
        Figure::new("`throughline run` on a built image, until ready", "ms", starts)?.goal(Goal::AtMost(2500.0)),
        Figure::new("exec of `true` by the library, through a shim", "ms", library)?.goal(Goal::AtMost(5.0)),
        Figure::new("exec of `true`, the whole command", "ms", whole)?.goal(Goal::AtMost(15.0)),
        Figure::new("memory of a shim (PSS)", "MB", vec![memory])?.goal(Goal::AtMost(10.0)),
        Figure::new("idle: a shim", "%", idle)?.goal(Goal::AtMost(0.2)),
    ];
    figures.extend(forks.figures()?);
    figures.extend(super::copy::measure(runs, &program)?);
    Ok(figures)
}

/// What `fork` came to, as its caller sees it.
#[derive(Default)]
struct Forks {
    one: Vec<f64>,
    four: Vec<f64>,
    worked: Vec<f64>,
}

/// One child, with a first command in it; then four at once.
fn forks(runs: Runs, source: &Running) -> Result<Forks> {
    let mut forks = Forks::default();
    for _ in 0..runs.usual() {
        let child = format!("{}-child", source.name);
        let started = Instant::now();
        source.run(&["fork", &source.name, &child])?;
        forks.one.push(vm::millis(started.elapsed()));
        source.run(&["exec", &child, "--", "true"])?;
        forks.worked.push(vm::millis(started.elapsed()));
        source.run(&["rm", "--force", &child])?;
        let started = Instant::now();
        source.run(&["fork", &source.name, "-n", "4"])?;
        forks.four.push(vm::millis(started.elapsed()));
        for index in 1..=4 {
            source.run(&["rm", "--force", &format!("{}-{index}", source.name)])?;
        }
    }
    Ok(forks)
}

impl Forks {
    fn figures(self) -> Result<Vec<Figure>> {
        let one = Figure::new("`throughline fork`, one child, the whole command", "ms", self.one)?;
        let note = "the source is frozen anew for each: its snapshot in memory is in it, and a shim for the child";
        Ok(vec![
            one.note(note),
            Figure::new("… and a first `exec` in the child", "ms", self.worked)?,
            Figure::new("`throughline fork -n 4`, the whole command", "ms", self.four)?,
        ])
    }
}

async fn through_shim(runs: Runs, sandbox: &Running) -> Result<(Vec<f64>, f64, Vec<f64>)> {
    let program = Program { path: sandbox.program.clone(), arguments: vec!["shim".to_owned()] };
    let remote = Remote::connect(&sandbox.name, program).await?;
    let mut times = Vec::new();
    for _ in 0..runs.usual() {
        let started = Instant::now();
        let output = remote.command("true").output().await?;
        ensure!(output.stdout.is_empty(), "`true` printed something");
        times.push(vm::millis(started.elapsed()));
    }
    let shim = remote.shim();
    drop(remote);
    tokio::time::sleep(SETTLE).await;
    let clock = clock_getcpuclockid(Pid::from_raw(shim.cast_signed()))?;
    let mut idle = Vec::new();
    for _ in 0..runs.slow() {
        let (started, before) = (Instant::now(), Duration::from(clock.now()?));
        tokio::time::sleep(WINDOW).await;
        let spent = Duration::from(clock.now()?).saturating_sub(before);
        idle.push(100.0 * spent.as_secs_f64() / started.elapsed().as_secs_f64());
    }
    Ok((times, proportional_megabytes(shim)?, idle))
}

/// Memory of a process, what it shares divided by those who share it.
pub fn proportional_megabytes(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// A sandbox that the command created, and removes.
pub struct Running {
    program: PathBuf,
    pub name: String,
    took: Duration,
}

impl Running {
    pub fn start(program: &Path, word: &str, options: &[&str]) -> Result<Self> {
        let name = format!("bench-{}-{word}", std::process::id());
        let mut this = Self { program: program.to_path_buf(), name, took: Duration::ZERO };
        let started = Instant::now();
        this.run(&[&["run", "--name", &this.name], options].concat())?;
        this.took = started.elapsed();
        Ok(this)
    }

    pub fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.program).args(arguments).output().context("cannot start the command")?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["rm", "--force", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// Builds the command as it is installed.
fn build(root: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let status =
        cargo.current_dir(root).args(["build", "--quiet", "--release", "--package", "throughline-cli"]).status();
    ensure!(status.context("cannot start cargo")?.success(), "the command was not built");
    Ok(root.join("target/release/throughline"))
}
