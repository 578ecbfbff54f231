//! A static busybox: the host's own where it has one, else the distribution's package.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::ImageError;
use super::package::{Manager, run};
use super::progress::Reporter;
use super::write;

const PACKAGE: &str = "busybox-static";
const PLACES: [&str; 2] = ["bin/busybox", "usr/bin/busybox"];

/// A static busybox.
pub(super) struct Busybox {
    pub(super) bytes: Vec<u8>,
    /// The commands that it knows.
    pub(super) applets: Vec<String>,
}

/// Finds busybox on the host, or in `folder`, or downloads it there.
pub(super) fn find_or_fetch(folder: &Path, packages: &Manager<'_>, reporter: &Reporter) -> Result<Busybox, ImageError> {
    let kept = folder.join("busybox");
    let installed = PLACES.iter().map(|place| Path::new("/").join(place));
    let mut candidates: Vec<PathBuf> = vec![kept.clone()];
    candidates.extend(installed);
    let usable = candidates.iter().find_map(|path| open(path));
    match usable {
        Some(busybox) => Ok(busybox),
        None => fetch(folder, &kept, packages, reporter),
    }
}

fn open(path: &Path) -> Option<Busybox> {
    let bytes = fs::read(path).ok().filter(|bytes| is_static(bytes))?;
    let mut list = Command::new(path);
    list.arg("--list");
    let applets = run(list, PACKAGE).ok()?.lines().map(str::to_owned).collect();
    Some(Busybox { bytes, applets })
}

fn fetch(folder: &Path, kept: &Path, packages: &Manager<'_>, reporter: &Reporter) -> Result<Busybox, ImageError> {
    let failed = |source| ImageError::io("unpack busybox in", folder, source);
    let download = tempfile::Builder::new().prefix(".download-").tempdir_in(folder).map_err(failed)?;
    let (_, unpacked) = packages.unpack(PACKAGE, download.path(), reporter)?;
    let missing = || ImageError::Incomplete { package: PACKAGE.into(), file: "static busybox".into() };
    let found = PLACES.iter().map(|place| unpacked.join(place)).find(|path| path.is_file()).ok_or_else(missing)?;
    let bytes = fs::read(&found).map_err(failed)?;
    // Written beside and renamed, so that nobody runs half of it.
    let whole = download.path().join("whole");
    write(&whole, &bytes)?;
    fs::set_permissions(&whole, fs::Permissions::from_mode(0o700)).map_err(failed)?;
    fs::rename(&whole, kept).map_err(failed)?;
    open(kept).ok_or_else(missing)
}

/// Whether a 64-bit ELF executable names no interpreter.
fn is_static(bytes: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let half = |at: usize| Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)));
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let headers = || {
        let table = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?) as usize;
        let (size, count) = (half(54)?, half(56)?);
        (0..count).map(|index| word(table.checked_add(index * size)?)).collect::<Option<Vec<_>>>()
    };
    bytes.starts_with(b"\x7fELF\x02") && headers().is_some_and(|kinds| !kinds.contains(&INTERPRETER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_binary_is_not_static() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(&own[..50]));
    }
}
