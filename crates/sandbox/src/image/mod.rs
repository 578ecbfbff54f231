//! What a guest boots from: a kernel, an initramfs with the agent, and, for any userland, a root file system.
//!
//! | File of an image | Content |
//! |---|---|
//! | `vmlinuz` | the kernel: the distribution's, or one of the user's choice |
//! | `initramfs` | the agent, modules, and a busybox unless there is a `rootfs` |
//! | `rootfs` | a userland, read-only (erofs); the guest lays its memory over it |
//! | `image.json` | what it is made of |
//!
//! Nothing is installed on the host. The kernel's package is downloaded and unpacked once; an image is put together
//! from it, and kept under a name that is a digest of all its parts: its id. Builders in several processes do not
//! disturb each other: each builds in a folder of its own and renames it; one wins, and all use the winner's.
//! [`Images`] gives images names that people use.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod builder;
mod busybox;
mod error;
mod initramfs;
mod kernel;
mod module;
mod package;
mod progress;
mod rootfs;
mod scratch;
mod store;

pub use builder::ImageBuilder;
pub use error::{ImageError, Names};
pub use progress::{BuildStep, Progress};
pub use rootfs::Rootfs;
pub use store::{ImageEntry, Images};

const KERNEL: &str = "vmlinuz";
const INITRAMFS: &str = "initramfs";
const DESCRIPTION: &str = "image.json";

/// A boot image on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    folder: PathBuf,
    description: Description,
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Description {
    id: String,
    kernel: String,
    kernel_bytes: u64,
    initramfs_bytes: u64,
    rootfs: Option<Rootfs>,
    /// Digest of what the initramfs is made of, but for the agent, which comes last in it.
    base: String,
    /// Where the agent begins in it.
    base_bytes: u64,
    /// Digest of the agent.
    agent: String,
    /// Whether its kernel drives a network card: earlier images do not say so, and cannot.
    #[serde(default)]
    network: bool,
}

impl Image {
    /// The digest of all that the image is made of, in hexadecimal.
    pub fn id(&self) -> &str {
        &self.description.id
    }

    /// The kernel's package and version.
    pub fn kernel_version(&self) -> &str {
        &self.description.kernel
    }

    /// The kernel's file.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join(KERNEL)
    }

    /// The initramfs' file.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join(INITRAMFS)
    }

    /// The root file system, if it has one of its own.
    pub fn rootfs(&self) -> Option<&Rootfs> {
        self.description.rootfs.as_ref()
    }

    /// Whether its guests can have a network.
    pub fn has_network(&self) -> bool {
        self.description.network
    }

    /// Whether its root file system has this digest.
    fn has(&self, digest: &str) -> bool {
        self.rootfs().is_some_and(|rootfs| rootfs.digest == digest)
    }

    /// The root file system's file.
    pub fn rootfs_file(&self) -> Option<PathBuf> {
        self.rootfs().map(|_| rootfs::path(&self.folder))
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        let Description { kernel_bytes, initramfs_bytes, rootfs, .. } = &self.description;
        kernel_bytes + initramfs_bytes + rootfs.as_ref().map_or(0, |rootfs| rootfs.bytes)
    }

    /// Opens the root file system for a machine. While the file is open, by whatever process it was handed on to, the
    /// image is in use and cannot be [removed](Images::remove).
    pub(crate) fn open_rootfs(&self) -> Result<Option<File>, ImageError> {
        let Some(path) = self.rootfs_file() else { return Ok(None) };
        let file = File::open(&path).map_err(|source| ImageError::io("open the root file system", &path, source))?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => {
                Err(ImageError::Absent { name: self.id().to_owned(), there: Names(Vec::new()) })
            }
            Err(fs::TryLockError::Error(source)) => Err(ImageError::io("lock", &path, source)),
        }
    }

    /// Compares the root file system with its digest. Blocks, for some seconds a GiB.
    pub fn verify(&self) -> Result<(), ImageError> {
        let Some((path, rootfs)) = self.rootfs_file().zip(self.rootfs()) else { return Ok(()) };
        let failed = |source| ImageError::io("read the root file system", &path, source);
        let found = File::open(&path).and_then(|file| rootfs::digest(file, &progress::Reporter::default()));
        if found.map_err(failed)? == rootfs.digest {
            return Ok(());
        }
        let reason = "it is damaged: its content is not what was built; remove the image, and build it again";
        Err(ImageError::NoUserland { path, reason: reason.to_owned() })
    }

    /// An image that was built before; None when it is not there, or not whole.
    fn open(folder: &Path) -> Option<Self> {
        let description: Description = serde_json::from_slice(&fs::read(folder.join(DESCRIPTION)).ok()?).ok()?;
        let image = Self { folder: folder.to_path_buf(), description };
        let length = |path: PathBuf| fs::metadata(path).map(|data| data.len()).ok();
        let whole = length(image.kernel()) == Some(image.description.kernel_bytes)
            && length(image.initramfs()) == Some(image.description.initramfs_bytes)
            && image.rootfs().is_none_or(|rootfs| length(rootfs::path(folder)) == Some(rootfs.bytes));
        whole.then_some(image)
    }
}

/// Gives a finished folder its name. Where another process was faster, or left a damaged one, the
/// whole one stays.
fn publish(finished: tempfile::TempDir, name: &Path) -> Result<(), ImageError> {
    let failed = |source| ImageError::io("publish", name, source);
    match fs::rename(finished.path(), name) {
        Ok(()) => {
            // The folder has another name now: there is nothing left to remove.
            let _ = finished.keep();
            Ok(())
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {
            if Image::open(name).is_some() || kernel::Kernel::open(name).is_some() {
                return Ok(());
            }
            // Damaged: exchange it, and let it go with the temporary folder.
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            let here = rustix::fs::CWD;
            rustix::fs::renameat_with(here, finished.path(), here, name, flags).map_err(|error| failed(error.into()))
        }
        Err(error) => Err(failed(error)),
    }
}

fn create_folder(folder: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::DirBuilderExt;
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    created.map_err(|source| ImageError::io("create", folder, source))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Writes a whole file.
fn write(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let written = File::create(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|source| ImageError::io("write", path, source))
}
