//! Zygotes: one moment of a sandbox, from which children are spawned.
//!
//! A zygote in memory lies on tmpfs, in a folder that is removed with it; the children go on without. One at
//! rest is a bundle like any other.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::bundle::Bundle;
use crate::places::{PlaceError, Places};
use crate::sandbox::Restore;
use crate::steps::step;
use crate::{Sandbox, SandboxError, SnapshotReport};

/// Where all zygotes in memory lie, below the sandboxes' memory: no name of a sandbox.
const FOLDER: &str = ".zygotes";
const LOCK: &str = "lock";
/// How long others may take to make or sweep theirs.
const TURN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(2);
const BUNDLE: &str = "bundle";

/// A frozen moment of a sandbox. Children are spawned from it for as long as it is there, and outlive it.
#[derive(Debug)]
pub struct Zygote {
    bundle: Bundle,
    /// Removes a zygote in memory.
    _place: Option<Place>,
    trusted: bool,
    report: Option<SnapshotReport>,
    /// How many there were.
    children: AtomicU64,
}

/// Room for a zygote in memory. Dropping it removes what is there.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    /// Whoever finds it unlocked finds a place whose process has died.
    _lock: File,
}

impl Place {
    /// A new one, and the end of those whose processes have died.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new() -> Result<Self, SandboxError> {
        let (memory, _) = Places::folders()?;
        let all = memory.join(FOLDER);
        loop {
            match Self::within(&all) {
                Ok(place) => return Ok(place),
                // The last one just took the folder with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && memory.is_dir() => {}
                Err(source) => return Err(PlaceError::Io { path: all, source }.into()),
            }
        }
    }

    fn within(all: &Path) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(all)?;
        // Held for a moment: meanwhile nobody else makes one, so one that is not locked is nobody's.
        let turn = File::open(all)?;
        let until = Instant::now() + TURN;
        while let Err(error) = turn.try_lock() {
            match error {
                TryLockError::WouldBlock if Instant::now() < until => std::thread::sleep(LOOK),
                TryLockError::WouldBlock => {
                    let reason = "another process has been making a zygote there for too long; end it, or let it go on";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
                }
                TryLockError::Error(error) => return Err(error),
            }
        }
        if fs::metadata(all)?.ino() != turn.metadata()?.ino() {
            // The last one took the folder with it, and somebody has made another.
            return Err(io::ErrorKind::NotFound.into());
        }
        sweep(all);
        let folder = tempfile::Builder::new().prefix("zygote-").tempdir_in(all)?;
        step("zygote");
        let lock = File::create(folder.path().join(LOCK))?;
        lock.lock()?;
        Ok(Self { folder: folder.keep(), _lock: lock })
    }

    /// Where its bundle is to be.
    pub fn bundle(&self) -> PathBuf {
        self.folder.join(BUNDLE)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "a zygote was left behind; the next one removes it");
        }
        // The last one leaves nothing.
        if let Some(all) = self.folder.parent() {
            let _ = fs::remove_dir(all);
        }
    }
}

/// Removes what processes left that died.
fn sweep(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    for folder in entries.flatten().map(|entry| entry.path()) {
        let held = |lock: File| matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
        let free = !File::open(folder.join(LOCK)).is_ok_and(held);
        if free && let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "a zygote that nobody has cannot be removed");
        }
    }
}

impl Sandbox {
    /// Ends the sandbox at this moment, from which children can be spawned. Commands may run and bytes be in
    /// flight: each child goes on with them.
    ///
    /// # Errors
    /// Those of a snapshot; if the guest does not become quiet, the sandbox goes on until it is dropped.
    pub async fn freeze(self) -> Result<Zygote, SandboxError> {
        let place = Place::new()?;
        let (bundle, report) = self.snapshot_and_stop(&place.bundle()).await?;
        Ok(Zygote::in_memory(bundle, report, place))
    }

    /// The same of a sandbox that goes on, after a stand-still as short as a snapshot's.
    pub async fn zygote(&self) -> Result<Zygote, SandboxError> {
        let place = Place::new()?;
        let (bundle, report) = self.snapshot(&place.bundle()).await?;
        Ok(Zygote::in_memory(bundle, report, place))
    }
}

impl Zygote {
    fn in_memory(bundle: Bundle, report: SnapshotReport, place: Place) -> Self {
        let (place, report) = (Some(place), Some(report));
        Self { bundle, _place: place, trusted: true, report, children: AtomicU64::new(0) }
    }

    /// A zygote at rest, which stays.
    pub fn at_rest(bundle: Bundle) -> Self {
        Self { bundle, _place: None, trusted: false, report: None, children: AtomicU64::new(0) }
    }

    /// What freezing it came to; nothing is known of one at rest.
    pub fn report(&self) -> Option<SnapshotReport> {
        self.report
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The next child: a timeline of its own, with its own identity. Channels are inherited, except those that
    /// were opened with [`OnFork::Reset`](throughline::OnFork::Reset).
    pub fn spawn(&self) -> Restore {
        self.child(self.children.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn child(&self, index: u64) -> Restore {
        let child = Sandbox::restore(self.bundle.clone()).forked(index);
        if self.trusted { child.trusted() } else { child }
    }

    /// So many children, under random names: what became of each. Those that failed leave nothing.
    pub async fn spawn_many(&self, count: usize) -> Vec<Result<Sandbox, SandboxError>> {
        self.spawn_many_with(count, |child| child).await
    }

    /// The same, with a choice for each: its name, what its guest is given.
    pub async fn spawn_many_with(
        &self,
        count: usize,
        choose: impl Fn(Restore) -> Restore,
    ) -> Vec<Result<Sandbox, SandboxError>> {
        // More at once would only wait for each other.
        let most = std::thread::available_parallelism().map_or(2, |cores| 2 * cores.get());
        let room = Arc::new(Semaphore::new(most));
        let starting: Vec<_> = (0..count)
            .map(|_| {
                let (child, room) = (choose(self.spawn()), room.clone());
                tokio::spawn(async move {
                    let _room = room.acquire().await;
                    child.start().await
                })
            })
            .collect();
        let mut children = Vec::with_capacity(count);
        for child in starting {
            let failed = |error| SandboxError::io("spawn a child")(std::io::Error::other(error));
            children.push(child.await.unwrap_or_else(|error| Err(failed(error))));
        }
        children
    }
}
