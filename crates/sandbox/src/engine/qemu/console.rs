//! The guest's console: a file that stays small whatever the guest prints.
//!
//! The monitor appends to `console.log`. While a host process watches, a file that has grown past
//! [`TURN`] is moved aside to `console.old` and cut. When none does, the monitor's file size limit
//! ([`super::process::FILE_LIMIT`]) makes further bytes vanish. Either way the guest never waits
//! for a reader, which a pipe or socket would make it do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// The size at which the console's file is turned over, in bytes.
const TURN: u64 = 256 * 1024;
/// How often a console's file is looked at that cannot be watched. What a guest prints meanwhile is bounded by the
/// monitor's file size limit.
const LOOK: Duration = Duration::from_secs(1);
/// How much of a log is reported, in bytes.
const TAIL: u64 = 4096;
/// The name of the console's file in a machine's folder.
pub(super) const CONSOLE: &str = "console.log";
/// The name of the file with what came before.
const OLDER: &str = "console.old";
/// The name of the file with the monitor's own messages.
pub(super) const MESSAGES: &str = "monitor.log";

/// Keeps a console's file small.
pub(super) struct Watch {
    folder: PathBuf,
    /// Without, the file is looked at now and then: the host has few of these for each user, 128 as a rule.
    changes: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Watches the console of the machine in `folder`; the file must exist.
    pub(super) fn new(folder: &Path) -> io::Result<Self> {
        let changes = match changes(&folder.join(CONSOLE)) {
            Ok(changes) => Some(super::readiness::watch(changes)?),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOSPC)) => {
                tracing::warn!(%error, "the console cannot be watched, and is looked at each second; see `throughline doctor`");
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { folder: folder.to_path_buf(), changes })
    }

    /// Waits for output and turns the file over where that is due. Cancel-safe.
    pub(super) async fn turned(&self) -> io::Result<()> {
        let Some(changes) = &self.changes else {
            sleep(LOOK).await;
            return turn(&self.folder);
        };
        let mut ready = changes.readable().await?;
        let mut events = [0; 4096];
        match rustix::io::read(changes.get_ref(), &mut events) {
            Ok(_) => {}
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
        turn(&self.folder)
    }
}

/// Tells of changes of a file.
fn changes(path: &Path) -> Result<OwnedFd, Errno> {
    let changes = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY)?;
    Ok(changes)
}

fn turn(folder: &Path) -> io::Result<()> {
    let path = folder.join(CONSOLE);
    if fs::metadata(&path)?.len() < TURN {
        return Ok(());
    }
    // Bytes that arrive between the two calls are lost: a log may, a copy without bound may not.
    let mut kept = Vec::new();
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TURN)))?;
    file.by_ref().take(TURN).read_to_end(&mut kept)?;
    fs::write(folder.join(OLDER), kept)?;
    file.set_len(0)
}

/// The end of the console, lossily decoded; empty when there is none.
pub(super) fn console_tail(folder: &Path) -> String {
    let mut bytes = tail(&folder.join(CONSOLE));
    if (bytes.len() as u64) < TAIL {
        let mut older = tail(&folder.join(OLDER));
        older.append(&mut bytes);
        bytes = older;
    }
    let excess = bytes.len().saturating_sub(TAIL as usize);
    String::from_utf8_lossy(&bytes[excess..]).into_owned()
}

/// The end of the monitor's own messages.
pub(super) fn messages_tail(folder: &Path) -> String {
    String::from_utf8_lossy(&tail(&folder.join(MESSAGES))).into_owned()
}

fn tail(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut bytes)
    });
    // A report of an end must not fail for want of its decoration.
    if let Err(error) = read {
        tracing::debug!(path = %path.display(), %error, "no log to report");
    }
    bytes
}
