//! Pages of files: where there are any, and the copying and comparing of them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, fstatfs, seek};
use rustix::io::Errno;
use throughline_shmem::{Mapping, Populate, WORD, Words};

use crate::zeros::{PAGE, is_zero};

/// How much is read at a time, in bytes: fits a core's nearest caches together with what it is compared to.
pub(super) const CHUNK: usize = 64 * 1024;

/// A file to be read. Mapped where it lies in memory: what was read once is then read again without a system call. On a
/// disk a page may have to be read anew, and what fails in a mapping is no error but a signal.
#[derive(Debug)]
pub(super) enum Source {
    Mapped(Mapping),
    File(File),
}

impl Source {
    /// Of a file open for reading and writing, of which nothing is written, and which nobody else may cut.
    pub(super) fn new(file: &File, length: u64) -> io::Result<Self> {
        if fstatfs(file)?.f_type != libc::TMPFS_MAGIC {
            return Ok(Self::File(file.try_clone()?));
        }
        Mapping::file(file, length, Populate::OnTouch).map(Self::Mapped).map_err(io::Error::other)
    }

    /// Reads whole pages. Reading a hole of a file that is mapped fills it with zeros.
    pub(super) fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::Mapped(mapping) => {
                mapping.copy_out(at as usize / WORD, bytes);
                Ok(())
            }
            Self::File(file) => file.read_exact_at(bytes, at),
        }
    }
}

/// Copies what is not zero within `range` of `from`; tells of each page, by its place, whether it was copied.
pub(super) fn copy_sparse(
    from: &Source,
    range: &Range<u64>,
    to: &File,
    mut tell: impl FnMut(u64, bool),
) -> io::Result<u64> {
    let mut copied = 0;
    let mut buffer = vec![0; CHUNK];
    for at in range.clone().step_by(CHUNK) {
        let bytes = &mut buffer[..CHUNK.min((range.end - at) as usize)];
        from.read(bytes, at)?;
        copied += write_runs(to, bytes, at, |page, offset| {
            let wanted = !is_zero(page);
            tell(at + offset as u64, wanted);
            wanted
        })?;
    }
    Ok(copied)
}

/// Writes the pages of `new`, at `at`, in which it differs from `old`. Returns how many bytes.
pub(super) fn write_changed(to: &File, new: &[u8], old: &[u8], at: u64) -> io::Result<u64> {
    if new == old {
        return Ok(0);
    }
    write_runs(to, new, at, |page, offset| *page != old[offset..offset + page.len()])
}

/// Writes the pages of `bytes` that are `wanted`, adjacent ones together. Returns how many bytes.
fn write_runs(to: &File, bytes: &[u8], at: u64, mut wanted: impl FnMut(&[u8], usize) -> bool) -> io::Result<u64> {
    let mut written = 0;
    let mut run = 0..0;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let start = index * PAGE;
        if wanted(page, start) {
            if run.end != start || run.is_empty() {
                run.start = start;
            }
            run.end = start + page.len();
            if run.end < bytes.len() {
                continue;
            }
        }
        if !run.is_empty() {
            to.write_all_at(&bytes[run.clone()], at + run.start as u64)?;
            written += run.len() as u64;
            run = 0..0;
        }
    }
    Ok(written)
}

/// The parts of a file within `range` that are not holes.
pub(super) fn segments(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < range.end => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?.min(range.end);
        found.push(data..hole);
        at = hole;
    }
    Ok(found)
}
