//! Files that say who the guest is.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use throughline::Identity;

/// The file with the boot-id, below [`Places::run`](super::Places::run).
pub(crate) const BOOT_ID: &str = "boot_id";

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; the guest's /etc and /run must be writable")]
pub struct FilesError {
    path: PathBuf,
    source: io::Error,
}

/// The machine-id of a timeline: its epoch as a random UUID (version 4) without dashes.
pub fn machine_id(epoch: u128) -> String {
    let version = epoch & !(0xf << 76) | 4 << 76;
    let variant = version & !(0b11 << 62) | 0b10 << 62;
    format!("{variant:032x}")
}

/// The boot-id of a timeline, as the kernel writes one: to the guest's programs each timeline is a boot of its own.
///
/// From the epoch's halves the other way round: whoever takes machine-id and boot-id for two names of different things,
/// or publishes one of them, is not to find that they are the same.
pub(super) fn boot_id(epoch: u128) -> String {
    let id = machine_id(epoch.rotate_left(64));
    format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..])
}

/// The host name of an identity: the one that it was given, else one that follows from its machine-id.
pub(super) fn hostname(identity: &Identity) -> String {
    let own = || format!("throughline-{}", &machine_id(identity.epoch)[..12]);
    identity.hostname.map_or_else(own, |name| name.as_str().to_owned())
}

/// Machine-id and host name below `etc`; below `run`, `epoch` for programs that want to notice, and `boot_id`, which
/// lies over the kernel's own.
#[derive(Debug)]
pub(super) struct Files {
    machine_id: Rewrite,
    hostname: Rewrite,
    epoch: Rewrite,
    boot_id: Rewrite,
}

impl Files {
    /// Looks for the files, and changes nothing.
    pub(super) fn find(etc: &Path, run: &Path) -> Self {
        let [machine_id, hostname, epoch, boot_id] =
            [etc.join("machine-id"), etc.join("hostname"), run.join("epoch"), run.join(BOOT_ID)].map(Rewrite::find);
        Self { machine_id, hostname, epoch, boot_id }
    }

    /// Writes machine-id and host name.
    pub(super) fn write_names(&self, epoch: u128, hostname: &str) -> Result<(), FilesError> {
        self.machine_id.write(&format!("{}\n", machine_id(epoch)))?;
        self.hostname.write(&format!("{hostname}\n"))
    }

    /// Writes the boot-id.
    pub(super) fn write_boot_id(&self, epoch: u128) -> Result<(), FilesError> {
        self.boot_id.write(&format!("{}\n", boot_id(epoch)))
    }

    /// Writes the epoch.
    pub(super) fn write_epoch(&self, epoch: u128) -> Result<(), FilesError> {
        self.epoch.write(&format!("{epoch:032x}\n"))
    }
}

/// A short file that is to be written anew.
///
/// Nothing that could read it runs between finding and writing it. So it is overwritten in place, which costs a
/// guest whose code is in no cache far less than a new file and a rename.
#[derive(Debug)]
struct Rewrite {
    path: PathBuf,
    /// With the length that it has: one preparation serves several identities, rehearsals among them, and the next
    /// one's text may be shorter. `None` where there is no plain file.
    file: Option<(File, Cell<u64>)>,
}

impl Rewrite {
    fn find(path: PathBuf) -> Self {
        // Whatever lies there instead of a file: nothing waits for it, or writes to where it points.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let found = File::options().write(true).custom_flags(flags).open(&path);
        let found = found.and_then(|file| Ok((file.metadata()?, file)));
        let file = found.ok().filter(|(data, _)| data.is_file()).map(|(data, file)| (file, Cell::new(data.len())));
        Self { path, file }
    }

    fn write(&self, text: &str) -> Result<(), FilesError> {
        let written = match &self.file {
            Some((file, length)) => overwrite(file, length, text),
            None => replace(&self.path, text),
        };
        written.map_err(|source| FilesError { path: self.path.clone(), source })
    }
}

fn overwrite(file: &File, length: &Cell<u64>, text: &str) -> io::Result<()> {
    file.write_all_at(text.as_bytes(), 0)?;
    // What was longer is cut; what was shorter has grown.
    if length.replace(text.len() as u64) > text.len() as u64 { file.set_len(text.len() as u64) } else { Ok(()) }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}
