//! Where a sandbox's files lie while it runs, and who owns its name.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest name of a sandbox, in bytes.
const LONGEST: usize = 63;

/// Why a name or a folder could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// Not a name.
    #[error(
        "{0:?} is no name for a sandbox: use 1 to {LONGEST} lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
    )]
    Name(String),
    /// Somebody has it.
    #[error("a sandbox named {0:?} exists already; choose another name, or remove it")]
    Taken(String),
    /// Nobody has it.
    #[error("there is no sandbox named {0:?}")]
    Missing(String),
    /// The system refused.
    #[error("cannot create or remove {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The folders of one sandbox. Dropping this removes them.
#[derive(Debug)]
pub(crate) struct Places {
    name: String,
    /// On tmpfs: region, sidecar, RAM.
    memory: PathBuf,
    /// Sockets, logs, `sandbox.json`.
    runtime: PathBuf,
    /// Whether the folders stay.
    kept: AtomicBool,
}

impl Places {
    /// Claims a name. Of two at once, one gets it.
    pub(crate) fn claim(name: &str) -> Result<Self, PlaceError> {
        check_name(name)?;
        let (memory, runtime) = Self::folders()?;
        let (memory, runtime) = (memory.join(name), runtime.join(name));
        // The memory's folder is the claim: creating it is atomic.
        create(&memory).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => PlaceError::Taken(name.to_owned()),
            _ => PlaceError::Io { path: memory.clone(), source },
        })?;
        let this = Self { name: name.to_owned(), memory, runtime, kept: false.into() };
        for folder in [this.current(), this.runtime.clone()] {
            create(&folder).map_err(|source| PlaceError::Io { path: folder.clone(), source })?;
        }
        Ok(this)
    }

    /// The folders of a sandbox that exists. They stay unless [`end`](Self::end) says otherwise.
    pub(crate) fn open(name: &str) -> Result<Self, PlaceError> {
        check_name(name)?;
        let (memory, runtime) = Self::folders()?;
        let (memory, runtime) = (memory.join(name), runtime.join(name));
        if !runtime.is_dir() {
            return Err(PlaceError::Missing(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), memory, runtime, kept: true.into() })
    }

    /// The folders of all sandboxes' memory, and of their sockets and logs.
    pub(crate) fn folders() -> Result<(PathBuf, PathBuf), PlaceError> {
        let uid = rustix::process::getuid().as_raw();
        Ok((private(Path::new("/dev/shm"), &format!("throughline-{uid}"))?, runtime_folder(uid)?))
    }

    /// Leaves the folders when this is dropped.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Removes the folders when this is dropped.
    pub(crate) fn end(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }

    /// Gives region, sidecar and RAM back. The name stays taken.
    pub(crate) fn free_memory(&self) -> Result<(), PlaceError> {
        let current = self.current();
        match fs::remove_dir_all(&current) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(PlaceError::Io { path: current, source }),
            _ => Ok(()),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Removes the folders under a name: what a sandbox left whose process was killed. Its machine
    /// must have ended.
    pub(crate) fn clear(name: &str) -> Result<(), PlaceError> {
        check_name(name)?;
        let (memory, runtime) = Self::folders()?;
        for folder in [runtime.join(name), memory.join(name)] {
            match fs::remove_dir_all(&folder) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(PlaceError::Io { path: folder, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Region, sidecar and RAM of the running timeline.
    pub(crate) fn current(&self) -> PathBuf {
        self.memory.join("current")
    }

    pub(crate) fn runtime(&self) -> &Path {
        &self.runtime
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        for folder in [&self.runtime, &self.memory] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %folder.display(), %error, "a sandbox's folder was left behind");
                }
                _ => {}
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), PlaceError> {
    if is_name(name) { Ok(()) } else { Err(PlaceError::Name(name.to_owned())) }
}

/// Whether this may be the name of a sandbox, or of an image.
pub(crate) fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=LONGEST).contains(&name.len())
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || b"-_.".contains(&byte))
}

/// `$XDG_RUNTIME_DIR/throughline`, else `/run/throughline` for root, else a private folder under the
/// temporary directory.
fn runtime_folder(uid: u32) -> Result<PathBuf, PlaceError> {
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        return private(&folder, "throughline");
    }
    if uid == 0 && Path::new("/run").is_dir() {
        return private(Path::new("/run"), "throughline");
    }
    private(&std::env::temp_dir(), &format!("throughline-{uid}"))
}

/// Where this user's sandboxes keep sockets and logs; made if it is not there.
pub(crate) fn runtime() -> Result<PathBuf, PlaceError> {
    runtime_folder(rustix::process::getuid().as_raw())
}

/// A folder that only its owner can use; one that somebody else made is refused.
fn private(parent: &Path, name: &str) -> Result<PathBuf, PlaceError> {
    use std::os::unix::fs::MetadataExt;
    let folder = parent.join(name);
    let failed = |source| PlaceError::Io { path: folder.clone(), source };
    match create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let found = fs::symlink_metadata(&folder).map_err(failed)?;
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
        let reason = "it exists, and is not a folder of this user that nobody else can use; remove it";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
    }
    Ok(folder)
}

fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_rules() {
        for good in ["a", "web-1", "0.x_y", &"a".repeat(63)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "../x", ".x", "-x", "a/b", "A", "a b", "ä", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_claimed_once_and_given_back() {
        let name = format!("claim-test-{}", std::process::id());
        let first = Places::claim(&name).unwrap();
        assert!(matches!(Places::claim(&name), Err(PlaceError::Taken(_))));
        assert!(first.current().is_dir(), "the second claim took nothing away");
        let memory = first.memory.clone();
        drop(first);
        assert!(!memory.exists());
        drop(Places::claim(&name).unwrap());
    }
}
