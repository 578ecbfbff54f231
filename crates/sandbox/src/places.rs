//! Where a sandbox's files lie while it runs, and who owns its name.
//!
//! A sandbox exists from the moment that its `sandbox.json` does. Before that its name is its creator's, by a [`Claim`];
//! what a creator left that died is removed by whoever comes next.

mod waiting;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::claim::{Claim, Try};
use crate::engine::end_left;
use crate::steps::step;

/// The file that makes a sandbox of a folder.
pub(crate) const RECORD: &str = "sandbox.json";
/// In the folder of its memory: where its sockets and logs lie.
const RUNTIME: &str = "runtime";
/// In the folder of its memory: a timeline in the making.
const NEXT: &str = "next";
/// Longest name of a sandbox, in bytes.
const LONGEST: usize = 63;

/// Why a name or a folder could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// Not a name.
    #[error(
        "{0:?} is no name for a sandbox: use 1 to {LONGEST} lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
    )]
    Name(String),
    /// Somebody has it.
    #[error("a sandbox named {0:?} exists already; choose another name, or remove it")]
    Taken(String),
    /// Somebody is at it.
    #[error(
        "a sandbox named {name:?} is just being created or removed{}; wait for it, or choose another name",
        .process.map_or_else(String::new, |pid| format!(" by process {pid}"))
    )]
    Busy {
        /// The name.
        name: String,
        /// By whom, if that is known.
        process: Option<u32>,
    },
    /// Nobody has it.
    #[error("there is no sandbox named {0:?}")]
    Missing(String),
    /// The system refused.
    #[error("cannot create or remove {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How often the removal of a folder is begun anew in which somebody makes a file meanwhile.
const REMOVALS: usize = 100;

/// The folders of one sandbox. Dropping this removes them.
#[derive(Debug)]
pub(crate) struct Places {
    name: String,
    /// On tmpfs: region, sidecar, RAM.
    memory: PathBuf,
    /// Sockets, logs, `sandbox.json`.
    runtime: PathBuf,
    /// Which folder of memory is meant: under this name there may be another sandbox's later.
    own: Option<(u64, u64)>,
    /// Whether the folders stay.
    kept: AtomicBool,
    /// While it is being created; of both names, if it was given another one.
    claims: Vec<Claim>,
}

impl Places {
    /// Claims a name. Of two at once, one gets it.
    pub(crate) fn claim(name: &str) -> Result<Self, PlaceError> {
        check_name(name)?;
        Self::make(name)
    }

    fn make(name: &str) -> Result<Self, PlaceError> {
        let mut this = Self::of(name)?;
        (this.claims, this.kept, this.own) = (vec![this.reserve()?], false.into(), None);
        this.create().map_err(|source| PlaceError::Io { path: this.memory.clone(), source })?;
        this.own = identity(&this.memory);
        Ok(this)
    }

    /// The signed claim of a name that no sandbox has, with nothing under it.
    fn reserve(&self) -> Result<Claim, PlaceError> {
        let mut claim = self.claimed(Claim::take)?;
        if self.exists() {
            return Err(PlaceError::Taken(self.name.clone()));
        }
        claim.sign().map_err(|source| PlaceError::Io { path: Claim::path(self.all(), &self.name), source })?;
        self.wipe()?;
        Ok(claim)
    }

    /// The folders of a sandbox that exists, or is being created. They stay unless [`end`](Self::end) says otherwise.
    pub(crate) fn open(name: &str) -> Result<Self, PlaceError> {
        check_name(name)?;
        let this = Self::of(name)?;
        let claim = Claim::path(this.all(), name);
        let found = this.runtime.is_dir() || this.memory.is_dir() || claim.exists();
        if found { Ok(this) } else { Err(PlaceError::Missing(name.to_owned())) }
    }

    fn of(name: &str) -> Result<Self, PlaceError> {
        let (memory, runtime) = Self::folders()?;
        let memory = memory.join(name);
        // Whoever created it may have had another idea of where such folders are.
        let runtime = fs::read_link(memory.join(RUNTIME)).unwrap_or_else(|_| runtime.join(name));
        let own = identity(&memory);
        Ok(Self { name: name.to_owned(), memory, runtime, own, kept: true.into(), claims: Vec::new() })
    }

    fn claimed(&self, take: impl FnOnce(&Path, &str) -> io::Result<Try>) -> Result<Claim, PlaceError> {
        let all = self.all();
        match take(all, &self.name).map_err(|source| PlaceError::Io { path: all.join(&self.name), source })? {
            Try::Got(claim) => Ok(claim),
            Try::Held(process) => Err(PlaceError::Busy { name: self.name.clone(), process }),
        }
    }

    /// The folder of all sandboxes' memory.
    fn all(&self) -> &Path {
        self.memory.parent().unwrap_or(Path::new("/"))
    }

    /// Whether somebody has removed this sandbox, and there is another one of its name.
    pub(crate) fn is_replaced(&self) -> bool {
        self.own.is_some() && identity(&self.memory).is_some_and(|found| self.own != Some(found))
    }

    fn exists(&self) -> bool {
        self.runtime.join(RECORD).symlink_metadata().is_ok()
    }

    fn create(&self) -> io::Result<()> {
        create(&self.memory)?;
        std::os::unix::fs::symlink(&self.runtime, self.memory.join(RUNTIME))?;
        create(&self.runtime)?;
        create(&self.current())
    }

    /// Removes what a creator left that died, its machine too. Whether there was any: `false` says that somebody is
    /// creating the sandbox, or has created it meanwhile.
    pub(crate) fn reclaim(&self) -> Result<bool, PlaceError> {
        let _claim = match self.claimed(Claim::take) {
            Err(PlaceError::Busy { .. }) => return Ok(false),
            claim => claim?,
        };
        if self.exists() {
            return Ok(false);
        }
        tracing::info!(name = self.name, "what created this sandbox died before it was ready: removed");
        self.wipe().map(|()| true)
    }

    /// Ends a machine that nobody knows of, and removes the folders. Only under the claim.
    fn wipe(&self) -> Result<(), PlaceError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| PlaceError::Io { path, source }
        };
        end_left(&self.runtime).map_err(failed(&self.runtime))?;
        for folder in [&self.runtime, &self.memory] {
            step("wipe");
            // Who saw the end of its machine may be noting it there just now.
            let again = |removed: &io::Result<()>| matches!(removed, Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty);
            let mut removals = (0..REMOVALS).map(|_| fs::remove_dir_all(folder));
            match removals.find(|removed| !again(removed)).unwrap_or_else(|| fs::remove_dir_all(folder)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(folder)(error)),
                _ => {}
            }
        }
        step("wiped");
        Ok(())
    }

    /// The sandbox is ready, and on paper: it needs no claim any more.
    pub(crate) fn settle(&mut self) {
        self.claims.clear();
    }

    /// The folders of all sandboxes' memory, and of their sockets and logs.
    pub(crate) fn folders() -> Result<(PathBuf, PathBuf), PlaceError> {
        let uid = rustix::process::getuid().as_raw();
        Ok((private(Path::new("/dev/shm"), &format!("throughline-{uid}"))?, runtime_folder(uid)?))
    }

    /// Leaves the folders when this is dropped.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Removes the folders when this is dropped.
    pub(crate) fn end(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }

    /// Gives region, sidecar, RAM and checkpoints back. The name stays taken.
    pub(crate) fn free_memory(&self) -> Result<(), PlaceError> {
        self.remove_beside(|_| true)
    }

    /// Removes the folders of the memory that are `unwanted`.
    pub(crate) fn remove_beside(&self, unwanted: impl Fn(&str) -> bool) -> Result<(), PlaceError> {
        if self.is_replaced() {
            return Ok(());
        }
        let failed = |source| PlaceError::Io { path: self.memory.clone(), source };
        let entries = match fs::read_dir(&self.memory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            // A link, such as the one to the runtime folder, is no folder.
            let is_folder = entry.file_type().map_err(failed)?.is_dir();
            if is_folder && entry.file_name().to_str().is_some_and(&unwanted) {
                match fs::remove_dir_all(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                    _ => step("removed"),
                }
            }
        }
        Ok(())
    }

    /// A place beside `current`.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.memory.join(name)
    }

    /// An empty folder for a timeline that may become the current one.
    pub(crate) fn next(&self) -> Result<PathBuf, PlaceError> {
        let next = self.beside(NEXT);
        let made = match fs::remove_dir_all(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => create(&next),
        };
        made.map(|()| next.clone()).map_err(|source| PlaceError::Io { path: next, source })
    }

    /// Makes the next timeline the current one, in one step, and removes the other.
    pub(crate) fn go_over(&self) -> Result<(), PlaceError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let (next, current) = (self.beside(NEXT), self.current());
        step("go over");
        let gone_over = renameat_with(CWD, &next, CWD, &current, RenameFlags::EXCHANGE);
        gone_over.map_err(|error| PlaceError::Io { path: current, source: error.into() })?;
        step("gone over");
        self.remove_beside(|name| name == NEXT)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Removes what a sandbox left whose machine has ended, unless somebody else has.
    pub(crate) fn clear(&self) -> Result<(), PlaceError> {
        let _claim = self.claimed(Claim::wait)?;
        if self.is_replaced() { Ok(()) } else { self.wipe() }
    }

    /// The names of all sandboxes, of those that are being created, and of what dead creators left. Sorted.
    pub(crate) fn names() -> Result<Vec<String>, PlaceError> {
        Self::entries(is_name)
    }

    fn entries(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, PlaceError> {
        let (memory, runtime) = Self::folders()?;
        let mut names = Vec::new();
        for folder in [memory, runtime] {
            let entries = fs::read_dir(&folder).map_err(|source| PlaceError::Io { path: folder, source })?;
            names.extend(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()));
        }
        // Of some there is no more than a claim.
        let names = names.iter().map(|name| name.strip_prefix('.').unwrap_or(name).to_owned());
        let mut names: Vec<_> = names.filter(|name| wanted(name)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Region, sidecar and RAM of the running timeline.
    pub(crate) fn current(&self) -> PathBuf {
        self.memory.join("current")
    }

    pub(crate) fn runtime(&self) -> &Path {
        &self.runtime
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        // Without it, too: what is still there is this one's.
        let _claim = self.claims.is_empty().then(|| self.claimed(Claim::wait));
        if self.is_replaced() {
            return;
        }
        if let Err(error) = self.wipe() {
            tracing::warn!(%error, "a sandbox's folder was left behind");
        }
    }
}

/// Whether this may be a name.
///
/// # Errors
/// It may not ([`PlaceError::Name`]).
pub fn check_name(name: &str) -> Result<(), PlaceError> {
    if is_name(name) { Ok(()) } else { Err(PlaceError::Name(name.to_owned())) }
}

/// Whether a sandbox could have this name now. What a dead creator left under it does not count.
///
/// # Errors
/// It is none, or somebody has it.
pub(crate) fn check_free(name: &str) -> Result<(), PlaceError> {
    check_name(name)?;
    let this = Places::of(name)?;
    // Not signed: whoever creates it next waits for this look.
    let _claim = this.claimed(Claim::take)?;
    if this.exists() { Err(PlaceError::Taken(name.to_owned())) } else { Ok(()) }
}

/// Whether this may be the name of a sandbox, or of an image.
pub(crate) fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (1..=LONGEST).contains(&name.len())
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || b"-_.".contains(&byte))
}

/// `$XDG_RUNTIME_DIR/throughline`, else `/run/throughline` for root, else a private folder under the
/// temporary directory.
fn runtime_folder(uid: u32) -> Result<PathBuf, PlaceError> {
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        return private(&folder, "throughline");
    }
    if uid == 0 && Path::new("/run").is_dir() {
        return private(Path::new("/run"), "throughline");
    }
    private(&std::env::temp_dir(), &format!("throughline-{uid}"))
}

/// Where this user's sandboxes keep sockets and logs, each in a folder of its name; made if it is not there.
///
/// # Errors
/// It cannot be made, or somebody else made it.
pub fn runtime() -> Result<PathBuf, PlaceError> {
    runtime_folder(rustix::process::getuid().as_raw())
}

/// A folder that only its owner can use; one that somebody else made is refused.
fn private(parent: &Path, name: &str) -> Result<PathBuf, PlaceError> {
    let folder = parent.join(name);
    let failed = |source| PlaceError::Io { path: folder.clone(), source };
    match create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let found = fs::symlink_metadata(&folder).map_err(failed)?;
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
        let reason = "it exists, and is not a folder of this user that nobody else can use; remove it";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, reason)));
    }
    Ok(folder)
}

/// What tells a folder from others that have been at its path.
fn identity(folder: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(folder).ok().map(|data| (data.dev(), data.ino()))
}

fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

#[cfg(test)]
mod tests;
