//! Checksums of large, sparse files. They find damage; they do not find tampering.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::zeros::{PAGE, is_zero};

const CHUNK: usize = 256 * 1024;

/// The checksum of a file's length and of its pages that are not all zero, with their numbers: the
/// same for a sparse file and for its full copy.
pub(super) fn checksum(file: &File) -> io::Result<u64> {
    sum_up(file, |_| {})
}

/// The same of a file open for writing, of which it gives back the memory or disk that holds nothing but zeros:
/// a guest's kernel clears far more pages than it uses.
pub(super) fn checksum_and_trim(file: &File) -> io::Result<u64> {
    sum_up(file, |zeros| {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where a file system knows no holes, the file stays as it is.
        let _ = fallocate(file, punch, zeros.start, zeros.end - zeros.start);
    })
}

/// Calls `zeros` with each run of pages, in bytes, that are there and hold nothing.
fn sum_up(file: &File, mut zeros: impl FnMut(Range<u64>)) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut sum = Xxh3::new();
    sum.update(&length.to_le_bytes());
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / PAGE as u64 * PAGE as u64,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data.max(at)))?.next_multiple_of(PAGE as u64).min(length);
        at = data;
        while at < hole {
            let piece = &mut buffer[..CHUNK.min((hole - at) as usize)];
            file.read_exact_at(piece, at)?;
            let mut empty = at..at;
            for page in piece.chunks(PAGE) {
                if is_zero(page) {
                    empty.end = at + page.len() as u64;
                } else {
                    if !empty.is_empty() {
                        zeros(empty);
                    }
                    sum.update(&(at / PAGE as u64).to_le_bytes());
                    sum.update(page);
                    empty = at + page.len() as u64..at + page.len() as u64;
                }
                at += page.len() as u64;
            }
            if !empty.is_empty() {
                zeros(empty);
            }
        }
    }
    Ok(sum.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pages: &[(u64, u8)], length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        for (page, value) in pages {
            file.write_all_at(&[*value; 3000], page * PAGE as u64 + 5).unwrap();
        }
        file
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_all_else_is_not() {
        let sum = |pages: &[(u64, u8)], length| checksum(&file(pages, length)).unwrap();
        let length = 100 * PAGE as u64;
        let sparse = sum(&[(3, 1), (70, 2)], length);
        assert_eq!(sparse, sum(&[(3, 1), (10, 0), (70, 2), (99, 0)], length));
        assert_ne!(sparse, sum(&[(4, 1), (70, 2)], length), "a page that moved");
        assert_ne!(sparse, sum(&[(3, 1), (70, 3)], length), "a page that changed");
        assert_ne!(sparse, sum(&[(3, 1), (70, 2)], length - 1), "another length");
        assert_eq!(sum(&[], 0), sum(&[], 0));
    }

    #[test]
    fn trimming_gives_back_what_holds_nothing_and_changes_nothing() {
        use std::os::unix::fs::MetadataExt;
        let length = 200 * PAGE as u64 + 7;
        let full = file(&[], length);
        full.write_all_at(&vec![0; length as usize], 0).unwrap();
        for page in [0, 3, 63, 64, 150] {
            full.write_all_at(&[9], page * PAGE as u64 + 1000).unwrap();
        }
        let before = full.metadata().unwrap().blocks();
        let sum = checksum(&full).unwrap();
        assert_eq!(checksum_and_trim(&full).unwrap(), sum);
        assert_eq!(checksum(&full).unwrap(), sum);
        let after = full.metadata().unwrap();
        assert_eq!(after.len(), length);
        assert!(after.blocks() * 10 < before, "{} of {before} blocks are left", after.blocks());
    }
}
