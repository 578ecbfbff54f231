//! RAM that is a file, and its copy: both are mapped before the pause, so that comparing them in it takes neither system
//! calls nor page faults.

use std::fs::File;
use std::io;
use std::ops::Range;

use throughline_shmem::WORD;

use super::pages::{CHUNK, Source, copy_sparse, segments, write_changed};
use crate::zeros::PAGE;

/// How many threads compare. More than two leave nothing for the guest.
const THREADS: usize = 2;

/// RAM, and how far its copy is.
#[derive(Debug)]
pub(super) struct Shared {
    ram: File,
    memory: Source,
    copy: Source,
    length: u64,
    /// What of RAM is no hole. Looking for holes takes as long as comparing a part of what is between them.
    data: Vec<Range<u64>>,
    /// Which pages of the copy are no holes: reading one that is mapped would fill it.
    held: Vec<bool>,
}

impl Shared {
    /// Copies what there is of RAM, while the guest may change it. Also says how many bytes that was.
    pub(super) fn copy(ram: File, to: &File) -> io::Result<(Self, u64)> {
        let length = ram.metadata()?.len();
        to.set_len(length)?;
        let (memory, copy) = (Source::new(&ram, length)?, Source::new(to, length)?);
        let data = segments(&ram, 0..length)?;
        let mut held = vec![false; length as usize / PAGE];
        let mut copied = 0;
        for range in &data {
            copied += copy_sparse(&memory, range, to, |at, copied| held[at as usize / PAGE] = copied)?;
        }
        // Reading RAM has brought its pages in; writing the copy has not.
        for (page, _) in held.iter().enumerate().filter(|(_, held)| **held) {
            copy.read(&mut [0; WORD], (page * PAGE) as u64)?;
        }
        Ok((Self { ram, memory, copy, length, data, held }, copied))
    }

    /// Compares all of RAM to its copy, and writes the pages that differ. Returns how many bytes.
    pub(super) fn correct(&self, to: &File) -> io::Result<u64> {
        let mut data = self.data.clone();
        // Holes of RAM are holes of the copy: guests do not give pages back. But they begin to use some.
        let ends = self.data.iter().map(|range| range.end);
        let begins = self.data.iter().map(|range| range.start);
        for (start, end) in std::iter::once(0).chain(ends).zip(begins.chain([self.length])) {
            data.extend(segments(&self.ram, start..end)?);
        }
        let pieces: Vec<_> = data.into_iter().flat_map(pieces).collect();
        std::thread::scope(|scope| {
            let shares = pieces.chunks(pieces.len().div_ceil(THREADS).max(1));
            let threads: Vec<_> = shares.map(|share| scope.spawn(move || self.correct_pieces(share, to))).collect();
            threads.into_iter().try_fold(0, |sum, thread| {
                let corrected = thread.join().map_err(|_| io::Error::other("a comparing thread panicked"))??;
                Ok(sum + corrected)
            })
        })
    }

    fn correct_pieces(&self, pieces: &[Range<u64>], to: &File) -> io::Result<u64> {
        let mut corrected = 0;
        let (mut new, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
        for piece in pieces {
            let size = (piece.end - piece.start) as usize;
            self.memory.read(&mut new[..size], piece.start)?;
            self.read_copy(&mut old[..size], piece.start)?;
            corrected += write_changed(to, &new[..size], &old[..size], piece.start)?;
        }
        Ok(corrected)
    }

    /// Reads the copy without touching its holes.
    fn read_copy(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let first = at as usize / PAGE;
        let mut start = 0;
        for run in self.held[first..first + bytes.len() / PAGE].chunk_by(|one, next| one == next) {
            let piece = &mut bytes[start..start + run.len() * PAGE];
            if run[0] {
                self.copy.read(piece, at + start as u64)?;
            } else {
                piece.fill(0);
            }
            start += run.len() * PAGE;
        }
        Ok(())
    }
}

/// A range in pieces of what is read at a time.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(CHUNK).map(move |start| start..end.min(start + CHUNK as u64))
}
