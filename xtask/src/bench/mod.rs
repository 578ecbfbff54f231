//! `cargo xtask bench`: every figure beside its goal.
//!
//! A missed goal is printed as missed and is no failure: figures are information, and a machine that is
//! busy or slow misses goals that the code meets.

mod boot;
mod command;
mod copy;
mod counter;
mod exec;
mod figure;
mod fork;
mod guest;
mod idle;
mod lineage;
mod pool;
mod processes;
mod restore;
mod stand_still;
mod surroundings;
mod vm;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::setup;
use figure::Figure;
use surroundings::Surroundings;

#[derive(clap::Args)]
pub struct Options {
    /// Fewer runs: for a first look, not for the record
    #[arg(long)]
    quick: bool,
    /// Print one JSON object, and progress on the standard error output
    #[arg(long)]
    json: bool,
    /// Measure these only
    #[arg(value_enum)]
    names: Vec<Group>,
    /// Be the second of the two processes
    #[arg(long, hide = true)]
    peer: bool,
}

/// Figures that are measured together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Between two processes: round trips and throughput
    Processes,
    /// Between host and guest: round trips and bells
    Guest,
    /// What a sandbox that does nothing costs
    Idle,
    /// How fast a command's output comes
    Exec,
    /// What the command and its shims cost
    Command,
    /// From a call to a guest that is ready; a snapshot that ends it
    Boot,
    /// From a bundle to the first answer
    Restore,
    /// How long a guest stands still for a snapshot
    StandStill,
    /// Children of one moment
    Fork,
    /// Long chains of restores, deep trees of forks
    Lineage,
}

impl Group {
    const ALL: [Self; 10] = [
        Self::Processes,
        Self::Guest,
        Self::Idle,
        Self::Exec,
        Self::Command,
        Self::Boot,
        Self::Restore,
        Self::StandStill,
        Self::Fork,
        Self::Lineage,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Processes => "two processes on two cores",
            Self::Guest => "host and guest",
            Self::Idle => "idle",
            Self::Exec => "exec",
            Self::Command => "the command and its shim",
            Self::Boot => "boot, and a snapshot that stops",
            Self::Restore => "restore",
            Self::StandStill => "stand-still of a guest that goes on",
            Self::Fork => "forks",
            Self::Lineage => "chains of restores, and trees of forks",
        }
    }

    fn needs_guest(self) -> bool {
        self != Self::Processes
    }

    fn measure(self, runs: Runs, root: &Path) -> Result<Vec<Figure>> {
        match self {
            Self::Processes => processes::measure(runs),
            Self::Guest => guest::measure(runs, root),
            Self::Idle => idle::measure(runs, root),
            Self::Exec => exec::measure(runs, root),
            Self::Command => command::measure(runs, root),
            Self::Boot => boot::measure(runs, root),
            Self::Restore => restore::measure(runs, root),
            Self::StandStill => stand_still::measure(runs, root),
            Self::Fork => fork::measure(runs, root),
            Self::Lineage => lineage::measure(runs, root),
        }
    }
}

/// How often to measure.
#[derive(Clone, Copy)]
struct Runs {
    quick: bool,
}

impl Runs {
    /// Thirty for the record.
    fn usual(self) -> usize {
        if self.quick { 10 } else { 30 }
    }

    /// Where one run takes seconds.
    fn slow(self) -> usize {
        if self.quick { 5 } else { 10 }
    }
}

/// Measures and prints.
pub fn run(root: &Path, options: &Options) -> Result<()> {
    if options.peer {
        return processes::be_peer();
    }
    if cfg!(debug_assertions) {
        return rerun_optimised(root);
    }
    let all = Group::ALL.into_iter();
    let groups: Vec<Group> = all.filter(|group| options.names.is_empty() || options.names.contains(group)).collect();
    let with_guest = groups.iter().any(|group| group.needs_guest());
    if with_guest {
        setup::ensure()?;
    }
    let runs = Runs { quick: options.quick };
    let surroundings = Surroundings::look(with_guest)?;
    let say = |line: &str| if options.json { eprintln!("{line}") } else { println!("{line}") };
    say(&surroundings.to_text());
    if options.quick {
        say("quick: fewer runs than the figures of record have");
    }
    let mut figures = Vec::new();
    for group in groups {
        say(&format!("\n{}", group.title()));
        let measured = group.measure(runs, root).with_context(|| format!("cannot measure: {}", group.title()))?;
        for figure in &measured {
            say(&figure.to_text());
        }
        figures.extend(measured);
    }
    let missed = figures.iter().filter(|figure| figure.met() == Some(false)).count();
    let goals = figures.iter().filter(|figure| figure.met().is_some()).count();
    say(&format!("\n{} of {goals} goals met", goals - missed));
    if options.json {
        println!("{}", figure::to_json(&surroundings, options.quick, &figures)?);
    }
    Ok(())
}

/// Figures of unoptimised code mean nothing.
fn rerun_optimised(root: &Path) -> Result<()> {
    eprintln!("building with optimisation");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["run", "--quiet", "--release", "--package", "xtask", "--"]);
    let status = cargo.args(std::env::args_os().skip(1)).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the optimised program failed with {status}; see above");
    }
    Ok(())
}
