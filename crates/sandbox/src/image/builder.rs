//! Building images.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::busybox::{self, Busybox};
use super::error::ImageError;
use super::kernel::{self, Kernel};
use super::progress::{BuildStep, Progress, Reporter};
use super::rootfs::{self, Rootfs};
use super::scratch::Scratch;
use super::{DESCRIPTION, Description, INITRAMFS, Image, KERNEL, create_folder, hex, initramfs, package, publish};

/// Changes whenever images of the same parts come to differ.
const FORMAT: &str = "throughline image 5";

/// Builds images, or finds them built.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    agent: Vec<u8>,
    folder: PathBuf,
    package_manager: PathBuf,
    refresh: bool,
    kernel: Option<PathBuf>,
    modules: Option<PathBuf>,
    rootfs: Option<PathBuf>,
    reporter: Reporter,
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
            kernel: None,
            modules: None,
            rootfs: None,
            reporter: Reporter::default(),
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

    /// Makes the guest's root of a userland: a folder, such as `debootstrap` makes, or an archive, such as
    /// `docker export` writes (tar; also compressed by gzip, zstd, xz or bzip2).
    ///
    /// It stays as it is: what the guest writes lies over it, in the guest's memory, of which it may fill half. Owners, modes, devices and
    /// file capabilities of an archive are kept whoever builds; other attributes are not. A folder's are kept, and its
    /// attributes too, where root builds; where another user does, all its files become root's, and all must be readable.
    #[must_use]
    pub fn rootfs(mut self, source: impl Into<PathBuf>) -> Self {
        self.rootfs = Some(source.into());
        self
    }

    /// Boots this kernel (a `vmlinuz`), not the distribution's.
    #[must_use]
    pub fn kernel(mut self, file: impl Into<PathBuf>) -> Self {
        self.kernel = Some(file.into());
        self
    }

    /// Takes that kernel's modules from this folder, such as `/lib/modules/6.1.0`, or from the one in it that has the
    /// kernel's release as its name. Without this, from the host's own.
    #[must_use]
    pub fn modules(mut self, folder: impl Into<PathBuf>) -> Self {
        self.modules = Some(folder.into());
        self
    }

    /// Tells `observer` how far the build is, some ten times a second. The observer must not wait.
    #[must_use]
    pub fn progress(mut self, observer: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.reporter = Reporter::new(observer);
        self
    }

    /// Finds or builds the image. Blocks: a few milliseconds when it is there; some seconds, and the network, when
    /// the kernel is not; for a userland as long as copying it takes, also to find that the image is there.
    pub fn build(&self) -> Result<Image, ImageError> {
        create_folder(&self.folder)?;
        let failed = |source| ImageError::io("build an image in", &self.folder, source);
        let temporary = || Scratch::new(&self.folder).map_err(failed);
        let packages = package::Manager::new(&self.package_manager);
        // Lives as long as a kernel in it.
        let chosen = temporary()?;
        let kernel = match (&self.kernel, &self.modules) {
            (Some(kernel), modules) => kernel::choose(kernel, modules.as_deref(), chosen.path())?,
            (None, Some(_)) => return Err(ImageError::ModulesAlone),
            (None, None) => {
                kernel::find_or_fetch(&self.folder.join("kernels"), &packages, self.refresh, &self.reporter)?
            }
        };
        let building = temporary()?;
        let mut parts = Parts { kernel: &kernel, busybox: None, rootfs: None };
        match &self.rootfs {
            Some(source) => {
                let to = rootfs::path(building.path());
                parts.rootfs = Some(rootfs::build(source, &to, chosen.path(), &self.reporter)?);
            }
            None => parts.busybox = Some(busybox::find_or_fetch(&self.folder, &packages, &self.reporter)?),
        }
        let id = self.id(&parts.base(), parts.rootfs.as_ref());
        let folder = self.folder.join(&id);
        if let Some(image) = Image::open(&folder) {
            return Ok(image);
        }
        self.assemble(parts, id, building)?;
        self.built(&folder)
    }

    /// The same image with this builder's agent, found or put together: as after an update.
    pub(super) fn renew(&self, image: &Image) -> Result<Image, ImageError> {
        let Description { base, base_bytes, rootfs, .. } = &image.description;
        let id = self.id(base, rootfs.as_ref());
        let folder = self.folder.join(&id);
        if let Some(image) = Image::open(&folder) {
            return Ok(image);
        }
        let failed = |source| ImageError::io("renew the image in", &self.folder, source);
        let building = Scratch::new(&self.folder).map_err(failed)?;
        let at = |name| building.path().join(name);
        fs::hard_link(image.kernel(), at(KERNEL)).map_err(failed)?;
        if let Some(file) = image.rootfs_file() {
            fs::hard_link(file, rootfs::path(building.path())).map_err(failed)?;
        }
        let mut file = File::create(at(INITRAMFS)).map_err(failed)?;
        let old = File::open(image.initramfs()).map_err(failed)?;
        io::copy(&mut old.take(*base_bytes), &mut file).map_err(failed)?;
        let description = Description { id, ..image.description.clone() };
        self.complete(file, description, building)?;
        self.built(&folder)
    }

    fn built(&self, folder: &Path) -> Result<Image, ImageError> {
        let changed = || io::Error::other("it was changed while it was built");
        Image::open(folder).ok_or_else(|| ImageError::io("build an image in", &self.folder, changed()))
    }

    fn id(&self, base: &str, rootfs: Option<&Rootfs>) -> String {
        let rootfs = rootfs.map_or("", |rootfs| &rootfs.digest);
        digest_of(&[FORMAT.as_bytes(), base.as_bytes(), rootfs.as_bytes(), &self.agent])
    }

    /// Digest of the agent.
    pub(super) fn agent_digest(&self) -> String {
        digest_of(&[&self.agent])
    }

    /// Fills the folder, and gives it its name.
    fn assemble(&self, parts: Parts<'_>, id: String, building: Scratch) -> Result<(), ImageError> {
        self.reporter.tell(BuildStep::Assemble, 0, None);
        let failed = |source| ImageError::io("build an image in", &self.folder, source);
        let at = |name| building.path().join(name);
        let kernel_bytes = fs::copy(parts.kernel.file(), at(KERNEL)).map_err(failed)?;
        let mut file = BufWriter::new(File::create(at(INITRAMFS)).map_err(failed)?);
        initramfs::write_base(&mut file, parts.busybox.as_ref(), parts.kernel).map_err(failed)?;
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        let description = Description {
            id,
            kernel: parts.kernel.name().to_owned(),
            kernel_bytes,
            initramfs_bytes: 0,
            base: parts.base(),
            base_bytes: file.metadata().map_err(failed)?.len(),
            network: parts.kernel.has_network(),
            rootfs: parts.rootfs,
            agent: String::new(),
        };
        self.complete(file, description, building)
    }

    /// Adds the agent to what there is of an initramfs, describes the image, and gives its folder its name.
    fn complete(&self, mut file: File, mut description: Description, building: Scratch) -> Result<(), ImageError> {
        let failed = |source| ImageError::io("build an image in", &self.folder, source);
        initramfs::write_agent(&mut file, &self.agent).map_err(failed)?;
        description.initramfs_bytes = file.metadata().map_err(failed)?.len();
        description.agent = self.agent_digest();
        let folder = self.folder.join(&description.id);
        let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
        fs::write(building.path().join(DESCRIPTION), text).map_err(failed)?;
        publish(building.finish(), &folder)
    }
}

/// What an image is put together from.
struct Parts<'a> {
    kernel: &'a Kernel,
    busybox: Option<Busybox>,
    rootfs: Option<Rootfs>,
}

impl Parts<'_> {
    /// Digest of what the initramfs is made of, but for the agent.
    fn base(&self) -> String {
        let busybox = self.busybox.as_ref().map_or(&[][..], |busybox| &busybox.bytes);
        digest_of(&[self.kernel.digest().as_bytes(), busybox])
    }
}

/// Digest of several parts, in hexadecimal.
fn digest_of(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    hex(&digest.finalize()[..16])
}
