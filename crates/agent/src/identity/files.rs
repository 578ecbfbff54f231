//! Files that say who the guest is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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

/// Writes machine-id and host name below `etc`, and returns the host name.
pub(super) fn write_names(etc: &Path, epoch: u128) -> Result<String, FilesError> {
    let id = machine_id(epoch);
    replace(&etc.join("machine-id"), &format!("{id}\n"))?;
    let name = format!("throughline-{}", &id[..12]);
    replace(&etc.join("hostname"), &format!("{name}\n"))?;
    Ok(name)
}

/// Writes the file `epoch` below `run`, for programs that want to notice.
pub(super) fn write_epoch(run: &Path, epoch: u128) -> Result<(), FilesError> {
    fs::create_dir_all(run).map_err(|source| FilesError { path: run.to_owned(), source })?;
    replace(&run.join("epoch"), &format!("{epoch:032x}\n"))
}

/// Replaces a file in one step: who reads it sees the old text or the new one.
fn replace(path: &Path, text: &str) -> Result<(), FilesError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|source| FilesError { path: path.to_owned(), source })
}
