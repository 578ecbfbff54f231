//! The sidecar: the host's own copy of what the host owns, in a file that the guest never sees.

mod header;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use throughline_ring::Side;
use throughline_shmem::sync::Ordering;
use throughline_shmem::{Mapping, Populate, Words};

use crate::backing::{self, BackingError, Draft, FileId};
use crate::core::rolled_back;
use crate::lease::{Claim, Holder, Lease, Refusal};
use crate::region::Region;

use header::Binding;
pub use header::{Origin, SidecarFault, Timeline};

/// The host's copy of its words, and the right to drive the region (the *lease*).
///
/// At most one process at a time holds a region's sidecar. The lease ends when this is dropped, or
/// with the process, however it ends. A sidecar is bound to its own file and to the region's: copies
/// of either are refused, because two of them would send different bytes at the same positions.
#[derive(Debug)]
pub struct Sidecar {
    memory: Arc<Mapping>,
    timeline: Timeline,
    /// On the sidecar, where the holder is recorded, and on the region, which may have only one.
    _leases: [Lease; 2],
}

/// Why a sidecar could not be created, opened or rebound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// Its file is not fit.
    #[error("sidecar {0}")]
    Backing(#[from] BackingError),
    /// It is no sidecar of this region that this program can use.
    #[error("sidecar {name}: {reason}")]
    Fault {
        /// Which sidecar.
        name: String,
        /// What is wrong with it.
        reason: SidecarFault,
    },
    /// Another process drives the region through this sidecar.
    #[error("sidecar {name} is held by {}; end that process first, or let it go on", holder_name(*holder))]
    Held {
        /// Which sidecar.
        name: String,
        /// The first attacher; `None` while it is attaching.
        holder: Option<Holder>,
    },
    /// Another process drives the region, through another sidecar.
    #[error("region {region} is driven through another sidecar; use that one, after its process has ended")]
    RegionHeld {
        /// Which region.
        region: String,
    },
    /// It belongs to another region.
    #[error("sidecar {name} belongs to region {found:032x}, and region {region} is {expected:032x}")]
    OtherRegion {
        /// Which sidecar.
        name: String,
        /// Which region.
        region: String,
        /// Region id in the sidecar.
        found: u128,
        /// Id of the region.
        expected: u128,
    },
    /// The region's file, or the sidecar's own, is a copy.
    #[error(
        "{copied} is a copy: it is {found}, and was bound as {bound}. A copied sandbox would send other bytes at the positions of the original; take a snapshot and use `throughline snapshot restore`"
    )]
    Copied {
        /// The file that is a copy.
        copied: String,
        /// Which file it is.
        found: FileId,
        /// Which file it should be.
        bound: FileId,
    },
    /// The region has a history, which is in another sidecar.
    #[error("region {region} was driven before: open the sidecar it was created with, or restore a snapshot")]
    Used {
        /// Which region.
        region: String,
    },
    /// The region is not a file.
    #[error("the host drives a region in a file or memfd, and this one is physical memory: a guest's")]
    Physical,
    /// The system refused to lock.
    #[error("cannot lock {name}: {reason}")]
    Lock {
        /// Which file.
        name: String,
        /// The system's reason.
        reason: std::io::Error,
    },
}

fn holder_name(holder: Option<Holder>) -> String {
    holder.map_or_else(|| "a process that is just attaching".to_owned(), |holder| holder.to_string())
}

impl Sidecar {
    /// Creates the sidecar of a new region as a file on tmpfs, mode 0600, and takes the lease. All of
    /// it exists from the start. The region begins a timeline.
    pub fn create(path: &Path, region: &Region) -> Result<Self, SidecarError> {
        let draft = Draft::new(path, region.layout().sidecar_bytes())?;
        let sidecar = Self::bind_new(draft.as_fd(), region, &path.to_string_lossy())?;
        draft.publish()?;
        Ok(sidecar)
    }

    /// As [`create`](Self::create), in a memfd that nobody can resize; the descriptor is for handing
    /// it to a successor.
    pub fn create_memfd(name: &str, region: &Region) -> Result<(Self, OwnedFd), SidecarError> {
        let file = backing::memfd(name, region.layout().sidecar_bytes())?;
        let sidecar = Self::bind_new(file.as_fd(), region, &format!("memfd {name}"))?;
        Ok((sidecar, file))
    }

    /// Opens the sidecar of a region and takes the lease. Its folder is trusted: see [`Region`].
    pub fn open(path: &Path, region: &Region) -> Result<Self, SidecarError> {
        Self::attach(backing::open(path)?.as_fd(), region, &path.to_string_lossy())
    }

    /// Opens the sidecar in a memfd of a predecessor, and takes the lease.
    pub fn from_fd(file: impl AsFd, region: &Region) -> Result<Self, SidecarError> {
        let file = file.as_fd();
        let name = format!("in descriptor {}", file.as_raw_fd());
        backing::measure(file, &name)?;
        backing::check_sealed(file, &name)?;
        Self::attach(file, region, &name)
    }

    /// Makes the copy of a sidecar the sidecar of a copy of its region, with a timeline of its own,
    /// and takes the lease. This is what restore and fork do; the owner is still to be told.
    ///
    /// Who dies in the middle leaves a sidecar that no attach accepts, and that can be rebound again.
    pub fn rebind(path: &Path, region: &Region, timeline: Timeline) -> Result<Self, SidecarError> {
        let name = path.to_string_lossy();
        let file = backing::open(path)?;
        let (memory, leases) = acquire(file.as_fd(), region, &name)?;
        check_region(header::read_region(&*memory), region, &name)?;
        let (_, own_file) = backing::measure(&file, &name)?;
        header::set_event_pending(&*memory, true);
        header::write_binding(&*memory, &binding(region, own_file, timeline)?);
        Ok(Self { memory, timeline, _leases: leases })
    }

    /// Of a checkpoint's copy that was [rebound](Self::rebind), after the timeline of which `dead` is the sidecar was
    /// lost: remembers how far each channel had come there, until its owner is told. To be called before it is
    /// attached; may be repeated.
    pub fn went_back_from(&self, dead: &Self, region: &Region) {
        rolled_back::mark(&*self.memory, &*dead.memory, region.layout(), dead.timeline.epoch);
    }

    /// A new timeline's id: 128 random bits.
    pub fn new_epoch() -> Result<u128, SidecarError> {
        Ok(backing::random_id()?)
    }

    /// The kept words, at the offsets that the host's pages have in the region.
    pub fn words(&self) -> &Arc<Mapping> {
        &self.memory
    }

    /// The timeline that this sidecar's positions belong to.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Whether the owner has yet to be told that this timeline was restored, forked or rolled back.
    pub fn event_pending(&self) -> bool {
        header::event_pending(&self.memory)
    }

    /// Remembers that the owner was told.
    pub fn take_event(&self) {
        header::set_event_pending(&self.memory, false);
    }

    fn bind_new(file: BorrowedFd<'_>, region: &Region, name: &str) -> Result<Self, SidecarError> {
        let (_, own_file) = backing::measure(file, name)?;
        let timeline = Timeline { epoch: backing::random_id()?, parent: 0, index: 0, origin: Origin::Created };
        let binding = binding(region, own_file, timeline)?;
        let memory = map(file, region, name)?;
        let leases = take_leases(file, region, name)?;
        if was_driven(region) {
            return Err(SidecarError::Used { region: region.name().to_owned() });
        }
        header::write_holder(&*memory, Holder::this_process());
        header::write_binding(&*memory, &binding);
        Ok(Self { memory, timeline, _leases: leases })
    }

    fn attach(file: BorrowedFd<'_>, region: &Region, name: &str) -> Result<Self, SidecarError> {
        let (memory, leases) = acquire(file, region, name)?;
        let found = header::read_binding(&*memory).map_err(|reason| fault(name, reason))?;
        let (_, own_file) = backing::measure(file, name)?;
        let expected = binding(region, own_file, found.timeline)?;
        check_binding(&found, &expected, region, name)?;
        Ok(Self { memory, timeline: found.timeline, _leases: leases })
    }
}

/// What a sidecar of `region` in `own_file` should be bound to.
fn binding(region: &Region, own_file: FileId, timeline: Timeline) -> Result<Binding, SidecarError> {
    Ok(Binding {
        bytes: region.layout().sidecar_bytes(),
        region: region.header().region,
        region_file: region.file_id().ok_or(SidecarError::Physical)?,
        own_file,
        timeline,
    })
}

fn check_binding(found: &Binding, expected: &Binding, region: &Region, name: &str) -> Result<(), SidecarError> {
    check_region(found.region, region, name)?;
    let copied = |copied: &str, found, bound| Err(SidecarError::Copied { copied: copied.to_owned(), found, bound });
    if found.region_file != expected.region_file {
        return copied(&format!("region {}", region.name()), expected.region_file, found.region_file);
    }
    if found.own_file != expected.own_file {
        return copied(&format!("sidecar {name}"), expected.own_file, found.own_file);
    }
    Ok(())
}

fn check_region(found: u128, region: &Region, name: &str) -> Result<(), SidecarError> {
    let expected = region.header().region;
    if found == expected {
        return Ok(());
    }
    Err(SidecarError::OtherRegion { name: name.to_owned(), region: region.name().to_owned(), found, expected })
}

/// Checks that a file is a sidecar, takes the leases, records this process, and maps it.
fn acquire(file: BorrowedFd<'_>, region: &Region, name: &str) -> Result<(Arc<Mapping>, [Lease; 2]), SidecarError> {
    let (length, _) = backing::measure(file, name)?;
    let page = backing::read_page(file, name)?;
    let checked = header::check_kind(&page, length, region.layout().sidecar_bytes());
    checked.map_err(|reason| fault(name, reason))?;
    let leases = take_leases(file, region, name)?;
    let memory = map(file, region, name)?;
    header::write_holder(&*memory, Holder::this_process());
    Ok((memory, leases))
}

fn take_leases(file: BorrowedFd<'_>, region: &Region, name: &str) -> Result<[Lease; 2], SidecarError> {
    let region_file = region.as_fd().ok_or(SidecarError::Physical)?;
    let own = match Lease::take(file, Claim::Host) {
        Ok(lease) => lease,
        Err(Refusal::System(reason)) => return Err(lock_failed(name, reason)),
        Err(Refusal::Held) => {
            let holder = header::read_holder(&backing::read_page(file, name)?);
            return Err(SidecarError::Held { name: name.to_owned(), holder });
        }
    };
    match Lease::take(region_file, Claim::Host) {
        Ok(lease) => Ok([own, lease]),
        Err(Refusal::System(reason)) => Err(lock_failed(region.name(), reason)),
        Err(Refusal::Held) => Err(SidecarError::RegionHeld { region: region.name().to_owned() }),
    }
}

/// Maps a sidecar and makes all of it exist: a copy may have come with holes.
fn map(file: BorrowedFd<'_>, region: &Region, name: &str) -> Result<Arc<Mapping>, BackingError> {
    let mapped = Mapping::file(file, region.layout().sidecar_bytes(), Populate::OnTouch);
    let memory = mapped.map_err(|reason| BackingError::Map { name: name.to_owned(), reason })?;
    memory.allocate(0, memory.len()).map_err(|reason| BackingError::allocate(name, reason))?;
    Ok(Arc::new(memory))
}

/// Whether a host has written any of its words in the region.
fn was_driven(region: &Region) -> bool {
    let (first, count) = region.layout().side_pages(Side::Host);
    (first..first + count).any(|at| region.words().load(at, Ordering::Relaxed) != 0)
}

fn fault(name: &str, reason: SidecarFault) -> SidecarError {
    SidecarError::Fault { name: name.to_owned(), reason }
}

fn lock_failed(name: &str, reason: std::io::Error) -> SidecarError {
    SidecarError::Lock { name: name.to_owned(), reason }
}
