//! A userland as one read-only file: an erofs of a folder, or of an archive.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::ImageError;
use super::package::{Task, find_program};
use super::progress::{BuildStep, Reporter};
use super::{create_folder, hex};

/// How long a step may take: gigabytes on a slow disk.
const DEADLINE: Duration = Duration::from_hours(1);
/// The time at which the file system claims to be made, later than that of any file in it: the same userland
/// then gives the same bytes, and files keep their times.
const EPOCH: &str = "4102444800";
/// How file systems are made: one identifier for all, for the same reason; every file's time; and without what a
/// running system shows of itself.
const MKFS: [&str; 5] = [
    "--quiet",
    "-U7468726f-7567-686c-696e-650000000001",
    "-Eforce-inode-extended",
    "--exclude-regex=^(proc|sys|dev)/.",
    "--preserve-mtime",
];
/// What the beginning of a compressed archive looks like, and the option that unpacks it.
const COMPRESSIONS: [(&[u8], &str); 4] =
    [(b"\x1f\x8b", "--gzip"), (b"\x28\xb5\x2f\xfd", "--zstd"), (b"\xfd7zXZ\0", "--xz"), (b"BZh", "--bzip2")];
/// In a POSIX archive's first header.
const TAR_MAGIC: (u64, &[u8]) = (257, b"ustar");

/// The root file system of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub digest: String,
    /// The name of the folder or archive that it was made of, without its path.
    pub source: String,
}

/// What `fakeroot` runs to unpack an archive and make a file system of it: all that one would do as root, whose
/// owners, modes, devices and capabilities it remembers for as long as this takes. So anybody may, and nobody else's
/// file comes to lie on the host. Capabilities (such as `ping`'s) take a second pass: files that tar creates with
/// attributes lose their kind there. Other attributes are not kept: tar does not write them onto files that exist.
const UNPACK: &str = r#"
set -eu
archive=$1 tree=$2 compression=$3; shift 3
keep='--numeric-owner --same-owner --same-permissions'
attributes='--xattrs --xattrs-include=security.capability'
set -f
tar --extract --file=- $compression --directory="$tree" $keep
if tar --list --verbose $attributes --file="$archive" | grep -q '^.\{10\}\*'; then
  tar --extract --overwrite --file="$archive" --directory="$tree" $keep $attributes
fi
exec "$@" "$tree"
"#;

/// Makes the file `to` of the userland at `source`. What lies unpacked meanwhile lies in `scratch`, which exists.
pub(super) fn build(source: &Path, to: &Path, scratch: &Path, reporter: &Reporter) -> Result<Rootfs, ImageError> {
    find_program("mkfs.erofs")?;
    let data = fs::metadata(source).map_err(|error| ImageError::io("open the userland", source, error))?;
    if data.is_dir() {
        of_folder(source, to, reporter)?;
    } else {
        of_archive(source, to, scratch, reporter)?;
    }
    let name = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = File::open(to).map_err(|error| ImageError::io("open", to, error))?;
    let digest = digest(file, reporter).map_err(|error| ImageError::io("read", to, error))?;
    Ok(Rootfs { bytes: length(to), digest, source: name })
}

fn of_folder(source: &Path, to: &Path, reporter: &Reporter) -> Result<(), ImageError> {
    check(source, source)?;
    let mut command = Command::new("mkfs.erofs");
    command.args(MKFS).arg(to);
    // An ordinary user has the files only as his own: whose they are to be, nobody knows.
    if !rustix::process::geteuid().is_root() {
        command.arg("--all-root");
    }
    command.arg(source);
    run(command, Stdio::null(), source, &mut || reporter.tell(BuildStep::Rootfs, length(to), None))
}

fn of_archive(archive: &Path, to: &Path, scratch: &Path, reporter: &Reporter) -> Result<(), ImageError> {
    find_program("fakeroot")?;
    let failed = |error| ImageError::io("open the userland", archive, error);
    let file = File::open(archive).map_err(failed)?;
    let compression = compression(archive, &file).map_err(failed)??;
    if let Some(program) = compression.strip_prefix("--") {
        find_program(program)?;
    }
    // Named by the script from its own folder.
    let path = std::path::absolute(archive).map_err(failed)?;
    let tree = scratch.join("userland");
    create_folder(&tree)?;
    let mut command = Command::new("fakeroot");
    command.args(["--", "sh", "-c", UNPACK, "sh"]).arg(path).arg(&tree).arg(compression);
    command.arg("mkfs.erofs").args(MKFS).arg(to);
    // Whoever reads the archive moves the position that we see too.
    let input = file.try_clone().map_err(failed)?;
    let total = file.metadata().map_err(failed)?.len();
    let mut tell = || match (length(to), (&file).stream_position().unwrap_or(0)) {
        (0, done) => reporter.tell(BuildStep::Unpack, done, Some(total)),
        (written, _) => reporter.tell(BuildStep::Rootfs, written, None),
    };
    let made = run(command, Stdio::from(input), archive, &mut tell);
    // An archive that is no userland may be the reason for whatever went wrong.
    check(&tree, archive)?;
    made?;
    fs::remove_dir_all(&tree).map_err(|error| ImageError::io("remove", &tree, error))
}

/// SHA-256 of a file, in hexadecimal.
pub(super) fn digest(mut file: File, reporter: &Reporter) -> io::Result<String> {
    let total = file.metadata()?.len();
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        reporter.tell(BuildStep::Digest, done, Some(total));
        let length = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..length).filter(|piece| !piece.is_empty()) else {
            return Ok(hex(&digest.finalize()));
        };
        digest.update(piece);
        done += length as u64;
    }
}

/// The option for the archive's compression; empty for a plain one.
fn compression(path: &Path, file: &File) -> io::Result<Result<&'static str, ImageError>> {
    let begins = |at: u64, bytes: &[u8]| {
        let mut found = vec![0; bytes.len()];
        match file.read_exact_at(&mut found, at) {
            Ok(()) => Ok(found == bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    };
    for (magic, option) in COMPRESSIONS {
        if begins(0, magic)? {
            return Ok(Ok(option));
        }
    }
    if begins(TAR_MAGIC.0, TAR_MAGIC.1)? {
        return Ok(Ok(""));
    }
    let reason = "it is neither a folder nor a tar archive (plain, gzip, zstd, xz or bzip2)".to_owned();
    Ok(Err(ImageError::NoUserland { path: path.to_path_buf(), reason }))
}

/// Refuses what is no userland, with what it may be instead.
fn check(tree: &Path, source: &Path) -> Result<(), ImageError> {
    let refuse = |reason: &str| Err(ImageError::NoUserland { path: source.to_path_buf(), reason: reason.to_owned() });
    let there = |name: &str| tree.join(name).symlink_metadata().is_ok();
    let mut entries = fs::read_dir(tree).map_err(|error| ImageError::io("read the userland", source, error))?;
    if entries.next().is_none() {
        return refuse("it is empty");
    }
    let system = ["bin", "usr", "etc", "sbin"].into_iter().any(there);
    if !system && (there("manifest.json") || there("oci-layout")) {
        return refuse("it is an image in layers; create a container of it and export that (docker export)");
    }
    Ok(())
}

fn run(mut command: Command, stdin: Stdio, source: &Path, tick: &mut dyn FnMut()) -> Result<(), ImageError> {
    let subject = source.display().to_string();
    command.env("SOURCE_DATE_EPOCH", EPOCH);
    Task { subject: &subject, stdin, deadline: DEADLINE, tick }.run(command).map(drop)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}

/// The file in an image's folder.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("rootfs")
}
