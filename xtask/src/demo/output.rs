//! What people and programs see of it.

use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::chain::{Measured, Run};
use super::verdict::{Timeline, Verdict};

/// Progress on standard error: a bar on a terminal, lines elsewhere.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Of so many steps.
    pub fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {bar:30} {msg}") {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar }
    }

    /// The next step.
    pub fn step(&self, doing: &str) {
        self.now(doing);
        self.bar.inc(1);
    }

    /// What is being done now, within a step.
    pub fn now(&self, doing: &str) {
        if self.bar.is_hidden() {
            eprintln!("[{:6.1} s] {doing}", self.bar.elapsed().as_secs_f64());
        }
        self.bar.set_message(doing.to_owned());
    }

    /// Something to know.
    pub fn note(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        }
        self.bar.println(text);
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// The last line of `--json`.
#[derive(Debug, Serialize)]
pub struct Result {
    restores: u16,
    carried_bytes: u64,
    lost: u64,
    doubled: u64,
    reordered: u64,
    exec_complete: bool,
    boot_ms: f64,
    snapshot_pause_ms: Spread,
    restore_ms: Spread,
    memory_bytes: u64,
}

/// Median and worst, in milliseconds; zero where there is no value.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub worst: f64,
}

impl Spread {
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.map(tenths).collect();
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or_default();
        Self { median, worst: values.last().copied().unwrap_or_default() }
    }
}

pub fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Result {
    pub fn new(restores: u16, run: &Run, verdict: &Verdict) -> Self {
        let (booted, again) = run.timelines.split_at(run.timelines.len().min(1));
        Self {
            restores,
            carried_bytes: verdict.carried_bytes(),
            lost: verdict.figures.lost,
            doubled: verdict.figures.doubled,
            reordered: verdict.figures.reordered,
            exec_complete: verdict.exec_complete,
            boot_ms: booted.first().map_or(0.0, |boot| tenths(boot.ready_ms)),
            snapshot_pause_ms: Spread::of(run.timelines.iter().filter_map(|timeline| timeline.pause_ms)),
            restore_ms: Spread::of(again.iter().map(|timeline| timeline.exchange_ms).filter(|time| *time > 0.0)),
            memory_bytes: run.timelines.iter().map(|timeline| timeline.memory_bytes).max().unwrap_or_default(),
        }
    }
}

/// A line of `--json` about one timeline.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    verdict: &'a Timeline,
    #[serde(flatten)]
    measured: &'a Measured,
}

/// One object per timeline and finding, and the result.
pub fn json(run: &Run, verdict: &Verdict, result: &Result) -> anyhow::Result<()> {
    for (verdict, measured) in verdict.timelines.iter().zip(&run.timelines) {
        println!("{}", serde_json::to_string(&Row { verdict, measured })?);
    }
    for finding in run.failure.iter().chain(&verdict.findings) {
        println!("{}", serde_json::json!({ "finding": finding }));
    }
    println!("{}", serde_json::to_string(result).context("the result")?);
    Ok(())
}

/// A table, what was found, and the result.
pub fn table(run: &Run, verdict: &Verdict, result: &Result) {
    println!(
        "               ms to    │ carried, bytes per ring         │ records                │ after the snapshot│ exec"
    );
    println!(
        "timeline       exchange │ msg→    msg←    stream→ stream← │ sent    received l/d/r │ ms     received   │ bytes"
    );
    for (timeline, measured) in verdict.timelines.iter().zip(&run.timelines) {
        let what = if timeline.number == 0 { "0 boot".to_owned() } else { format!("{} restore", timeline.number) };
        println!("{what:14} {:8.1} │ {}", measured.exchange_ms, row(timeline));
    }
    let Result { boot_ms, snapshot_pause_ms: pause, restore_ms: restore, .. } = result;
    println!(
        "boot {boot_ms} ms, stand-still {} ms (worst {}), restore {} ms (worst {}), memory {} MiB",
        pause.median,
        pause.worst,
        restore.median,
        restore.worst,
        result.memory_bytes >> 20
    );
    println!("carried {} bytes over {} restores", result.carried_bytes, result.restores);
    for finding in run.failure.iter().chain(&verdict.findings) {
        println!("✗ {finding}");
    }
    let figures = verdict.figures;
    println!(
        "lost {}, doubled {}, reordered {}, damaged {}; exec output {}",
        figures.lost,
        figures.doubled,
        figures.reordered,
        figures.damaged,
        if verdict.exec_complete { "complete, exit code right" } else { "NOT complete" }
    );
    println!("{}", if run.failure.is_none() && verdict.passed() { "nothing was lost" } else { "FAILED" });
}

fn row(timeline: &Timeline) -> String {
    let carried: Vec<String> = timeline
        .carried
        .iter()
        .flat_map(|carried| [carried.to_guest, carried.to_host])
        .map(|bytes| format!("{bytes:<7}"))
        .collect();
    let carried = if carried.is_empty() { "–".to_owned() } else { carried.join(" ") };
    let figures = timeline.figures;
    let judged = format!("{}/{}/{}", figures.lost, figures.doubled, figures.reordered);
    let after =
        timeline.went_on_ms.map_or_else(|| format!("{:17}", "–"), |ms| format!("{ms:<6} {:<10}", timeline.after));
    format!("{carried:31} │ {:<7} {:<8} {judged:5} │ {after} │ {}", timeline.sent, timeline.received, timeline.heard)
}
