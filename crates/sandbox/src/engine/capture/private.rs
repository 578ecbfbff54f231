//! Pages that a monitor has written over its image: they are in no file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::{CHUNK, PAGE, correct_chunk};

/// A page map's entry has 64 bits for each page of a process.
const ENTRY: usize = 8;
/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// The page is swapped out; only private pages leave an entry behind then.
const SWAPPED: u64 = 1 << 62;
/// The page belongs to a file: the guest has not written it.
const OF_FILE: u64 = 1 << 61;

/// Brings the private pages of `pid`, in the `length` bytes at `address`, into `copy`. Returns how
/// many bytes differed.
pub(super) fn correct(pid: i32, address: u64, copy: &File, length: u64) -> io::Result<u64> {
    let pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut corrected = 0;
    let (mut new, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
    for run in private_runs(&pages, address, length)? {
        let mut at = run.start;
        while at < run.end {
            let size = CHUNK.min((run.end - at) as usize);
            memory.read_exact_at(&mut new[..size], address + at)?;
            corrected += correct_chunk(copy, &new[..size], &mut old[..size], at)?;
            at += size as u64;
        }
    }
    Ok(corrected)
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
