//! What runs outside of the user's control group: root in a guest may move itself, and container tools make groups of
//! their own beside it. It is the user's all the same, and is frozen with the rest.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{Cgroup, CgroupError};

/// How often all of it is looked at. What still runs may start something, or move; once all is frozen, nothing does.
const ROUNDS: u32 = 8;

/// The other groups below the user's parent, and the processes of that parent itself.
#[derive(Debug)]
pub(crate) struct Outside {
    parent: PathBuf,
    user: PathBuf,
    /// Those that this has frozen, not those that the user had.
    frozen: RefCell<Vec<Cgroup>>,
}

impl Outside {
    /// Of the group at `user`. Only for process 1 of a guest, whose parent group is nobody else's.
    pub(crate) fn of(user: &Path) -> Self {
        let parent = user.parent().unwrap_or(Path::new("/")).to_owned();
        Self { parent, user: user.to_owned(), frozen: RefCell::default() }
    }

    /// Freezes the user's group, all others, and what is in none, which is moved into the user's: the group of process 1
    /// cannot be frozen. Returns when nothing runs; on an error, some of it may.
    pub(crate) async fn freeze(&self, user: &Cgroup, limit: Duration) -> Result<(), CgroupError> {
        for _ in 0..ROUNDS {
            user.freeze(limit).await?;
            let mut changed = false;
            for path in self.others()? {
                changed |= self.freeze_other(&path, limit).await?;
            }
            changed |= self.gather(user)?;
            if !changed {
                return Ok(());
            }
        }
        Err(CgroupError::Unfrozen { path: self.parent.clone(), limit })
    }

    /// Lets run what was frozen. Harmless if nothing was.
    pub(crate) fn thaw(&self) -> Result<(), CgroupError> {
        // All of them, whatever becomes of one.
        let thawed: Vec<_> = self.frozen.take().iter().map(Cgroup::thaw).collect();
        thawed.into_iter().collect()
    }

    fn others(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let failed = |source| CgroupError::Io { action: "list", path: self.parent.clone(), source };
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.parent).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() && entry.path() != self.user {
                others.push(entry.path());
            }
        }
        Ok(others)
    }

    /// Whether it had to be.
    async fn freeze_other(&self, path: &Path, limit: Duration) -> Result<bool, CgroupError> {
        let gone = |error: CgroupError| if path.exists() { Err(error) } else { Ok(false) };
        match fs::read_to_string(path.join("cgroup.freeze")) {
            // By this, or by the user, who will thaw it himself.
            Ok(text) if text.starts_with('1') => return Ok(false),
            Ok(_) => {}
            Err(source) => return gone(CgroupError::Io { action: "freeze", path: path.to_owned(), source }),
        }
        let group = match Cgroup::open(path) {
            Ok(group) => group,
            Err(error) => return gone(error),
        };
        let frozen = group.freeze(limit).await;
        self.frozen.borrow_mut().push(group);
        frozen.map(|()| true).or_else(gone)
    }

    /// Moves processes of the parent group into the user's; whether there were any.
    fn gather(&self, user: &Cgroup) -> Result<bool, CgroupError> {
        let mut moved = false;
        let failed = |source| CgroupError::Io { action: "list", path: self.parent.clone(), source };
        let processes = fs::read_to_string(self.parent.join("cgroup.procs")).map_err(failed)?;
        for pid in processes.lines().filter_map(|line| line.parse::<u32>().ok()) {
            // The kernel's own have no program; nor have those that have just ended.
            let is_kernels = || fs::read_link(format!("/proc/{pid}/exe")).is_err();
            if pid != std::process::id() && !is_kernels() {
                moved |= user.adopt(pid)?;
            }
        }
        Ok(moved)
    }
}
