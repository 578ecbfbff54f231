//! Folders for work in progress. They go with their owner, or, where that was killed, with the next build.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

/// How the names of such folders begin.
const PREFIX: &str = ".building-";
/// A younger one may belong to somebody who has not come to lock it.
const AGE: Duration = Duration::from_mins(1);

/// A folder in the making. Its lock says that its owner lives.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: TempDir,
    _lock: File,
}

impl Scratch {
    /// A new folder in `parent`, once those are removed whose owners are gone.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        sweep(parent, AGE)?;
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        let lock = File::open(folder.path())?;
        lock.try_lock()?;
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder, to be renamed.
    pub(super) fn finish(self) -> TempDir {
        self.folder
    }
}

fn sweep(parent: &Path, age: Duration) -> io::Result<()> {
    for entry in fs::read_dir(parent)?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let old = entry.metadata().and_then(|data| data.modified()).is_ok_and(|time| {
            // A clock that was set back makes nothing old.
            time.elapsed().is_ok_and(|elapsed| elapsed >= age)
        });
        if old && File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok()) {
            // Somebody else may be at it, which is as good.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_builder_left_is_swept_and_what_a_living_one_has_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let living = Scratch::new(parent.path()).unwrap();
        let dead = parent.path().join(".building-dead");
        let image = parent.path().join("image");
        for folder in [&dead, &image] {
            fs::create_dir_all(folder.join("deep")).unwrap();
        }
        sweep(parent.path(), AGE).unwrap();
        assert!(dead.exists(), "it is young");
        sweep(parent.path(), Duration::ZERO).unwrap();
        assert!(!dead.exists() && image.exists() && living.path().exists());
        let path = living.path().to_path_buf();
        drop(living);
        assert!(!path.exists());
    }
}
