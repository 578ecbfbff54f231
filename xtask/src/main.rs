//! The project's chores, started as `cargo xtask <chore>`.
//!
//! Each chore is a module; `setup` is called by every other that needs a system package.

mod leftovers;
mod nextest;
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
    let root = workspace_root()?;
    match chore {
        Chore::Setup => setup::ensure().map(|()| true),
        Chore::Test => test::run(&root),
        Chore::Tidy => {
            let findings = tidy::check(&root)?;
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
