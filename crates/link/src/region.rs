//! The region: the shared bytes that are the connection.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use throughline_ring::{Geometry, Header, HeaderError, Layout};
use throughline_shmem::sync::Ordering;
use throughline_shmem::{HeapWords, Mapping, Populate, WORD, Words};

use crate::backing::{self, BackingError, Draft, FileId};
use crate::lease::{Claim, Lease, Refusal};

/// A mapped region.
///
/// As a file it lies on tmpfs, readable and writable by its owner only. Such a file cannot be sealed:
/// its folder must be one that only trusted users can write, for whoever can cut the file can kill
/// every process that maps it. A memfd is sealed, so that it may be handed to anybody.
///
/// The header and both sides' pages exist from the start. Rings are sparse until their channels
/// open, so that a full file system refuses an open and never kills a process.
#[derive(Debug)]
pub struct Region {
    memory: Arc<Mapping>,
    header: Header,
    layout: Layout,
    backing: Option<Backing>,
}

#[derive(Debug)]
struct Backing {
    file: OwnedFd,
    id: FileId,
    name: String,
}

/// Why a region could not be created or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// Its file or memory is not fit.
    #[error("region {0}")]
    Backing(#[from] BackingError),
    /// Its header is not that of a region that this program can serve.
    #[error("region {name}: {reason}")]
    Header {
        /// Which region.
        name: String,
        /// What is wrong with the header, and what was expected.
        reason: HeaderError,
    },
}

/// Why this process may not be the guest of a region.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestLeaseError {
    /// Another process is.
    #[error("region {name} has a guest already: end that process first (`fuser` or `lsof` on the region names it)")]
    Held {
        /// Which region.
        name: String,
    },
    /// The system refused to lock.
    #[error("cannot lock region {name}: {reason}")]
    System {
        /// Which region.
        name: String,
        /// The system's reason.
        reason: std::io::Error,
    },
}

impl Region {
    /// Creates a region as a file on tmpfs, mode 0600. The file appears under its name complete, or
    /// not at all.
    pub fn create(path: &Path, geometry: &Geometry) -> Result<Self, RegionError> {
        let layout = Layout::new(geometry);
        let name = path.to_string_lossy();
        let draft = Draft::new(path, layout.region_bytes())?;
        let (memory, header) = fill(&draft, geometry, &layout, &name)?;
        let backing = Backing::new(draft.publish()?, name.into_owned())?;
        Ok(Self { memory, header, layout, backing: Some(backing) })
    }

    /// Creates a region as a memfd that nobody can resize. `name` shows in `/proc/PID/fd` only.
    pub fn create_memfd(name: &str, geometry: &Geometry) -> Result<Self, RegionError> {
        let layout = Layout::new(geometry);
        let file = backing::memfd(name, layout.region_bytes())?;
        let (memory, header) = fill(&file, geometry, &layout, name)?;
        let backing = Backing::new(file, format!("memfd {name}"))?;
        Ok(Self { memory, header, layout, backing: Some(backing) })
    }

    /// Opens the region in a file. Its folder is trusted: see [`Region`].
    pub fn open(path: &Path) -> Result<Self, RegionError> {
        Self::open_file(backing::open(path)?, path.to_string_lossy().into_owned())
    }

    /// Opens the region in a memfd that another process created, and sealed against shrinking.
    pub fn from_fd(file: OwnedFd) -> Result<Self, RegionError> {
        let name = format!("in descriptor {}", file.as_raw_fd());
        // The kind first: "not sealed" would mislead whoever passed a socket.
        backing::measure(&file, &name)?;
        backing::check_sealed(&file, &name)?;
        Self::open_file(file, name)
    }

    /// Opens the region at a physical address, `length` bytes long, through `/dev/mem`: in the guest.
    pub fn open_physical(address: u64, length: u64) -> Result<Self, RegionError> {
        let name = format!("at physical address {address:#x}");
        let mapped = Mapping::physical(address, length);
        let memory = mapped.map_err(|reason| BackingError::Map { name: name.clone(), reason })?;
        let header = Header::read(&memory).map_err(|reason| RegionError::Header { name, reason })?;
        let layout = Layout::new(&header.geometry);
        Ok(Self { memory: Arc::new(memory), header, layout, backing: None })
    }

    fn open_file(file: OwnedFd, name: String) -> Result<Self, RegionError> {
        let (length, _) = backing::measure(&file, &name)?;
        let first = FirstPage::read(&file, length, &name)?;
        let header = Header::read(&first).map_err(|reason| RegionError::Header { name: name.clone(), reason })?;
        let layout = Layout::new(&header.geometry);
        let memory = map(&file, &layout, &name)?;
        let backing = Backing::new(file, name)?;
        Ok(Self { memory, header, layout, backing: Some(backing) })
    }

    /// The shared words.
    pub fn words(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// The header, as it was when the region was opened.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The places of all words.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The file or memfd; `None` for physical memory.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.backing.as_ref().map(|backing| backing.file.as_fd())
    }

    /// Which file this is; `None` for physical memory.
    pub fn file_id(&self) -> Option<FileId> {
        self.backing.as_ref().map(|backing| backing.id)
    }

    /// What errors call this region.
    pub(crate) fn name(&self) -> &str {
        self.backing.as_ref().map_or("in physical memory", |backing| &backing.name)
    }

    /// Makes this process the region's only guest, where the guest is a process. `None` in a real
    /// guest, which has its memory for itself.
    pub fn guest_lease(&self) -> Result<Option<Lease>, GuestLeaseError> {
        let Some(backing) = &self.backing else { return Ok(None) };
        let name = || backing.name.clone();
        match Lease::take(backing.file.as_fd(), Claim::Guest) {
            Ok(lease) => Ok(Some(lease)),
            Err(Refusal::Held) => Err(GuestLeaseError::Held { name: name() }),
            Err(Refusal::System(reason)) => Err(GuestLeaseError::System { name: name(), reason }),
        }
    }
}

impl Backing {
    fn new(file: OwnedFd, name: String) -> Result<Self, BackingError> {
        let (_, id) = backing::measure(&file, &name)?;
        Ok(Self { file, id, name })
    }
}

/// Makes a new file a region.
fn fill(
    file: impl AsFd,
    geometry: &Geometry,
    layout: &Layout,
    name: &str,
) -> Result<(Arc<Mapping>, Header), BackingError> {
    let memory = map(file, layout, name)?;
    let header = Header::new(geometry.clone(), backing::random_id()?);
    header.write(&*memory);
    Ok((memory, header))
}

/// Maps a whole region and makes the pages exist that are touched before any channel opens.
fn map(file: impl AsFd, layout: &Layout, name: &str) -> Result<Arc<Mapping>, BackingError> {
    let mapped = Mapping::file(file, layout.region_bytes(), Populate::OnTouch);
    let memory = mapped.map_err(|reason| BackingError::Map { name: name.to_owned(), reason })?;
    let allocated = memory.allocate(0, layout.control_words());
    allocated.map_err(|reason| BackingError::allocate(name, reason))?;
    Ok(Arc::new(memory))
}

/// The first page of a file, copied: it is judged before anything is mapped.
struct FirstPage {
    page: HeapWords,
    /// Words of the whole file, which the header must agree with.
    words: usize,
}

impl FirstPage {
    fn read(file: &OwnedFd, length: u64, name: &str) -> Result<Self, BackingError> {
        let page = backing::read_page(file, name)?;
        Ok(Self { page, words: length as usize / WORD })
    }
}

impl Words for FirstPage {
    fn len(&self) -> usize {
        self.words
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.page.load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.page.store(at, value, order);
    }
}
