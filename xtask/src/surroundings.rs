//! The folders that a run of the tests gets for itself, so that whatever is left in them afterwards is the tests' doing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// A folder of its own under the temporary directory; removed with all that is in it when dropped.
pub struct Surroundings {
    folder: TempDir,
    data: PathBuf,
}

impl Surroundings {
    /// `data` outlives the run: images are expensive to build and the same for every run.
    ///
    /// The path is kept short, because a socket's path has 108 bytes.
    pub fn create(data: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("throughline-").tempdir();
        let folder = folder.context("cannot create a temporary folder")?;
        // Others may pass through, for the part of the run that is done as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
        for name in ["tmp", "run"] {
            private_folder(&folder.path().join(name))?;
        }
        fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
        Ok(Self { folder, data: data.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The variables that send a test's files here.
    pub fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        variables(self.path(), &self.data)
    }

    /// The folders whose contents must be gone when the tests are.
    pub fn watched(&self) -> Vec<PathBuf> {
        let mut folders = watched(self.path(), &self.data);
        folders.extend(watched(&self.of_user(), &self.of_user().join("data")));
        folders
    }

    /// Where the part of the run that is done as another user has its folders.
    pub fn of_user(&self) -> PathBuf {
        self.path().join("user")
    }
}

pub fn variables(folder: &Path, data: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![("TMPDIR", folder.join("tmp")), ("XDG_RUNTIME_DIR", folder.join("run")), ("XDG_DATA_HOME", data.to_path_buf())]
}

fn watched(folder: &Path, data: &Path) -> Vec<PathBuf> {
    let runtime = folder.join("run/throughline");
    // Images stay, as they would for a user.
    vec![folder.join("tmp"), runtime, data.join("throughline/snapshots")]
}

pub fn private_folder(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(())
}
