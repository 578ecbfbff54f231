//! Words of a file, a memfd or a device, shared with whoever else maps it.

#![expect(unsafe_code, reason = "mapped memory is reached through raw pointers, here and nowhere else")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::sync::{AtomicU64, Ordering};
use crate::{AllocateError, WORD, Words, bulk};

/// Whether a mapping's pages are brought in at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Populate {
    /// At first touch. Right for sparse files: populating would allocate all of them.
    #[default]
    OnTouch,
    /// All of them now, so that the first touches take no page fault.
    Now,
}

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The place or the length is no multiple of the page, or the length is zero.
    #[error(
        "cannot map {len} bytes at {at:#x}: both must be multiples of the page ({page} bytes), and the length not zero"
    )]
    Unaligned {
        /// Offset or physical address, in bytes.
        at: u64,
        /// Length, in bytes.
        len: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// The file ends before the mapping would: touching the rest would kill the process.
    #[error("cannot map {len} bytes of a file of {found}: it was cut, or is another file")]
    Short {
        /// Bytes to be mapped.
        len: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// A device could not be opened.
    #[error("cannot open {}: {reason}", path.display())]
    Open {
        /// Path of the device.
        path: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
    /// The system refused.
    #[error("cannot map {len} bytes at {at:#x}: {reason}{}", hint(reason))]
    System {
        /// Offset or physical address, in bytes.
        at: u64,
        /// Length, in bytes.
        len: u64,
        /// The system's reason.
        reason: io::Error,
    },
}

fn hint(reason: &io::Error) -> &'static str {
    match Errno::from_io_error(reason) {
        Some(Errno::PERM) => {
            " (a kernel driver may own this memory: /dev/mem works without nd_pmem, or with iomem=relaxed; a file may be sealed against writing)"
        }
        Some(Errno::NOMEM) => " (no memory or address space left, or too many mappings)",
        _ => "",
    }
}

/// Shared memory that somebody else may be writing at the same time, mapped readable and writable.
///
/// The mapping ends when this is dropped. The backing file must keep its size meanwhile: seal a
/// memfd, or keep the file in a folder that only trusted users can write.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<AtomicU64>,
    words: usize,
    /// What holds the memory, where it can be allocated and released; a device's memory cannot.
    backing: Option<OwnedFd>,
}

// SAFETY: the memory is only ever accessed as atomic words, through a pointer that stays valid until
// drop; nothing in a `Mapping` belongs to one thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; all methods that take `&self` access the memory atomically.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file or memfd, a multiple of the page.
    ///
    /// Keeps a duplicate of the descriptor (close-on-exec, of the same description) to allocate
    /// and release memory with.
    pub fn file(file: impl AsFd, len: u64, populate: Populate) -> Result<Self, MapError> {
        let failed = |reason: Errno| MapError::System { at: 0, len, reason: reason.into() };
        check(0, len)?;
        let found = rustix::fs::fstat(&file).map_err(failed)?.st_size.unsigned_abs();
        if len > found {
            return Err(MapError::Short { len, found });
        }
        let backing = rustix::io::fcntl_dupfd_cloexec(&file, 0).map_err(failed)?;
        let (base, words) = map(&file, 0, len, populate)?;
        Ok(Self { base, words, backing: Some(backing) })
    }

    /// Maps `len` bytes of physical memory at `address` through `/dev/mem`, both multiples of the
    /// page. This is how a guest reaches its region.
    pub fn physical(address: u64, len: u64) -> Result<Self, MapError> {
        check(address, len)?;
        // Without O_SYNC: with it the memory would be mapped uncached.
        let device = open_device(Path::new("/dev/mem"))?;
        let (base, words) = map(&device, address, len, Populate::OnTouch)?;
        Ok(Self { base, words, backing: None })
    }

    /// The checked start of `count` words at word `at`. Panics when they do not lie inside.
    fn span(&self, at: usize, count: usize) -> *const AtomicU64 {
        let fits = at <= self.words && count <= self.words - at;
        assert!(fits, "{count} words at word {at} do not lie inside a mapping of {}", self.words);
        // SAFETY: at <= words, so the result is inside the mapping or one past its end.
        unsafe { self.base.as_ptr().add(at) }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: the word lies inside the mapping, which is aligned to the page and lives as long
        // as the borrow; an `AtomicU64` may be written by others, and any bit pattern is valid.
        unsafe { &*self.span(at, 1) }
    }
}

fn open_device(path: &Path) -> Result<File, MapError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|reason| MapError::Open { path: path.to_owned(), reason })
}

fn check(at: u64, len: u64) -> Result<(), MapError> {
    let page = rustix::param::page_size() as u64;
    if len == 0 || !len.is_multiple_of(page) || !at.is_multiple_of(page) {
        return Err(MapError::Unaligned { at, len, page });
    }
    Ok(())
}

/// Maps what `check` has passed.
fn map(fd: impl AsFd, at: u64, len: u64, populate: Populate) -> Result<(NonNull<AtomicU64>, usize), MapError> {
    let flags = match populate {
        Populate::OnTouch => MapFlags::SHARED,
        Populate::Now => MapFlags::SHARED | MapFlags::POPULATE,
    };
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
    let base = unsafe { rustix::mm::mmap(ptr::null_mut(), len as usize, access, flags, fd, at) };
    let base = base.map_err(|reason| MapError::System { at, len, reason: reason.into() })?;
    let base = NonNull::new(base.cast()).ok_or_else(|| MapError::System { at, len, reason: Errno::NOMEM.into() })?;
    Ok((base, len as usize / WORD))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and nobody can hold a borrow of
        // it any more. Unmapping a valid range does not fail; if it did, the memory would leak.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.words * WORD) };
    }
}

impl Words for Mapping {
    fn len(&self) -> usize {
        self.words
    }

    #[inline]
    fn load(&self, at: usize, order: Ordering) -> u64 {
        u64::from_le(self.word(at).load(order))
    }

    #[inline]
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.word(at).store(value.to_le(), order);
    }

    fn copy_out(&self, at: usize, out: &mut [u8]) {
        let first = self.span(at, out.len() / WORD);
        // SAFETY: `span` checked that the words lie inside.
        unsafe { bulk::copy_out(first, out) }
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        let first = self.span(at, bytes.len() / WORD);
        // SAFETY: as above.
        unsafe { bulk::copy_in(first, bytes) }
    }

    fn zero(&self, at: usize, count: usize) {
        let first = self.span(at, count);
        // SAFETY: as above.
        unsafe { bulk::zero(first, count) }
    }

    fn allocate(&self, at: usize, count: usize) -> Result<(), AllocateError> {
        self.span(at, count);
        self.fallocate(FallocateFlags::empty(), (at * WORD) as u64, (count * WORD) as u64)
    }

    fn release(&self, at: usize, count: usize) -> Result<(), AllocateError> {
        self.span(at, count);
        if self.backing.is_none() {
            self.zero(at, count);
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate(punch, (at * WORD) as u64, (count * WORD) as u64)
    }
}

impl Mapping {
    /// Does nothing for a device, whose memory always exists.
    fn fallocate(&self, mode: FallocateFlags, at: u64, bytes: u64) -> Result<(), AllocateError> {
        let Some(backing) = &self.backing else {
            return Ok(());
        };
        if bytes == 0 {
            return Ok(());
        }
        // tmpfs gives up (and undoes) when a signal comes; the next try starts afresh.
        let done = rustix::io::retry_on_intr(|| rustix::fs::fallocate(backing, mode, at, bytes));
        done.map_err(|errno| match errno {
            Errno::NOSPC | Errno::DQUOT | Errno::NOMEM => AllocateError::NoSpace { bytes },
            _ => AllocateError::System { bytes, errno: errno.raw_os_error() },
        })
    }
}
