//! Files that hold shared memory: how they come to be, and what they must be.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use throughline_shmem::{AllocateError, HeapWords, MapError, WORD, Words};

pub(crate) const PAGE: u64 = throughline_ring::PAGE_BYTES;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Which file a descriptor names: what a copy of the file does not share with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device of the file system.
    pub device: u64,
    /// Inode on that device.
    pub inode: u64,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} on device {:#x}", self.inode, self.device)
    }
}

/// Why a file cannot hold shared memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackingError {
    /// The folder lies on a disk, or on another file system that is no memory.
    #[error(
        "{} lies on a file system of type {found:#x}, but shared memory needs tmpfs ({TMPFS_MAGIC:#x}); use a folder below /dev/shm", folder.display()
    )]
    NotMemory {
        /// The folder.
        folder: PathBuf,
        /// `f_type` of its file system.
        found: u64,
    },
    /// There is a file of this name already.
    #[error("{} exists already; open it, or remove it first", path.display())]
    Exists {
        /// Its path.
        path: PathBuf,
    },
    /// No room for the bytes that must exist from the start, or for the file itself.
    #[error("no space for {name}: the file system that holds it is full; free some of it, or enlarge it")]
    NoSpace {
        /// What was to be created or opened.
        name: String,
    },
    /// The descriptor names a socket, a folder, …
    #[error("{name} is a {found}, and should be a regular file or a memfd")]
    NotAFile {
        /// What was opened.
        name: String,
        /// What it is.
        found: &'static str,
    },
    /// Its length cannot be that of shared memory.
    #[error(
        "{name} has {found} bytes, and should have a whole number of pages of {PAGE} bytes, at least one: it was cut or damaged"
    )]
    Length {
        /// What was opened.
        name: String,
        /// Its length in bytes.
        found: u64,
    },
    /// Whoever sent the descriptor could cut the file, which would kill this process.
    #[error(
        "{name} can be shrunk by whoever else holds it; seal the memfd with F_SEAL_SHRINK, or open the region by its path"
    )]
    Unsealed {
        /// What was given.
        name: String,
    },
    /// The memory could not be mapped.
    #[error("{name}: {reason}")]
    Map {
        /// What was to be mapped.
        name: String,
        /// The reason.
        reason: MapError,
    },
    /// The system refused.
    #[error("cannot {action} {name}: {reason}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        name: String,
        /// The system's reason.
        reason: std::io::Error,
    },
}

impl BackingError {
    pub(crate) fn allocate(name: &str, reason: AllocateError) -> Self {
        let name = name.to_owned();
        match reason {
            AllocateError::System { errno, .. } => Self::System {
                action: "allocate the memory of",
                name,
                reason: std::io::Error::from_raw_os_error(errno),
            },
            _ => Self::NoSpace { name },
        }
    }
}

/// Maps an error of the system to [`BackingError`].
pub(crate) fn failed(action: &'static str, name: &str) -> impl Fn(Errno) -> BackingError {
    move |errno| match errno {
        Errno::NOSPC | Errno::DQUOT => BackingError::NoSpace { name: name.to_owned() },
        Errno::EXIST => BackingError::Exists { path: name.into() },
        _ => BackingError::System { action, name: name.to_owned(), reason: errno.into() },
    }
}

/// A file that has no name yet: if its making fails or dies, nothing is left of it.
#[derive(Debug)]
pub(crate) struct Draft {
    file: OwnedFd,
    path: PathBuf,
}

impl Draft {
    /// Makes a file of `bytes` sparse bytes, mode 0600, beside where `path` will be.
    pub fn new(path: &Path, bytes: u64) -> Result<Self, BackingError> {
        let name = path.to_string_lossy();
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        check_is_memory(folder)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = fs::open(folder, flags, Mode::RUSR | Mode::WUSR).map_err(failed("create", &name))?;
        fs::ftruncate(&file, bytes).map_err(failed("size", &name))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Gives the file its name, which nothing may have yet.
    pub fn publish(self) -> Result<OwnedFd, BackingError> {
        let name = self.path.to_string_lossy();
        let unnamed = own_path(self.file.as_fd());
        fs::linkat(CWD, unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW).map_err(failed("name", &name))?;
        Ok(self.file)
    }
}

impl AsFd for Draft {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check_is_memory(folder: &Path) -> Result<(), BackingError> {
    let name = folder.to_string_lossy();
    let found = fs::statfs(folder).map_err(failed("look at the file system of", &name))?.f_type;
    let found = found.unsigned_abs();
    if found != TMPFS_MAGIC && found != HUGETLBFS_MAGIC {
        return Err(BackingError::NotMemory { folder: folder.to_owned(), found });
    }
    Ok(())
}

/// A path under which this process can open the file of a descriptor anew.
fn own_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Opens the file of a descriptor through a new description, which shares no locks with the old.
pub(crate) fn reopen(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fs::open(own_path(file), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the named file. A symbolic link in its place is refused.
pub(crate) fn open(path: &Path) -> Result<OwnedFd, BackingError> {
    // NONBLOCK: a pipe in the file's place must not make the open wait.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    fs::open(path, flags, Mode::empty()).map_err(failed("open", &path.to_string_lossy()))
}

/// Makes a memfd of `bytes` sparse bytes that keeps its size for ever.
pub(crate) fn memfd(name: &str, bytes: u64) -> Result<OwnedFd, BackingError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = fs::memfd_create(name, flags).map_err(failed("create the memfd", name))?;
    fs::ftruncate(&file, bytes).map_err(failed("size the memfd", name))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fs::fcntl_add_seals(&file, seals).map_err(failed("seal the memfd", name))?;
    Ok(file)
}

/// Refuses a file that another holder of it could cut.
pub(crate) fn check_sealed(file: impl AsFd, name: &str) -> Result<(), BackingError> {
    // What cannot have seals (EINVAL) is not sealed.
    let seals = fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    if !seals.contains(SealFlags::SHRINK) {
        return Err(BackingError::Unsealed { name: name.to_owned() });
    }
    Ok(())
}

/// Length and identity of what must be a regular file of whole pages.
pub(crate) fn measure(file: impl AsFd, name: &str) -> Result<(u64, FileId), BackingError> {
    let stat = fs::fstat(file).map_err(failed("look at", name))?;
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "",
        FileType::Directory => "folder",
        FileType::Socket => "socket",
        FileType::Fifo => "pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        _ => "special file",
    };
    if !found.is_empty() {
        return Err(BackingError::NotAFile { name: name.to_owned(), found });
    }
    let length = stat.st_size.unsigned_abs();
    if length == 0 || !length.is_multiple_of(PAGE) {
        return Err(BackingError::Length { name: name.to_owned(), found: length });
    }
    Ok((length, FileId { device: stat.st_dev, inode: stat.st_ino }))
}

/// 128 random bits.
pub(crate) fn random_id() -> Result<u128, BackingError> {
    let mut bytes = [0; 16];
    let refused = failed("get random bytes for", "a new id");
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(&refused)?;
    // Up to 256 bytes come whole.
    if count == bytes.len() { Ok(u128::from_le_bytes(bytes)) } else { Err(refused(Errno::IO)) }
}

/// Copies the first page of a file whose length was checked.
pub(crate) fn read_page(file: impl AsFd, name: &str) -> Result<HeapWords, BackingError> {
    let mut bytes = [0; PAGE as usize];
    let read = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut bytes, 0));
    if read.map_err(failed("read", name))? < PAGE as usize {
        return Err(BackingError::Length { name: name.to_owned(), found: 0 });
    }
    let words = HeapWords::new(bytes.len() / WORD);
    words.copy_in(0, &bytes);
    Ok(words)
}
