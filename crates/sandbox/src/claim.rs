//! Who creates or removes what has a name: one process at a time, and nobody once that has died.
//!
//! A claim is a lock on a file of the name's own. The system lets go of it when its holder dies, and all that the holder
//! was just starting have come to their programs or have ended: whoever gets the claim next knows all that was left.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use throughline::Holder;

use crate::engine::high;

/// How long whoever must have a claim waits for it.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// The right to create or remove what has a name. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Locked.
    file: File,
    path: PathBuf,
}

/// What a try came to.
pub(crate) enum Try {
    /// The claim.
    Got(Claim),
    /// Somebody has it; a creator, if that is known and lives.
    Held(Option<u32>),
}

impl Claim {
    /// The file, beside the folder of the sandbox's memory. No sandbox has such a name.
    pub(crate) fn path(memory: &Path, name: &str) -> PathBuf {
        memory.join(format!(".{name}"))
    }

    /// Takes the claim; if a living creator has it, says at once which. What a dying one still holds is waited for.
    pub(crate) fn take(memory: &Path, name: &str) -> io::Result<Try> {
        wait(memory, name, |holder| holder.is_some())
    }

    /// Says who holds it, and will for a while: a creator. Whoever removes something does not, and is waited for.
    pub(crate) fn sign(&mut self) -> io::Result<()> {
        let stat = procfs::process::Process::myself().and_then(|process| process.stat()).map_err(io::Error::other)?;
        self.file.set_len(0)?;
        self.file.rewind()?;
        write!(self.file, "{} {}", stat.pid, stat.starttime)
    }

    /// Takes the claim as soon as whoever has it lets go.
    pub(crate) fn wait(memory: &Path, name: &str) -> io::Result<Try> {
        wait(memory, name, |_| false)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is locked: whoever finds it gone begins anew.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(claim = %self.path.display(), %error, "a claim was left behind; it hinders nobody");
        }
    }
}

fn wait(memory: &Path, name: &str, enough: impl Fn(Option<u32>) -> bool) -> io::Result<Try> {
    let path = Claim::path(memory, name);
    let deadline = Instant::now() + DEADLINE;
    loop {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        match file.try_lock() {
            // Where a monitor is started, its process keeps the lock until it has said which process it is.
            Ok(()) if is_at(&file, &path)? => return Ok(Try::Got(Claim { file: high(&file)?.into(), path })),
            // Its last holder removed it after it was opened here.
            Ok(()) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&file);
                if enough(holder) || Instant::now() >= deadline {
                    return Ok(Try::Held(holder));
                }
            }
        }
        sleep(LOOK);
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that holds it, if it lives and has said so.
fn holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text).ok()?;
    let (pid, started) = text.split_once(' ')?;
    let holder = Holder { pid: pid.parse().ok()?, started: started.parse().ok()? };
    holder.is_running().then_some(holder.pid)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::engine::HIGH;

    #[test]
    fn a_claim_is_not_lost_to_a_descriptor_that_a_monitor_inherits() {
        let folder = tempfile::tempdir().unwrap();
        let Try::Got(claim) = Claim::take(folder.path(), "name").unwrap() else { panic!("nobody has it") };
        assert!(claim.file.as_raw_fd() >= HIGH);
        assert!(matches!(Claim::wait(folder.path(), "other").unwrap(), Try::Got(_)));
        let file = File::open(Claim::path(folder.path(), "name")).unwrap();
        assert!(matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
    }
}
