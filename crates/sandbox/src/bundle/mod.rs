//! A snapshot on disk: complete, or not there.
//!
//! | File | Content |
//! |---|---|
//! | `manifest.json` | what the rest is, with lengths and checksums; written last |
//! | `state` | the machine's device state |
//! | `ram` | the guest's RAM, sparse; bundles of one lineage may have one file of it in common |
//! | `ram.delta` | pages that lie over it, where there are any |
//! | `region` | the connection: what was unread, and both sides' words |
//! | `sidecar` | the host's own copy of its words |
//!
//! The one thing that is not in it is an image's root file system, where there is one: nobody writes it, and it may be
//! large. The manifest says which it is.
//!
//! Bundles that have their RAM in common have it under a name each: any of them may be removed, moved or copied. Nobody
//! writes it.
//!
//! A bundle is written into a hidden folder beside its final place, and renamed. Nothing in it depends
//! on where it lies, or on the sandbox that it was taken of.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

mod checksum;
mod manifest;

pub use manifest::{Carried, FileEntry, Manifest, VERSION};

use crate::engine::Machine;
use crate::steps::step;

/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Name of the device state.
pub const STATE: &str = "state";
/// Name of the RAM image.
pub const RAM: &str = "ram";
/// Name of the pages that lie over the RAM image.
pub const DELTA: &str = "ram.delta";
/// Name of the region's copy.
pub const REGION: &str = "region";
/// Name of the sidecar's copy.
pub const SIDECAR: &str = "sidecar";

/// How the folder of a draft begins: it is no bundle, whatever is in it already.
const DRAFT: &str = ".throughline-partial-";

const FILES: [&str; 4] = [STATE, RAM, REGION, SIDECAR];
/// A manifest is some kilobytes; more is not read.
const MANIFEST_MOST: u64 = 1 << 20;

/// Why a bundle could not be written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// There is none.
    #[error("{} is no snapshot, for want of a {MANIFEST}, or because it was not completed", .0.display())]
    Absent(PathBuf),
    /// Something is there already.
    #[error("{} exists already; remove it, or choose another name", .0.display())]
    Exists(PathBuf),
    /// Another version of the form.
    #[error("the snapshot has form {0}, and this program reads form {VERSION}; use the release that wrote it")]
    Version(u32),
    /// A file is not what the manifest says.
    #[error("the snapshot's {file} is damaged: {reason}; use another copy of the snapshot")]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It was taken of another machine than the one that runs here.
    #[error("the snapshot cannot run here: {}", .0.join("; "))]
    OtherMachine(Vec<String>),
    /// No space to write it.
    #[error("no space for the snapshot at {}; make room there, or choose another folder", .0.display())]
    NoSpace(PathBuf),
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BundleError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(path),
            _ => Self::Io { doing, path, source },
        }
    }
}

/// A complete snapshot on disk.
#[derive(Clone, Debug)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens a bundle: its manifest is checked, and that every file is there with its length.
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let name = folder.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
            return Err(BundleError::Absent(folder.to_path_buf()));
        }
        let path = folder.join(MANIFEST);
        let length = match fs::metadata(&path) {
            Ok(data) => data.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BundleError::Absent(folder.to_path_buf()));
            }
            Err(error) => return Err(BundleError::io("read", &path)(error)),
        };
        if length > MANIFEST_MOST {
            let reason = format!("it has {length} bytes, and no manifest has more than {MANIFEST_MOST}");
            return Err(BundleError::Damaged { file: MANIFEST.to_owned(), reason });
        }
        let manifest = Manifest::decode(&fs::read(&path).map_err(BundleError::io("read", &path))?)?;
        let bundle = Self { folder: folder.to_path_buf(), manifest };
        for file in FILES.into_iter().chain(bundle.has_delta().then_some(DELTA)) {
            bundle.check_length(file)?;
        }
        Ok(bundle)
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether pages lie over its RAM image.
    pub fn has_delta(&self) -> bool {
        self.manifest.files.contains_key(DELTA)
    }

    /// Opens one of its files for reading.
    pub fn file(&self, name: &str) -> Result<File, BundleError> {
        let path = self.folder.join(name);
        File::open(&path).map_err(BundleError::io("open", &path))
    }

    /// Compares one file's content with its checksum. Blocks, for about 0.3 ms per MiB in use.
    pub fn check(&self, name: &str) -> Result<(), BundleError> {
        let entry = self.entry(name)?;
        let path = self.folder.join(name);
        let found = checksum::checksum(&self.file(name)?).map_err(BundleError::io("read", &path))?;
        if found == entry.checksum {
            return Ok(());
        }
        let reason = format!("its checksum is {found:016x}, and was {:016x}", entry.checksum);
        Err(BundleError::Damaged { file: name.to_owned(), reason })
    }

    /// Refuses, with every difference, a machine that the state would not run on.
    pub fn check_machine(&self, here: &Machine) -> Result<(), BundleError> {
        let saved = &self.manifest.machine;
        let pairs = [
            ("engine", saved.engine.clone(), here.engine.clone()),
            ("engine's version", saved.version.clone(), here.version.clone()),
            ("machine type", saved.machine_type.clone(), here.machine_type.clone()),
            ("processor model", saved.cpu_model.clone(), here.cpu_model.clone()),
            ("accelerator", format!("{:?}", saved.accelerator), format!("{:?}", here.accelerator)),
        ];
        let differences: Vec<String> = pairs
            .into_iter()
            .filter(|(_, saved, here)| saved != here)
            .map(|(what, saved, here)| format!("its {what} is {saved}, and here it is {here}"))
            .collect();
        if differences.is_empty() { Ok(()) } else { Err(BundleError::OtherMachine(differences)) }
    }

    /// Removes the bundle in this folder, with all that lies there; also one that is damaged, or of another form. The
    /// manifest goes last: whoever dies meanwhile leaves a bundle that is damaged, which can be removed.
    ///
    /// # Errors
    /// There is no bundle, or something of it cannot be removed.
    pub fn remove(folder: &Path) -> Result<(), BundleError> {
        let failed = || BundleError::io("remove", folder);
        match Self::open(folder) {
            Ok(_) | Err(BundleError::Damaged { .. } | BundleError::Version(_)) => {}
            // What is left where somebody died after the manifest: nothing.
            Err(BundleError::Absent(_)) if fs::remove_dir(folder).is_ok() => return Ok(()),
            Err(error) => return Err(error),
        }
        if folder.is_symlink() {
            return Err(failed()(io::ErrorKind::NotADirectory.into()));
        }
        for entry in fs::read_dir(folder).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let is_folder = entry.file_type().map_err(failed())?.is_dir();
            if entry.file_name() != MANIFEST {
                let remove = if is_folder { fs::remove_dir_all } else { fs::remove_file };
                remove(entry.path()).map_err(failed())?;
                step("unbundled");
            }
        }
        fs::remove_dir_all(folder).map_err(failed())
    }

    fn entry(&self, name: &str) -> Result<FileEntry, BundleError> {
        let missing = || BundleError::Damaged { file: MANIFEST.to_owned(), reason: format!("it does not list {name}") };
        self.manifest.files.get(name).copied().ok_or_else(missing)
    }

    fn check_length(&self, name: &str) -> Result<(), BundleError> {
        let entry = self.entry(name)?;
        let path = self.folder.join(name);
        let damaged = |reason| Err(BundleError::Damaged { file: name.to_owned(), reason });
        match fs::metadata(&path) {
            Ok(data) if data.len() == entry.bytes => Ok(()),
            Ok(data) => damaged(format!("it has {} bytes, and had {}", data.len(), entry.bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => damaged("it is missing".to_owned()),
            Err(error) => Err(BundleError::io("read", &path)(error)),
        }
    }
}

/// A bundle in the making: a hidden folder, which vanishes unless it is completed.
#[derive(Debug)]
pub struct Draft {
    folder: Option<PathBuf>,
    place: PathBuf,
}

impl Draft {
    /// Begins a bundle that is to lie at `place`.
    pub fn new(place: &Path) -> Result<Self, BundleError> {
        Self::announced(place, |_| Ok(()))
    }

    /// The same, for which `announce` remembers its folder before there is one: whoever dies then leaves nothing that
    /// nobody knows of.
    pub(crate) fn announced<E: From<BundleError>>(
        place: &Path,
        announce: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        if place.symlink_metadata().is_ok() {
            return Err(BundleError::Exists(place.to_path_buf()).into());
        }
        let parent = parent(place);
        fs::create_dir_all(parent).map_err(BundleError::io("create", parent))?;
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| BundleError::io("choose a name in", parent)(error.into()))?;
        let folder = parent.join(format!("{DRAFT}{:016x}", u64::from_ne_bytes(random)));
        announce(&folder)?;
        step("draft");
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        made.map_err(BundleError::io("create a folder in", parent))?;
        step("drafted");
        Ok(Self { folder: Some(folder), place: place.to_path_buf() })
    }

    /// Removes a draft that a dead process left at this path. Nothing else is: a draft has a name of its own kind.
    pub(crate) fn remove_left(folder: &Path) {
        let is_draft = folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with(DRAFT));
        if is_draft
            && let Err(error) = fs::remove_dir_all(folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "a dead process's draft was left behind");
        }
    }

    /// Path of one of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(PathBuf::new, |folder| folder.join(name))
    }

    /// Creates one of its files.
    pub fn create(&self, name: &str) -> Result<File, BundleError> {
        let path = self.path(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        file.map_err(BundleError::io("create", &path))
    }

    /// Fills in lengths and checksums, except of what the manifest lists already, which lies in another bundle too; writes
    /// the manifest last, and gives the bundle its name. Blocks.
    pub fn complete(mut self, mut manifest: Manifest) -> Result<Bundle, BundleError> {
        let delta = self.path(DELTA).exists().then_some(DELTA);
        for name in manifest.files.keys() {
            // It may never have been written to the disk.
            let path = self.path(name);
            File::open(&path).and_then(|file| file.sync_all()).map_err(BundleError::io("write", &path))?;
        }
        for name in
            FILES.into_iter().chain(delta).filter(|name| !manifest.files.contains_key(*name)).collect::<Vec<_>>()
        {
            let path = self.path(name);
            let file = File::options().read(true).write(true).open(&path).map_err(BundleError::io("open", &path))?;
            let checksum = checksum::checksum_and_trim(&file).map_err(BundleError::io("read", &path))?;
            file.sync_all().map_err(BundleError::io("write", &path))?;
            let bytes = file.metadata().map_err(BundleError::io("read", &path))?.len();
            manifest.files.insert(name.to_owned(), FileEntry { bytes, checksum });
            step("checked");
        }
        let path = self.path(MANIFEST);
        let encoded = manifest.encode().map_err(|error| BundleError::io("encode", &path)(error.into()))?;
        let file = self.create(MANIFEST)?;
        io::Write::write_all(&mut &file, &encoded).map_err(BundleError::io("write", &path))?;
        step("manifest");
        file.sync_all().map_err(BundleError::io("write", &path))?;
        self.publish()?;
        Ok(Bundle { folder: self.place.clone(), manifest })
    }

    fn publish(&mut self) -> Result<(), BundleError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        sync_folder(folder)?;
        step("publish");
        let renamed = rustix::fs::renameat_with(
            rustix::fs::CWD,
            folder,
            rustix::fs::CWD,
            &self.place,
            rustix::fs::RenameFlags::NOREPLACE,
        );
        match renamed {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => {
                return Err(BundleError::Exists(self.place.clone()));
            }
            Err(error) => return Err(BundleError::io("complete", &self.place)(error.into())),
        }
        step("published");
        // The folder has another name now: nothing is left to remove.
        self.folder = None;
        // It is there, whatever becomes of this.
        if let Err(error) = sync_folder(parent(&self.place)) {
            tracing::warn!(%error, "a crash of the host may take this snapshot with it");
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(folder) = &self.folder {
            Self::remove_left(folder);
        }
    }
}

fn parent(place: &Path) -> &Path {
    place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder's entries survive a crash of the host.
fn sync_folder(folder: &Path) -> Result<(), BundleError> {
    let open = File::open(folder).map_err(BundleError::io("open", folder))?;
    open.sync_all().map_err(BundleError::io("write", folder))
}
