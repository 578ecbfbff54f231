//! The control group of everything that is the user's.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A control group (version 2) whose processes can be frozen and killed together.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Held open: a restored guest thaws in its first, slow moments.
    freezer: File,
}

/// What went wrong with the group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the group could not be used.
    #[error("cannot {action} the control group at {path}: {source}; is it a cgroup v2 file system?")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which group.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The processes did not freeze in time.
    #[error("processes of the control group at {path} did not freeze within {} ms; one hangs in the kernel", .limit.as_millis())]
    Unfrozen {
        /// Which group.
        path: PathBuf,
        /// How long they had.
        limit: Duration,
    },
}

impl Cgroup {
    /// Makes the group at `path`; one that exists is used as it is.
    pub fn create(path: &Path) -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::Io { action: "create", path: path.to_owned(), source };
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        Self::open(path)
    }

    /// The group at `path`, which exists.
    pub(crate) fn open(path: &Path) -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::Io { action: "open", path: path.to_owned(), source };
        let freezer = File::options().write(true).open(path.join("cgroup.freeze")).map_err(failed)?;
        Ok(Self { path: path.to_owned(), freezer })
    }

    /// Moves a process into the group; whether it was still there.
    pub(crate) fn adopt(&self, pid: u32) -> Result<bool, CgroupError> {
        match fs::write(self.path.join("cgroup.procs"), pid.to_string()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(false),
            Err(error) => Err(self.error("move a process into", error)),
        }
    }

    /// A group beside this one, with something more to its name.
    pub(crate) fn beside(&self, more: &str) -> Result<Self, CgroupError> {
        let mut path = self.path.clone().into_os_string();
        path.push(more);
        Self::create(Path::new(&path))
    }

    /// A descriptor to which a process writes `0` to move itself into the group.
    pub fn entrance(&self) -> Result<OwnedFd, CgroupError> {
        File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"))
            .map(OwnedFd::from)
            .map_err(|error| self.error("enter", error))
    }

    /// Freezes all processes, and returns when they are. On an error, or cancelled, those that can still
    /// freeze; [`thaw`](Self::thaw) takes it back.
    pub async fn freeze(&self, limit: Duration) -> Result<(), CgroupError> {
        let events = self.events("freeze")?;
        self.freezer.write_all_at(b"1", 0).map_err(|error| self.error("freeze", error))?;
        tokio::time::timeout(limit, self.until(events, "frozen 1"))
            .await
            .unwrap_or_else(|_| Err(CgroupError::Unfrozen { path: self.path.clone(), limit }))
    }

    /// Lets the processes run. Harmless if they do.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.freezer.write_all_at(b"0", 0).map_err(|error| self.error("thaw", error))
    }

    /// Sends `SIGKILL` to all processes, also to those that are being born.
    pub fn kill(&self) -> Result<(), CgroupError> {
        File::options()
            .write(true)
            .open(self.path.join("cgroup.kill"))
            .and_then(|file| file.write_all_at(b"1", 0))
            .map_err(|error| self.error("kill", error))
    }

    /// Waits until no process is left. Cancel-safe.
    pub async fn emptied(&self) -> Result<(), CgroupError> {
        let events = self.events("watch")?;
        self.until(events, "populated 0").await
    }

    /// Process ids in the group.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).map_err(|error| self.error("list", error))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Removes the group, which must be empty.
    pub fn remove(self) -> Result<(), CgroupError> {
        fs::remove_dir(&self.path).map_err(|error| self.error("remove", error))
    }

    /// Waits for a line in `cgroup.events`. The kernel signals each change of that file as priority data.
    async fn until(&self, events: AsyncFd<File>, line: &str) -> Result<(), CgroupError> {
        loop {
            let mut text = String::new();
            let mut file = events.get_ref();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(|error| self.error("watch", error))?;
            if text.lines().any(|found| found == line) {
                return Ok(());
            }
            let mut changed =
                events.ready(Interest::PRIORITY | Interest::ERROR).await.map_err(|error| self.error("watch", error))?;
            changed.clear_ready();
        }
    }

    fn events(&self, action: &'static str) -> Result<AsyncFd<File>, CgroupError> {
        File::open(self.path.join("cgroup.events"))
            .and_then(|file| crate::sys::watch(file, Interest::PRIORITY | Interest::ERROR))
            .map_err(|error| self.error(action, error))
    }

    fn error(&self, action: &'static str, source: io::Error) -> CgroupError {
        CgroupError::Io { action, path: self.path.clone(), source }
    }
}
