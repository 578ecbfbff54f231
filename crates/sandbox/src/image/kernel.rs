//! The kernel, and the few modules that a guest needs: of the distribution, or of the user's choice.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::ImageError;
use super::module::{Module, Modules};
use super::package::{Manager, run};
use super::progress::Reporter;
use super::scratch::Scratch;
use super::{create_folder, hex, publish, write};

/// Depends on the current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const PREFIX: &str = "linux-image-";
/// What every guest needs. `nd_pmem` is not among it: it would claim the region, and `/dev/mem` would refuse it.
const EVERY_GUEST: [&str; 2] = ["virtio_pci", "virtio_console"];
/// What a userland needs besides: its disk, and its two layers.
const USERLAND: [&str; 4] = ["virtio_blk", UNNAMED, "erofs", "overlay"];
/// Needed by another one, which does not name it; taken where there is one.
const UNNAMED: &str = "crc32c_generic";
/// What a network needs; taken where there is one. Loaded only in guests that are given a network.
const NETWORK: &str = "virtio_net";
const DESCRIPTION: &str = "kernel.json";
const FILE: &str = "vmlinuz";

/// A kernel's file, from where on its headers tell what it is, and how much of it that takes.
const MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
const VERSION_POINTER: usize = 0x20e;
const VERSION_BASE: usize = 0x200;
const HEADERS: u64 = 64 << 10;

/// An unpacked kernel.
pub(super) struct Kernel {
    folder: PathBuf,
    description: Description,
}

#[derive(Serialize, Deserialize)]
struct Description {
    /// The package's file name (name, version, architecture), or the kernel's release.
    package: String,
    /// Over the kernel and the modules.
    digest: String,
    /// In the order in which they are to be loaded, by every guest.
    modules: Vec<String>,
    /// After those, by guests with a userland.
    userland: Vec<String>,
    /// After those of every guest, by guests with a network.
    network: Vec<String>,
    /// The kernel has a network without modules.
    #[serde(default)]
    has_network: bool,
}

impl Kernel {
    pub(super) fn name(&self) -> &str {
        &self.description.package
    }

    pub(super) fn digest(&self) -> &str {
        &self.description.digest
    }

    pub(super) fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// The modules' names and files, in their order.
    pub(super) fn modules(&self, userland: bool) -> impl Iterator<Item = (&str, PathBuf)> {
        let Description { modules, userland: more, .. } = &self.description;
        let more = more.iter().filter(move |_| userland);
        modules.iter().chain(more).map(|name| (name.as_str(), module_file(&self.folder, name)))
    }

    /// Those of a network, besides.
    pub(super) fn network_modules(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.description.network.iter().map(|name| (name.as_str(), module_file(&self.folder, name)))
    }

    /// Whether it drives a machine's network card.
    pub(super) fn has_network(&self) -> bool {
        self.description.has_network || !self.description.network.is_empty()
    }

    pub(super) fn open(folder: &Path) -> Option<Self> {
        let description = serde_json::from_slice(&fs::read(folder.join(DESCRIPTION)).ok()?).ok()?;
        let kernel = Self { folder: folder.to_path_buf(), description };
        let whole = kernel.file().is_file()
            && kernel.modules(true).chain(kernel.network_modules()).all(|(_, file)| file.is_file());
        whole.then_some(kernel)
    }
}

fn module_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.ko"))
}

/// The newest kernel in `folder`; downloads one when there is none, or when `refresh` asks to.
pub(super) fn find_or_fetch(
    folder: &Path,
    packages: &Manager<'_>,
    refresh: bool,
    reporter: &Reporter,
) -> Result<Kernel, ImageError> {
    create_folder(folder)?;
    if !refresh && let Some(kernel) = newest(folder)? {
        return Ok(kernel);
    }
    fetch(folder, packages, reporter)
}

fn newest(folder: &Path) -> Result<Option<Kernel>, ImageError> {
    let entries = fs::read_dir(folder).map_err(|source| ImageError::io("read", folder, source))?;
    let kernels = entries.filter_map(Result::ok).filter_map(|entry| {
        // A folder's time is that of its last change, which is its unpacking.
        let time = entry.metadata().and_then(|data| data.modified()).ok()?;
        Some((time, Kernel::open(&entry.path())?))
    });
    Ok(kernels.max_by_key(|(time, _)| *time).map(|(_, kernel)| kernel))
}

fn fetch(folder: &Path, packages: &Manager<'_>, reporter: &Reporter) -> Result<Kernel, ImageError> {
    let failed = |source| ImageError::io("unpack the kernel in", folder, source);
    let package = packages.dependency(META_PACKAGE, PREFIX)?;
    let download = Scratch::new(folder).map_err(failed)?;
    let (name, unpacked) = packages.unpack(&package, download.path(), reporter)?;
    let building = Scratch::new(folder).map_err(failed)?;
    let incomplete = |file: String| ImageError::Incomplete { package: package.clone(), file };
    let release = package.strip_prefix(PREFIX).unwrap_or(&package);
    let file = unpacked.join("boot").join(format!("vmlinuz-{release}"));
    if !file.is_file() {
        return Err(incomplete(FILE.into()));
    }
    let modules = ["lib/modules", "usr/lib/modules"].map(|root| unpacked.join(root).join(release));
    let modules = modules.into_iter().find(|folder| folder.is_dir()).ok_or_else(|| incomplete("modules".into()))?;
    let taken = take(&Parts { kernel: &file, release, modules: &modules, strip: true }, name.clone(), building.path());
    taken.map_err(|error| match error {
        ImageError::ModuleMissing { module, .. } => incomplete(format!("{module}.ko")),
        error => error,
    })?;
    let folder = folder.join(name);
    publish(building.finish(), &folder)?;
    Kernel::open(&folder).ok_or_else(|| incomplete(FILE.into()))
}

/// A kernel of the user's choice, brought together in `to`. Without a folder of modules, those that the host has.
pub(super) fn choose(kernel: &Path, modules: Option<&Path>, to: &Path) -> Result<Kernel, ImageError> {
    let release = release(kernel)?;
    let installed = Path::new("/lib/modules");
    // Modules of several kernels lie side by side, each in a folder named by its release.
    let folder = modules.unwrap_or(installed);
    let own = folder.join(&release);
    let folder = if own.is_dir() { own } else { folder.to_path_buf() };
    if folder == installed || !folder.is_dir() {
        return Err(ImageError::NoModules { release, folder });
    }
    let name = format!("{release} ({})", kernel.file_name().unwrap_or_default().display());
    take(&Parts { kernel, release: &release, modules: &folder, strip: false }, name, to)?;
    Kernel::open(to).ok_or(ImageError::Incomplete { package: release, file: FILE.into() })
}

/// The release of a kernel in a file, such as `6.1.0-56-cloud-amd64`.
fn release(path: &Path) -> Result<String, ImageError> {
    let failed = |source| ImageError::io("read the kernel", path, source);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(HEADERS).read_to_end(&mut bytes)).map_err(failed)?;
    let found = || {
        let (at, magic) = MAGIC;
        bytes.get(at..)?.starts_with(magic).then_some(())?;
        let pointer = u16::from_le_bytes(bytes.get(VERSION_POINTER..)?.get(..2)?.try_into().ok()?);
        let text =
            bytes.get(VERSION_BASE + usize::from(pointer)..)?.split(|byte| *byte == 0 || *byte == b' ').next()?;
        String::from_utf8(text.to_vec()).ok().filter(|text| !text.is_empty())
    };
    found().ok_or_else(|| ImageError::NotAKernel { path: path.to_path_buf() })
}

/// Where a kernel comes from.
struct Parts<'a> {
    kernel: &'a Path,
    release: &'a str,
    modules: &'a Path,
    /// Whether debugging information is removed from the modules, and signatures with it.
    strip: bool,
}

/// Copies the kernel and its modules to a folder, and describes them there.
fn take(parts: &Parts<'_>, name: String, to: &Path) -> Result<(), ImageError> {
    let failed = |source: io::Error| ImageError::io("take the kernel from", parts.kernel, source);
    let mut digest = Sha256::new();
    let mut add = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    let bytes = fs::read(parts.kernel).map_err(failed)?;
    add(&bytes);
    write(&to.join(FILE), &bytes)?;

    let all = Modules::scan(parts.modules, parts.release)?;
    let mut modules: Vec<Module> = Vec::new();
    for name in EVERY_GUEST {
        all.add(name, &mut modules)?;
    }
    let every_guest = modules.len();
    for name in USERLAND {
        if name != UNNAMED || all.has(name) {
            all.add(name, &mut modules)?;
        }
    }
    let with_userland = modules.len();
    let has_network = all.has(NETWORK);
    if has_network {
        all.add(NETWORK, &mut modules)?;
    }
    for module in &modules {
        let file = module_file(to, &module.name);
        write(&file, &module.bytes)?;
        if parts.strip {
            strip(&file);
        }
        add(&fs::read(&file).map_err(failed)?);
    }
    let mut modules: Vec<String> = modules.into_iter().map(|module| module.name).collect();
    let network = modules.split_off(with_userland);
    let userland = modules.split_off(every_guest);
    let digest = hex(&digest.finalize());
    let description = Description { package: name, digest, modules, userland, network, has_network };
    let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
    write(&to.join(DESCRIPTION), &text)
}

/// Removes debugging information; without `strip` the image is larger, no more.
fn strip(module: &Path) {
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg(module);
    if let Err(error) = run(strip, "a kernel module") {
        tracing::debug!(module = %module.display(), %error, "not stripped");
    }
}
