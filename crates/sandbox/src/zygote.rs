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

/// Where all zygotes in memory lie, below the sandboxes' memory: no name of a sandbox, and no claim of one.
const FOLDER: &str = "+zygotes";
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
    /// Whoever finds it unlocked, and has the turn, finds a place whose process has died.
    _lock: File,
}

/// The turn to make or remove places: a lock on the folder of all. Held for a moment.
struct Turn {
    all: PathBuf,
    _folder: File,
}

impl Place {
    /// A new one, and the end of those whose processes have died.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub async fn new() -> Result<Self, SandboxError> {
        // It may have to wait, and to remove gigabytes.
        let made = tokio::task::spawn_blocking(Self::make).await;
        made.map_err(|error| SandboxError::io("make room for a zygote")(error.into()))?
    }

    fn make() -> Result<Self, SandboxError> {
        let (memory, _) = Places::folders()?;
        let all = memory.join(FOLDER);
        loop {
            match Self::within(&all, TURN) {
                Ok(place) => return Ok(place),
                // The last one just took the folder with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && memory.is_dir() => {}
                Err(source) => return Err(PlaceError::Io { path: all, source }.into()),
            }
        }
    }

    fn within(all: &Path, most: Duration) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).recursive(true).create(all)?;
        let until = Instant::now() + most;
        let turn = loop {
            match Turn::take(all)? {
                Some(turn) => break turn,
                None if Instant::now() < until => std::thread::sleep(LOOK),
                None => {
                    let reason = "another process has been making a zygote there for too long; end it, or let it go on";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
                }
            }
        };
        turn.sweep();
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
            tracing::warn!(folder = %self.folder.display(), %error, "a zygote was left behind");
        }
        // The last one leaves nothing. Not without the turn: whoever has it is about to make another one there.
        if let Some(all) = self.folder.parent()
            && let Ok(Some(_turn)) = Turn::take(all)
        {
            let _ = fs::remove_dir(all);
        }
    }
}

impl Turn {
    /// Takes it, unless somebody has it.
    fn take(all: &Path) -> io::Result<Option<Self>> {
        let folder = File::open(all)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if fs::metadata(all)?.ino() != folder.metadata()?.ino() {
            // The last one took the folder with it, and somebody has made another.
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Some(Self { all: all.to_path_buf(), _folder: folder }))
    }

    /// The places that processes left that died.
    fn left(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.all) else { return Vec::new() };
        let folders = entries.flatten().map(|entry| entry.path());
        folders.filter(|folder| is_left(folder)).collect()
    }

    fn sweep(&self) {
        for folder in self.left() {
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "a zygote that nobody has cannot be removed");
            }
        }
    }
}

/// Whether a place's process has died. While somebody has the turn, only a dead process has made no lock yet.
fn is_left(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(lock) => lock.try_lock().is_ok(),
        // Anything else, such as too many open files, says nothing about the process.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Removes the zygotes in memory whose processes have died.
///
/// # Errors
/// Their folder cannot be read.
pub fn sweep() -> Result<(), SandboxError> {
    visit(&Places::folders()?.0.join(FOLDER), Turn::sweep)
}

/// How many zygotes in memory are left whose processes have died, and how many bytes they take.
pub(crate) fn left() -> Result<(usize, u64), SandboxError> {
    let mut left = Vec::new();
    visit(&Places::folders()?.0.join(FOLDER), |turn| left = turn.left())?;
    Ok((left.len(), left.iter().map(|folder| bytes(folder)).sum()))
}

/// Has a look. Whoever makes one now sweeps, and leaves nothing to be seen.
fn visit(all: &Path, look: impl FnOnce(&Turn)) -> Result<(), SandboxError> {
    match Turn::take(all) {
        Ok(turn) => {
            if let Some(turn) = turn {
                look(&turn);
                // The last one, whose end this may have met, leaves nothing.
                let _ = fs::remove_dir(all);
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PlaceError::Io { path: all.to_path_buf(), source }.into()),
    }
}

/// What a folder takes.
fn bytes(folder: &Path) -> u64 {
    const BLOCK: u64 = 512;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes(&entry.path()),
        data => data.map_or(0, |data| data.blocks() * BLOCK),
    };
    entries.flatten().map(of).sum()
}

impl Sandbox {
    /// Ends the sandbox at this moment, from which children can be spawned. Commands may run and bytes be in
    /// flight: each child goes on with them.
    ///
    /// # Errors
    /// Those of a snapshot. The sandbox has then ended, too: whoever must not lose it takes [`zygote`](Self::zygote),
    /// and ends it afterwards.
    pub async fn freeze(self) -> Result<Zygote, SandboxError> {
        let place = Place::new().await?;
        let (bundle, report) = self.snapshot_and_stop(&place.bundle()).await?;
        Ok(Zygote::in_memory(bundle, report, place))
    }

    /// The same of a sandbox that goes on, after a stand-still as short as a snapshot's.
    pub async fn zygote(&self) -> Result<Zygote, SandboxError> {
        let place = Place::new().await?;
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
        // More at once would only wait for each other; with fewer, cores stand idle while a child waits for its host.
        let most = std::thread::available_parallelism().map_or(4, |cores| 4 * cores.get());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zygotes_of_dead_processes_are_found_and_swept_and_those_of_living_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let all = folder.path().join("all");
        let seen = || {
            let mut seen = Vec::new();
            visit(&all, |turn| seen = turn.left()).unwrap();
            seen
        };
        assert!(seen().is_empty());
        let living = Place::within(&all, TURN).unwrap();
        let dead = all.join("zygote-dead");
        fs::create_dir_all(dead.join(BUNDLE)).unwrap();
        // The end of its process has unlocked it.
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join(BUNDLE).join("ram"), vec![1; 1 << 20]).unwrap();
        assert_eq!(seen(), [dead.as_path()]);
        assert!((1 << 20..2 << 20).contains(&bytes(&dead)), "{}", bytes(&dead));
        let turn = Turn::take(&all).unwrap().unwrap();
        assert!(seen().is_empty(), "another one has the turn, and sweeps");
        drop(turn);
        visit(&all, Turn::sweep).unwrap();
        assert!(!dead.exists() && living.folder.exists());
        drop(living);
        assert!(!all.exists());
    }

    #[test]
    fn whoever_makes_a_zygote_waits_for_its_turn_and_sweeps_only_what_is_nobodys() {
        let parent = tempfile::tempdir().unwrap();
        let all = parent.path().join(FOLDER);
        let living = Place::within(&all, TURN).unwrap();
        let dead = all.join("zygote-dead");
        fs::create_dir(&dead).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        // Somebody is in the middle of making one: it has no lock yet.
        let turn = File::open(&all).unwrap();
        turn.lock().unwrap();
        let made = all.join("zygote-made");
        fs::create_dir(&made).unwrap();
        let late = Place::within(&all, 5 * LOOK).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(made.exists() && dead.exists(), "swept out of turn");

        let same = all.clone();
        let second = std::thread::spawn(move || Place::within(&same, TURN).unwrap());
        let lock = File::create(made.join(LOCK)).unwrap();
        lock.lock().unwrap();
        drop(turn);
        let second = second.join().unwrap();
        let bundles = [living.bundle(), second.bundle(), made.join(BUNDLE)];
        assert!(bundles.iter().all(|bundle| bundle.parent().unwrap().is_dir()) && !dead.exists());
        assert_eq!(fs::read_dir(&all).unwrap().count(), bundles.len());
        drop(lock);
        drop(Place::within(&all, TURN).unwrap());
        assert!(!made.exists());
        drop((living, second));
        assert!(!all.exists(), "the last one leaves nothing");
    }
}
