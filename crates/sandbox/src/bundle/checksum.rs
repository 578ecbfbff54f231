//! Checksums of large, sparse files. They find damage; they do not find tampering.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

const PAGE: usize = 4096;
const CHUNK: usize = 256 * 1024;

/// The checksum of a file's length and of its pages that are not all zero, with their numbers: the
/// same for a sparse file and for its full copy.
pub(super) fn checksum(file: &File) -> io::Result<u64> {
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
            for (number, page) in (at / PAGE as u64..).zip(piece.chunks(PAGE)) {
                if page.iter().any(|byte| *byte != 0) {
                    sum.update(&number.to_le_bytes());
                    sum.update(page);
                }
            }
            at += piece.len() as u64;
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
}
