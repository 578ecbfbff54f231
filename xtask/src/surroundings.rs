//! The folders that a run of the tests gets for itself, so that whatever is left in them afterwards is the tests' doing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The folders that every run begins with empty, and must leave so.
pub const FRESH: [&str; 2] = ["tmp", "run"];

/// The folders that may hold what was built and downloaded.
pub const KEPT: [&str; 2] = ["data", "cache"];

/// A folder of its own under the temporary directory; removed with all that is in it when dropped.
pub struct Surroundings {
    folder: TempDir,
    kept: PathBuf,
}

impl Surroundings {
    /// `kept` outlives the run: images are expensive to build and the same for every run.
    ///
    /// The path is kept short, because a socket's path has 108 bytes.
    pub fn create(kept: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("throughline-").tempdir();
        let folder = folder.context("cannot create a temporary folder")?;
        // Others may pass through, for the part of the run that is done as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        for name in FRESH {
            private_folder(&folder.path().join(name))?;
        }
        for name in KEPT {
            let path = kept.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(Self { folder, kept: kept.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The variables that send a test's files here.
    pub fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        variables(self.path(), &self.kept)
    }

    /// The folders whose contents must be gone when the tests are.
    pub fn watched(&self) -> Vec<PathBuf> {
        let mut folders = watched(self.path(), &self.kept);
        folders.extend(watched(&self.of_user(), &self.of_user()));
        folders
    }

    /// Where the part of the run that is done as another user has its folders.
    pub fn of_user(&self) -> PathBuf {
        self.path().join("user")
    }
}

/// `fresh` holds the folders of that kind, `kept` those of the other.
pub fn variables(fresh: &Path, kept: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![
        ("TMPDIR", fresh.join("tmp")),
        ("XDG_RUNTIME_DIR", fresh.join("run")),
        ("XDG_DATA_HOME", kept.join("data")),
        ("XDG_CACHE_HOME", kept.join("cache")),
    ]
}

fn watched(fresh: &Path, kept: &Path) -> Vec<PathBuf> {
    // Images stay, as they would for a user.
    vec![fresh.join("tmp"), fresh.join("run/throughline"), kept.join("data/throughline/snapshots")]
}

pub fn private_folder(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(())
}
