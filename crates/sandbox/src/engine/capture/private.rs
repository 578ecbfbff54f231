//! RAM that is an image, and pages that a monitor has written over it: those are in no file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::pages::{CHUNK, Source, copy_sparse, segments, write_changed};
use crate::zeros::PAGE;

/// A page map's entry has 64 bits for each page of a process.
const ENTRY: usize = 8;
/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// The page is swapped out; only private pages leave an entry behind then.
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file: the guest has not written it.
const OF_FILE: u64 = 1 << 61;

/// A monitor, and where it has mapped the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Private {
    pid: i32,
    address: u64,
    length: u64,
}

impl Private {
    /// The RAM of a monitor that has mapped `image` at this address.
    pub(super) fn new(image: &File, pid: i32, address: u64) -> io::Result<Self> {
        Ok(Self { pid, address, length: image.metadata()?.len() })
    }

    /// Copies RAM, while the guest may change it: the image by sharing the file's blocks, where the file system can.
    /// Returns how many bytes that was.
    pub(super) fn copy(&self, image: &File, to: &File) -> io::Result<u64> {
        let copied =
            if rustix::fs::ioctl_ficlone(to, image).is_ok() { self.length } else { self.copy_image(image, to)? };
        Ok(copied + self.correct(to)?)
    }

    fn copy_image(&self, image: &File, to: &File) -> io::Result<u64> {
        to.set_len(self.length)?;
        let source = Source::File(image.try_clone()?);
        let data = segments(image, 0..self.length)?;
        data.iter().try_fold(0, |sum, range| Ok(sum + copy_sparse(&source, range, to, |_, _| ())?))
    }

    /// Brings the private pages into the copy. Returns how many bytes differed.
    pub(super) fn correct(&self, to: &File) -> io::Result<u64> {
        let (mut corrected, mut old) = (0, Vec::new());
        self.each_own(|at, new| {
            old.resize(new.len(), 0);
            to.read_exact_at(&mut old, at)?;
            corrected += write_changed(to, new, &old, at)?;
            Ok(true)
        })?;
        Ok(corrected)
    }

    /// Calls `each` with the private pages, some at a time, and where in RAM they are, until it says no. Whether it never
    /// did.
    pub(super) fn each_own(&self, mut each: impl FnMut(u64, &[u8]) -> io::Result<bool>) -> io::Result<bool> {
        let pages = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let memory = File::open(format!("/proc/{}/mem", self.pid))?;
        let mut bytes = vec![0; CHUNK];
        for run in private_runs(&pages, self.address, self.length)? {
            for at in run.clone().step_by(CHUNK) {
                let piece = &mut bytes[..CHUNK.min((run.end - at) as usize)];
                memory.read_exact_at(piece, self.address + at)?;
                if !each(at, piece)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Runs of private pages, as offsets into the mapping.
fn private_runs(pages: &File, address: u64, length: u64) -> io::Result<Vec<Range<u64>>> {
    let count = length as usize / PAGE;
    let mut entries = vec![0; count * ENTRY];
    pages.read_exact_at(&mut entries, address / PAGE as u64 * ENTRY as u64)?;
    let mut runs: Vec<Range<u64>> = Vec::new();
    let (entries, _) = entries.as_chunks::<ENTRY>();
    for (index, entry) in entries.iter().enumerate() {
        let entry = u64::from_ne_bytes(*entry);
        let private = entry & OF_FILE == 0 && entry & (PRESENT | SWAPPED) != 0;
        if !private {
            continue;
        }
        let start = (index * PAGE) as u64;
        match runs.last_mut() {
            Some(last) if last.end == start => last.end += PAGE as u64,
            _ => runs.push(start..start + PAGE as u64),
        }
    }
    Ok(runs)
}
