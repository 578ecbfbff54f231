//! The folder of a pool: its socket and log, and the lock that says that its keeper lives.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::io::ErrorKind::{AlreadyExists, NotFound};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use throughline_sandbox::doctor::{Check, State};
use throughline_sandbox::{SandboxError, check_name, runtime};
use tokio::time::{Instant, sleep};

use crate::ShimError;
use crate::api::{Failure, Kind};

/// Where all pools lie, among the sandboxes' folders: no name of a sandbox.
const ALL: &str = "+pools";
const LOCK: &str = "lock";
/// How long others look whether a keeper lives, or remove what a dead one left.
const TURN: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_millis(2);

/// A pool's folder, locked. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// The folder of a new pool. What a dead keeper left under the name is removed.
    pub(super) async fn claim(name: &str) -> Result<Self, ShimError> {
        let folder = Self::at(path(name)?).await.map_err(ShimError::io("create and lock the pool's folder"))?;
        let taken = || Failure {
            kind: Kind::Taken,
            message: format!("a pool named {name:?} exists already; choose another name, or remove it"),
        };
        Ok(folder.ok_or_else(taken)?)
    }

    /// `None` if a living keeper has it.
    async fn at(path: PathBuf) -> io::Result<Option<Self>> {
        let until = Instant::now() + TURN;
        let mut make = DirBuilder::new();
        make.mode(0o700).recursive(true);
        loop {
            let last = Instant::now() >= until;
            match make.create(&path).and_then(|()| lock(&path, true)) {
                Ok(Some(lock)) => return Ok(Some(Self { path, _lock: lock })),
                Ok(None) if last => return Ok(None),
                Err(error) if last || !matches!(error.kind(), NotFound | AlreadyExists) => return Err(error),
                // Others look, or just removed the folder, or that of all: until it is locked it looks like a dead one's.
                _ => sleep(LOOK).await,
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = empty(&self.path) {
            tracing::warn!(folder = %self.path.display(), %error, "a pool's folder was left behind");
        }
        // Another keeper may have it by now. The last one leaves nothing.
        let _ = fs::remove_dir(&self.path);
        if let Some(all) = self.path.parent() {
            let _ = fs::remove_dir(all);
        }
    }
}

/// Removes what is in a pool's folder, the lock last: from then on the folder may be another keeper's.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != LOCK {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(folder.join(LOCK))
}

/// Where a pool's folder is.
pub(super) fn path(name: &str) -> Result<PathBuf, ShimError> {
    check_name(name).map_err(SandboxError::from)?;
    Ok(runtime().map_err(SandboxError::from)?.join(ALL).join(name))
}

/// The names of all pools, dead ones too. Sorted.
pub(super) fn names() -> Result<Vec<String>, ShimError> {
    let all = runtime().map_err(SandboxError::from)?.join(ALL);
    let entries = match fs::read_dir(all) {
        Ok(entries) => entries,
        Err(error) if error.kind() == NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ShimError::io("list the pools")(error)),
    };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| check_name(name).is_ok());
    names.sort();
    Ok(names)
}

/// Whether the keepers of all pools live, for `doctor`. Removes nothing.
pub fn check() -> Check {
    let looked = names().and_then(|names| {
        // One without a lock is just being made.
        let dead = |name: &String| Ok(lock(&path(name)?, false).is_ok_and(|lock| lock.is_some()));
        let dead: Vec<bool> = names.iter().map(dead).collect::<Result<_, ShimError>>()?;
        Ok(names.into_iter().zip(dead).partition::<Vec<_>, _>(|(_, dead)| *dead))
    });
    let (state, detail) = match looked {
        Ok((dead, living)) if dead.is_empty() => (State::Ok, format!("{} have a keeper", living.len())),
        Ok((dead, _)) => {
            let dead: Vec<_> = dead.into_iter().map(|(name, _)| name).collect();
            (State::Warning, format!("the keepers of these have died: {}", dead.join(", ")))
        }
        Err(error) => (State::Warning, error.to_string()),
    };
    Check::new("pools", state, detail, "throughline prune")
}

/// Removes the folder of a pool whose keeper has died; whether it was such a one.
pub(super) fn remove_dead(name: &str) -> Result<bool, ShimError> {
    let path = path(name)?;
    match lock(&path, true) {
        Ok(Some(lock)) => {
            drop(Folder { path, _lock: lock });
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(error) if error.kind() == NotFound => Ok(false),
        Err(error) => Err(ShimError::io("look at the pool's folder")(error)),
    }
}

/// Its lock, unless a living keeper has it. It is in its place: whoever removes a folder has the lock.
fn lock(folder: &Path, create: bool) -> io::Result<Option<File>> {
    use std::os::unix::fs::MetadataExt;
    let path = folder.join(LOCK);
    let file = File::options().create(create).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => {
            let (here, there) = (file.metadata()?, fs::metadata(&path)?);
            Ok(((here.dev(), here.ino()) == (there.dev(), there.ino())).then_some(file))
        }
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    #[tokio::test]
    async fn a_pools_folder_is_claimed_while_others_look_or_remove_it_and_by_one_alone() {
        let parent = tempfile::tempdir().unwrap();
        let all = parent.path().join(ALL);
        let path = all.join("pool");
        fs::create_dir_all(&path).unwrap();
        assert_eq!(lock(&path, false).unwrap_err().kind(), NotFound);
        assert!(!path.join(LOCK).exists(), "whoever only looks leaves nothing");
        // Somebody takes it for a dead one's, and removes it, and with it the folder of all.
        let dead = Folder { path: path.clone(), _lock: lock(&path, true).unwrap().unwrap() };
        let mut claim = std::pin::pin!(Folder::at(path.clone()));
        tokio::select! {
            biased;
            claimed = &mut claim => panic!("{claimed:?} although it is locked"),
            () = ready(()) => {}
        }
        drop(dead);
        assert!(!all.exists());
        let claimed = claim.await.unwrap().expect("it is nobody's");
        assert!(path.join(LOCK).exists());
        assert!(Folder::at(path.clone()).await.unwrap().is_none(), "it has a keeper");
        drop(claimed);
        assert!(!all.exists());
    }
}
