//! The image's own repairs: programs in a folder, run one after another in the order of their names.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use throughline::Identity;
use throughline_wire::exec::Exit;
use tokio::time::{Instant, timeout_at};

use crate::accounts::Accounts;
use crate::reaper::Reaper;
use crate::spawn::{Files, Spawner, Spec};

/// A hook that did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The folder cannot be read.
    #[error("cannot list the hooks in {path}: {source}")]
    List {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not be started.
    #[error("hook {path} did not start: {message}")]
    Start {
        /// The hook.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// It ended, but not well.
    #[error("hook {path} failed with exit code {code}; what it printed stands above")]
    Failed {
        /// The hook.
        path: PathBuf,
        /// As a shell would say it.
        code: i32,
    },
    /// It was killed.
    #[error("hook {path} was killed: all hooks together may take {} s", .limit.as_secs())]
    Late {
        /// The hook.
        path: PathBuf,
        /// How long they had.
        limit: Duration,
    },
}

/// Runs hooks one after another.
pub(super) async fn run(
    hooks: &[PathBuf],
    identity: &Identity,
    spawner: &Spawner,
    reaper: &Reaper,
    limit: Duration,
) -> Result<(), HookError> {
    let deadline = Instant::now() + limit;
    for path in hooks {
        let path = path.clone();
        let started = spawner
            .spawn(&spec(&path, identity))
            .map_err(|failure| HookError::Start { path: path.clone(), message: failure.message })?;
        let mut child = reaper.adopt(started.pid);
        match timeout_at(deadline, child.ended()).await {
            Ok(Ok(Exit::Code(0))) => {}
            Ok(Ok(exit)) => return Err(HookError::Failed { path, code: exit.shell_code() }),
            Ok(Err(abandoned)) => return Err(HookError::Start { path, message: abandoned.to_string() }),
            Err(_) => {
                let _ = reaper.kill(started.pid, Signal::KILL.as_raw(), true);
                return Err(HookError::Late { path, limit });
            }
        }
    }
    Ok(())
}

/// All executable files of `folder`, in the order of their names; none without the folder.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, HookError> {
    let failed = |source| HookError::List { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let metadata = fs::metadata(&path).map_err(failed)?;
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            hooks.push(path);
        }
    }
    hooks.sort();
    Ok(hooks)
}

/// Hooks are not the user's: they run while everything of his is frozen.
fn spec(path: &Path, identity: &Identity) -> Spec {
    let variable = |name: &str, value: String| (name.as_bytes().to_vec(), value.into_bytes());
    Spec {
        argv: vec![path.as_os_str().as_bytes().to_vec()],
        env: vec![
            variable("THROUGHLINE_EPOCH", format!("{:032x}", identity.epoch)),
            variable("THROUGHLINE_PARENT", format!("{:032x}", identity.parent)),
            variable("THROUGHLINE_INDEX", identity.index.to_string()),
            variable("THROUGHLINE_HOSTNAME", hostname()),
        ],
        cwd: Some(b"/".to_vec()),
        account: Accounts::root(),
        files: Files::Console,
        of_user: false,
    }
}

/// The guest's, which stays where an identity does not renew it.
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
