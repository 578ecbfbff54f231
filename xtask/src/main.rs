//! The project's chores, started as `cargo xtask <chore>`.
//!
//! Each chore is a module; `setup` is called by every other that needs a system package.

mod bench;
mod demo;
mod leftovers;
mod nextest;
mod prove;
mod report;
mod setup;
mod spec;
mod surroundings;
mod test;
mod tidy;
mod unprivileged;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The chores of Throughline")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Print every figure beside its goal
    Bench(bench::Options),
    /// Show the promise on a real guest: snapshot in the middle of traffic, kill everything, restore, ten times over
    Demo(demo::Arguments),
    /// One timeline of the demo
    #[command(hide = true)]
    DemoWorker(demo::WorkerArguments),
    /// The demo's verdict
    #[command(hide = true)]
    DemoJudge(demo::JudgeArguments),
    /// Run the proofs with their full counts, make every mutant, and print what it all came to
    Prove(prove::Options),
    /// Install the system packages that the other chores need
    Setup,
    /// Run every test, then hold SPECIFICATION.md and the machine against what ran
    Test,
    /// Check the tree only: sizes of files, unfinished code, paths of machines, the form of SPECIFICATION.md
    Tidy,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().chore) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether the chore found everything in order.
fn run(chore: &Chore) -> Result<bool> {
    match chore {
        Chore::Demo(arguments) => demo::run(arguments),
        Chore::DemoWorker(arguments) => demo::work(arguments),
        Chore::DemoJudge(arguments) => demo::judge(arguments),
        Chore::Bench(options) => bench::run(&workspace_root()?, options).map(|()| true),
        Chore::Prove(options) => prove::run(&workspace_root()?, options),
        Chore::Setup => setup::ensure().map(|()| true),
        Chore::Test => test::run(&workspace_root()?),
        Chore::Tidy => {
            let findings = tidy::check(&workspace_root()?)?;
            for finding in &findings {
                println!("{finding}");
            }
            Ok(findings.is_empty())
        }
    }
}

/// The checkout that this program belongs to: cargo names the crate's folder when it starts it.
fn workspace_root() -> Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("start this as `cargo xtask …`")?;
    let root = PathBuf::from(manifest);
    let root = root.parent().context("xtask's folder has no parent")?;
    Ok(root.to_path_buf())
}
