//! What a guest boots from: the distribution's kernel, and an initramfs with the agent.
//!
//! Nothing is installed on the host. The kernel's package is downloaded and unpacked once; an
//! image is put together from it, a busybox and an agent, and kept under a name that is a digest
//! of all three. Builders in several processes do not disturb each other: each builds in a folder
//! of its own and renames it; one wins, and all use the winner's.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod busybox;
mod error;
mod initramfs;
mod kernel;
mod package;

pub use error::ImageError;

/// Changes whenever images of the same parts come to differ.
const FORMAT: &str = "throughline image 1";
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

    /// An image that was built before; None when it is not there, or not whole.
    fn open(folder: &Path) -> Option<Self> {
        let description: Description = serde_json::from_slice(&fs::read(folder.join(DESCRIPTION)).ok()?).ok()?;
        let image = Self { folder: folder.to_path_buf(), description };
        let length = |path: PathBuf| fs::metadata(path).map(|data| data.len()).ok();
        let whole = length(image.kernel()) == Some(image.description.kernel_bytes)
            && length(image.initramfs()) == Some(image.description.initramfs_bytes);
        whole.then_some(image)
    }
}

/// Builds images, or finds them built.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    agent: Vec<u8>,
    folder: PathBuf,
    package_manager: PathBuf,
    refresh: bool,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageBuilder {
    /// The usual image: this build's agent, the usual folder.
    pub fn new() -> Self {
        Self {
            agent: crate::AGENT.to_vec(),
            folder: crate::folders::data().join("images"),
            package_manager: PathBuf::from("apt-get"),
            refresh: false,
        }
    }

    /// Uses this executable or script as process 1.
    #[must_use]
    pub fn agent(mut self, agent: impl Into<Vec<u8>>) -> Self {
        self.agent = agent.into();
        self
    }

    /// Keeps kernels and images in this folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Downloads packages with another program that understands `apt-get`'s arguments.
    #[must_use]
    pub fn package_manager(mut self, program: impl Into<PathBuf>) -> Self {
        self.package_manager = program.into();
        self
    }

    /// Asks the package manager for a newer kernel even if there is one.
    #[must_use]
    pub fn refresh(mut self) -> Self {
        self.refresh = true;
        self
    }

    /// Finds or builds the image. Blocks: a few milliseconds when it is there, some seconds, and
    /// the network, when the kernel is not.
    pub fn build(&self) -> Result<Image, ImageError> {
        create_folder(&self.folder)?;
        let packages = package::Manager::new(&self.package_manager);
        let kernel = kernel::find_or_fetch(&self.folder.join("kernels"), &packages, self.refresh)?;
        let busybox = busybox::find_or_fetch(&self.folder, &packages)?;
        let id = self.id(&kernel, &busybox);
        let folder = self.folder.join(&id);
        if let Some(image) = Image::open(&folder) {
            return Ok(image);
        }
        self.assemble(&kernel, &busybox, id, &folder)
    }

    fn id(&self, kernel: &kernel::Kernel, busybox: &busybox::Busybox) -> String {
        let mut digest = Sha256::new();
        for part in [FORMAT.as_bytes(), kernel.digest().as_bytes(), &busybox.bytes, &self.agent] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        hex(&digest.finalize()[..16])
    }

    fn assemble(
        &self,
        kernel: &kernel::Kernel,
        busybox: &busybox::Busybox,
        id: String,
        folder: &Path,
    ) -> Result<Image, ImageError> {
        let failed = |source| ImageError::io("build the image in", &self.folder, source);
        let building = tempfile::Builder::new().prefix(".building-").tempdir_in(&self.folder).map_err(failed)?;
        let at = |name| building.path().join(name);
        let kernel_bytes = fs::copy(kernel.file(), at(KERNEL)).map_err(failed)?;
        let mut file = BufWriter::new(File::create(at(INITRAMFS)).map_err(failed)?);
        initramfs::write(&mut file, &self.agent, busybox, kernel).map_err(failed)?;
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        let initramfs_bytes = file.metadata().map_err(failed)?.len();
        let description = Description { id, kernel: kernel.name().to_owned(), kernel_bytes, initramfs_bytes };
        let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
        fs::write(at(DESCRIPTION), text).map_err(failed)?;
        publish(building, folder)?;
        Image::open(folder).ok_or_else(|| failed(io::Error::other("it was changed while it was built")))
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
