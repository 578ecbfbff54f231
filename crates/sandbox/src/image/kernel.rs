//! The distribution's kernel, and the few modules that a guest needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::ImageError;
use super::package::{Manager, run};
use super::{create_folder, hex, publish, write};

/// Depends on the current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const PREFIX: &str = "linux-image-";
/// In the order in which they are to be loaded. `nd_pmem` is not among them: it would claim the
/// region, and `/dev/mem` would refuse it.
pub(super) const MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_console"];
const DESCRIPTION: &str = "kernel.json";
const FILE: &str = "vmlinuz";

/// An unpacked kernel.
pub(super) struct Kernel {
    folder: PathBuf,
    description: Description,
}

#[derive(Serialize, Deserialize)]
struct Description {
    /// The package's file name: name, version, architecture.
    package: String,
    /// Over the kernel and the modules.
    digest: String,
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

    pub(super) fn module(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension("ko")
    }

    pub(super) fn open(folder: &Path) -> Option<Self> {
        let description = serde_json::from_slice(&fs::read(folder.join(DESCRIPTION)).ok()?).ok()?;
        let kernel = Self { folder: folder.to_path_buf(), description };
        let whole = kernel.file().is_file() && MODULES.iter().all(|name| kernel.module(name).is_file());
        whole.then_some(kernel)
    }
}

/// The newest kernel in `folder`; downloads one when there is none, or when `refresh` asks to.
pub(super) fn find_or_fetch(folder: &Path, packages: &Manager<'_>, refresh: bool) -> Result<Kernel, ImageError> {
    create_folder(folder)?;
    if !refresh && let Some(kernel) = newest(folder)? {
        return Ok(kernel);
    }
    fetch(folder, packages)
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

fn fetch(folder: &Path, packages: &Manager<'_>) -> Result<Kernel, ImageError> {
    let failed = |source| ImageError::io("unpack the kernel in", folder, source);
    let package = packages.dependency(META_PACKAGE, PREFIX)?;
    let temporary = |prefix| tempfile::Builder::new().prefix(prefix).tempdir_in(folder).map_err(failed);
    let download = temporary(".download-")?;
    let (name, unpacked) = packages.unpack(&package, download.path())?;
    let building = temporary(".building-")?;
    let release = package.strip_prefix(PREFIX).unwrap_or(&package);
    let digest = pick(&unpacked, release, &package, building.path())?;
    let description = Description { package: name.clone(), digest };
    let text = serde_json::to_vec_pretty(&description).map_err(|error| failed(error.into()))?;
    write(&building.path().join(DESCRIPTION), &text)?;
    let folder = folder.join(name);
    publish(building, &folder)?;
    Kernel::open(&folder).ok_or(ImageError::Incomplete { package, file: FILE.into() })
}

/// Copies the kernel and the modules out of the unpacked package. Returns a digest of them all.
fn pick(unpacked: &Path, release: &str, package: &str, to: &Path) -> Result<String, ImageError> {
    let missing = |file: &str| ImageError::Incomplete { package: package.to_owned(), file: file.to_owned() };
    let mut digest = Sha256::new();
    let mut take = |from: &Path, name: &str| {
        let bytes = fs::read(from).map_err(|_| missing(name))?;
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(&bytes);
        write(&to.join(name), &bytes)
    };
    take(&unpacked.join("boot").join(format!("vmlinuz-{release}")), FILE)?;
    for name in MODULES {
        let file = format!("{name}.ko");
        let roots =
            ["lib/modules", "usr/lib/modules"].map(|root| unpacked.join(root).join(release).join("kernel/drivers"));
        let parts = ["virtio", "char"];
        let mut places = roots.iter().flat_map(|root| parts.iter().map(|part| root.join(part).join(&file)));
        let found = places.find(|path| path.is_file()).ok_or_else(|| missing(&file))?;
        strip(&found);
        take(&found, &file)?;
    }
    Ok(hex(&digest.finalize()))
}

/// Removes debugging information; without `strip` the image is larger, no more.
fn strip(module: &Path) {
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg(module);
    if let Err(error) = run(strip, "a kernel module") {
        tracing::debug!(module = %module.display(), %error, "not stripped");
    }
}
