//! Why there is no image.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No package manager.
    #[error(
        "{program} was not found: images are made from Debian's kernel package; run this on Debian or a derivative, or install apt"
    )]
    PackageManagerMissing {
        /// The program.
        program: String,
    },
    /// A program of another package.
    #[error("{program} was not found; install it with: apt-get install {package}")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// A file that is no kernel.
    #[error("{} is no Linux kernel for x86 (bzImage, as /boot/vmlinuz-* are)", path.display())]
    NotAKernel {
        /// Which file.
        path: PathBuf,
    },
    /// Modules without their kernel.
    #[error("modules were given without the kernel that they belong to; give both")]
    ModulesAlone,
    /// A guest of this image was to have a network.
    #[error(
        "the image has no driver for a network card: its kernel ({kernel}) came without virtio_net, or an earlier release built it; build it anew (`throughline image build NAME`), or go without a network"
    )]
    NoNetwork {
        /// The image's kernel.
        kernel: String,
    },
    /// A kernel without its modules.
    #[error("the kernel is {release}, and {} has no modules for it; say where they are", folder.display())]
    NoModules {
        /// The kernel's release.
        release: String,
        /// Where they were looked for.
        folder: PathBuf,
    },
    /// A module that a guest needs.
    #[error(
        "{} has no module {module} (nor is it in modules.builtin), which guests need; take another kernel than {release}, or all of its modules",
        folder.display()
    )]
    ModuleMissing {
        /// Its name.
        module: String,
        /// The kernel's release.
        release: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A module of another kernel.
    #[error("the kernel is {release}, and {} was made for {made_for}; give modules of the same release", path.display())]
    ModuleVersion {
        /// The module.
        path: PathBuf,
        /// The release that it was made for.
        made_for: String,
        /// The kernel's release.
        release: String,
    },
    /// What was given as a userland is none.
    #[error("{} cannot become a root file system: {reason}", path.display())]
    NoUserland {
        /// The folder or archive.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Not a name.
    #[error(
        "{0:?} is no name for an image: use 1 to 63 lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit, and not 32 hexadecimal digits, which are an image's id"
    )]
    Name(String),
    /// No such image.
    #[error("there is no image {name:?}{}; build it, or choose another", .there.suffix())]
    Absent {
        /// The name or id.
        name: String,
        /// The images that there are.
        there: Names,
    },
    /// An image of which something is missing.
    #[error("the image {name:?} is not whole any more ({}); build it again, or remove it", folder.display())]
    Damaged {
        /// The name or id.
        name: String,
        /// Where it lies.
        folder: PathBuf,
    },
    /// An image that must stay.
    #[error("the image {name} is needed by {user}; remove that first")]
    Needed {
        /// Its name or id.
        name: String,
        /// By whom.
        user: String,
    },
    /// The package's servers cannot be reached.
    #[error("{package} could not be downloaded: {reason}; check the network, then try again")]
    Offline {
        /// The package.
        package: String,
        /// The package manager's words.
        reason: String,
    },
    /// The package manager does not know the package.
    #[error("the package manager does not know {package}; run `apt-get update` as root, then try again")]
    UnknownPackage {
        /// The package.
        package: String,
    },
    /// A program failed in another way.
    #[error("{program} failed on {package}: {reason}")]
    Failed {
        /// The program.
        program: String,
        /// The package.
        package: String,
        /// Its words.
        reason: String,
    },
    /// A program took too long.
    #[error("{program} did not finish within {deadline:?} on {package}; check the network, then try again")]
    Deadline {
        /// The program.
        program: String,
        /// The package.
        package: String,
        /// How long it had.
        deadline: Duration,
    },
    /// A package lacks what images are made from.
    #[error("{package} has no {file}; this version of the package is not supported")]
    Incomplete {
        /// The package.
        package: String,
        /// What is missing.
        file: String,
    },
    /// The disk is full.
    #[error(
        "no space to {doing} {path}; an image needs some 200 MiB while it is built, and one of an archive twice its contents besides: make room there or choose another folder"
    )]
    NoSpace {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Names of images, for an error's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Names {
    fn suffix(&self) -> String {
        if self.0.is_empty() { String::new() } else { format!(" (there are: {})", self.0.join(", ")) }
    }
}

impl ImageError {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing, path },
            _ => Self::Io { doing, path, source },
        }
    }
}
