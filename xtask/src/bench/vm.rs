//! Sandboxes to measure, and what all measurements of them need.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tempfile::TempDir;
use throughline::Messages;
use throughline_sandbox::Sandbox;
use throughline_sandbox::image::{Image, ImageBuilder};
use throughline_wire::info::{Info, Request};
use throughline_wire::{decode, encode, port};

/// A watchdog over one group of figures.
const DEADLINE: Duration = Duration::from_mins(10);

/// Threads of a group's runtime.
#[derive(Clone, Copy)]
pub enum Threads {
    /// For round trips: a wake-up of another thread would be measured as well.
    One,
    /// Where something is watched while something else is done.
    Two,
}

/// Runs a group's measurements to their end, or to the deadline.
pub fn block_on<T>(threads: Threads, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Two => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Threads::Two = threads {
        builder.worker_threads(2);
    }
    let runtime = builder.enable_all().build().context("cannot start a runtime")?;
    let done = runtime.block_on(async { tokio::time::timeout(DEADLINE, work).await });
    done.map_err(|_| anyhow!("no end within {DEADLINE:?}"))?
}

/// The image, kept where the tests keep theirs.
pub fn image(root: &Path) -> Result<Image> {
    let builder = ImageBuilder::new().folder(root.join("target/xtask/data/throughline/images"));
    builder.build().context("cannot build the guest's image")
}

/// A sandbox of the default size.
pub async fn boot(root: &Path) -> Result<Sandbox> {
    Ok(Sandbox::builder(image(root)?).create().await?)
}

/// A folder for bundles, on tmpfs; removed when dropped.
pub fn folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("throughline-bench-").tempdir_in("/dev/shm");
    folder.context("cannot create a folder in /dev/shm")
}

/// Milliseconds.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Asks a guest who it is.
pub struct Informant(Messages);

impl Informant {
    pub async fn connect(sandbox: &Sandbox) -> Result<Self> {
        Ok(Self(sandbox.link().connect_with(port::INFO).unanswered().messages().await?))
    }

    pub async fn ask(&mut self) -> Result<Info> {
        self.0.send(&encode(&Request)?).await?;
        let answer = self.0.recv().await?.context("the guest closed its information channel")?;
        Ok(decode(&answer)?)
    }
}
