//! The sidecar's first page: what it belongs to, and who holds it.

use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

use crate::backing::FileId;
use crate::lease::Holder;

const MAGIC: u64 = u64::from_le_bytes(*b"thrulsdc");
/// Major version of this page and of the words behind it. Another major is refused.
const MAJOR: u32 = 1;
const MINOR: u32 = 0;

/// Words of the page. Those before `CHECK` change only when the sidecar is bound to a region.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const BYTES: usize = 2;
    pub const REGION: usize = 3;
    pub const REGION_FILE: usize = 5;
    pub const OWN_FILE: usize = 7;
    pub const EPOCH: usize = 9;
    pub const PARENT: usize = 11;
    pub const INDEX: usize = 13;
    pub const ORIGIN: usize = 14;
    pub const CHECK: usize = 15;
    pub const HOLDER: usize = 16;
    pub const HOLDER_STARTED: usize = 17;
    pub const EVENT: usize = 18;
}

/// How a timeline began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Origin {
    /// With a new VM.
    Created = 1,
    /// By restoring a snapshot.
    Restored = 2,
    /// As one of several children of one moment.
    Forked = 3,
    /// By going back to a checkpoint after the VMM had died.
    RolledBack = 4,
}

impl Origin {
    fn from_word(word: u64) -> Option<Self> {
        [Self::Created, Self::Restored, Self::Forked, Self::RolledBack]
            .into_iter()
            .find(|origin| *origin as u64 == word)
    }
}

/// The history of one VM: a position means something only within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// Its id: 128 random bits.
    pub epoch: u128,
    /// Id of the timeline it came from; 0 if it began with a new VM.
    pub parent: u128,
    /// Which child of a fork it is, from 1; 0 for none.
    pub index: u64,
    /// How it began.
    pub origin: Origin,
}

/// What a sidecar is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub bytes: u64,
    pub region: u128,
    pub region_file: FileId,
    pub own_file: FileId,
    pub timeline: Timeline,
}

/// Why a page is no sidecar's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarFault {
    /// The first word is another.
    #[error("the first word is {found:#018x}, and a sidecar's is {MAGIC:#018x}: this is no sidecar")]
    Magic {
        /// The first word.
        found: u64,
    },
    /// Another major version.
    #[error("made in version {major}.{minor}, and this program reads {MAJOR}.x; use the release that made it")]
    Version {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// Another size than the region's geometry asks for.
    #[error(
        "it has {found} bytes, and the region's geometry asks for {expected}: it was cut, or belongs to another region"
    )]
    Size {
        /// Bytes that it has.
        found: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// The words of the page do not go together.
    #[error(
        "its header is damaged, or was being rebound when the process died: the check word is {found:#018x}, and the words give {expected:#018x}; restore the sandbox from a snapshot"
    )]
    Check {
        /// The stored check word.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// The timeline's origin is none that this program knows.
    #[error("its header is damaged: a timeline has no origin {found}")]
    Origin {
        /// The stored number.
        found: u64,
    },
}

/// Checks that the page is a sidecar's, and of the size that was measured and that is expected.
pub(super) fn check_kind(page: &impl Words, found: u64, expected: u64) -> Result<(), SidecarFault> {
    let magic = load(page, at::MAGIC);
    if magic != MAGIC {
        return Err(SidecarFault::Magic { found: magic });
    }
    let version = load(page, at::VERSION);
    let (major, minor) = ((version >> 32) as u32, version as u32);
    if major != MAJOR {
        return Err(SidecarFault::Version { major, minor });
    }
    for found in [found, load(page, at::BYTES)] {
        if found != expected {
            return Err(SidecarFault::Size { found, expected });
        }
    }
    Ok(())
}

/// Reads what the sidecar is bound to. Only the holder of the lease sees it at rest.
pub(super) fn read_binding(page: &impl Words) -> Result<Binding, SidecarFault> {
    let (found, expected) = (load(page, at::CHECK), check(page));
    if found != expected {
        return Err(SidecarFault::Check { found, expected });
    }
    let origin = load(page, at::ORIGIN);
    let origin = Origin::from_word(origin).ok_or(SidecarFault::Origin { found: origin })?;
    Ok(Binding {
        bytes: load(page, at::BYTES),
        region: load_id(page, at::REGION),
        region_file: load_file(page, at::REGION_FILE),
        own_file: load_file(page, at::OWN_FILE),
        timeline: Timeline {
            epoch: load_id(page, at::EPOCH),
            parent: load_id(page, at::PARENT),
            index: load(page, at::INDEX),
            origin,
        },
    })
}

/// The region's id alone, which rebinding leaves as it is.
pub(super) fn read_region(page: &impl Words) -> u128 {
    load_id(page, at::REGION)
}

/// Binds the sidecar. Who dies in the middle leaves a header whose check word is wrong.
pub(super) fn write_binding(page: &impl Words, binding: &Binding) {
    store(page, at::CHECK, !check(page));
    store(page, at::MAGIC, MAGIC);
    store(page, at::VERSION, u64::from(MAJOR) << 32 | u64::from(MINOR));
    store(page, at::BYTES, binding.bytes);
    store_id(page, at::REGION, binding.region);
    store_file(page, at::REGION_FILE, binding.region_file);
    store_file(page, at::OWN_FILE, binding.own_file);
    store_id(page, at::EPOCH, binding.timeline.epoch);
    store_id(page, at::PARENT, binding.timeline.parent);
    store(page, at::INDEX, binding.timeline.index);
    store(page, at::ORIGIN, binding.timeline.origin as u64);
    store(page, at::CHECK, check(page));
}

/// Who recorded itself last; `None` while a process is doing so.
pub(super) fn read_holder(page: &impl Words) -> Option<Holder> {
    let pid = u32::try_from(load(page, at::HOLDER)).ok().filter(|pid| *pid != 0)?;
    Some(Holder { pid, started: load(page, at::HOLDER_STARTED) })
}

pub(super) fn write_holder(page: &impl Words, holder: Holder) {
    // Zero in between, so that nobody reads the pid of one process with the start of another.
    store(page, at::HOLDER, 0);
    store(page, at::HOLDER_STARTED, holder.started);
    store(page, at::HOLDER, u64::from(holder.pid));
}

/// Whether the owner has yet to be told that this timeline began.
pub(super) fn event_pending(page: &impl Words) -> bool {
    load(page, at::EVENT) != 0
}

pub(super) fn set_event_pending(page: &impl Words, pending: bool) {
    store(page, at::EVENT, u64::from(pending));
}

fn load(page: &impl Words, at: usize) -> u64 {
    page.load(at, Ordering::Acquire)
}

fn store(page: &impl Words, at: usize, value: u64) {
    page.store(at, value, Ordering::Release);
}

fn load_id(page: &impl Words, at: usize) -> u128 {
    u128::from(load(page, at)) | u128::from(load(page, at + 1)) << 64
}

fn store_id(page: &impl Words, at: usize, id: u128) {
    store(page, at, id as u64);
    store(page, at + 1, (id >> 64) as u64);
}

fn load_file(page: &impl Words, at: usize) -> FileId {
    FileId { device: load(page, at), inode: load(page, at + 1) }
}

fn store_file(page: &impl Words, at: usize, file: FileId) {
    store(page, at, file.device);
    store(page, at + 1, file.inode);
}

/// FNV-1a over the words before it, a word at a time: finds damage, not tampering.
fn check(page: &impl Words) -> u64 {
    (0..at::CHECK).fold(0xcbf2_9ce4_8422_2325, |hash: u64, at| (hash ^ load(page, at)).wrapping_mul(0x0100_0000_01b3))
}
