//! Word-addressed memory that somebody else may be writing at the same time.

use crate::sync::Ordering;

/// Bytes in a word.
pub const WORD: usize = 8;

/// Why the memory behind some words could not be made to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// The file system (or the memory limit of this process) has no room left.
    #[error(
        "no space for {bytes} more bytes of shared memory; free some on the file system that holds it (often /dev/shm), or enlarge it"
    )]
    NoSpace {
        /// Bytes that were asked for.
        bytes: u64,
    },
    /// The system refused for another reason.
    #[error("{bytes} bytes of shared memory could not be allocated: system error {errno}")]
    System {
        /// Bytes that were asked for.
        bytes: u64,
        /// The system's error number.
        errno: i32,
    },
}

/// Shared memory, seen as little-endian 64-bit words.
///
/// There are no references into the memory and no slices of it: what is read is a copy, taken once.
/// Every method panics when a word lies outside `0..len()`; callers index with their own geometry,
/// never with a number that the peer wrote.
pub trait Words {
    /// Number of words.
    fn len(&self) -> usize;

    /// Whether there are no words at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads word `at`.
    fn load(&self, at: usize, order: Ordering) -> u64;

    /// Writes word `at`.
    fn store(&self, at: usize, value: u64, order: Ordering);

    /// Copies whole words, starting at word `at`, into `out` (a multiple of [`WORD`] bytes), relaxed.
    fn copy_out(&self, at: usize, out: &mut [u8]) {
        for (word, bytes) in (at..).zip(out.chunks_exact_mut(WORD)) {
            bytes.copy_from_slice(&self.load(word, Ordering::Relaxed).to_le_bytes());
        }
    }

    /// Copies `bytes` (a multiple of [`WORD`] bytes) into whole words, starting at word `at`, relaxed.
    fn copy_in(&self, at: usize, bytes: &[u8]) {
        for (word, chunk) in (at..).zip(bytes.chunks_exact(WORD)) {
            let mut value = [0; WORD];
            value.copy_from_slice(chunk);
            self.store(word, u64::from_le_bytes(value), Ordering::Relaxed);
        }
    }

    /// Zeroes `count` words, starting at word `at`, relaxed.
    fn zero(&self, at: usize, count: usize) {
        for word in at..at + count {
            self.store(word, 0, Ordering::Relaxed);
        }
    }

    /// Makes the memory behind `count` words from word `at` exist, so that touching them can never
    /// fault; their values stay. Words that exist already cost one system call.
    ///
    /// Memory of this process exists anyway, so the default does nothing.
    fn allocate(&self, at: usize, count: usize) -> Result<(), AllocateError> {
        let _ = (at, count);
        Ok(())
    }

    /// Gives the memory behind `count` words from word `at` back to the system, as far as it fills
    /// whole pages. The words read zero afterwards, and must be [allocated](Self::allocate) before
    /// they are touched again.
    ///
    /// The default zeroes the words.
    fn release(&self, at: usize, count: usize) -> Result<(), AllocateError> {
        self.zero(at, count);
        Ok(())
    }
}

/// Handles to words are words.
macro_rules! by_handle {
    ($($handle:ty),*) => {$(
        impl<W: Words + ?Sized> Words for $handle {
            fn len(&self) -> usize {
                (**self).len()
            }
            fn load(&self, at: usize, order: Ordering) -> u64 {
                (**self).load(at, order)
            }
            fn store(&self, at: usize, value: u64, order: Ordering) {
                (**self).store(at, value, order);
            }
            fn copy_out(&self, at: usize, out: &mut [u8]) {
                (**self).copy_out(at, out);
            }
            fn copy_in(&self, at: usize, bytes: &[u8]) {
                (**self).copy_in(at, bytes);
            }
            fn zero(&self, at: usize, count: usize) {
                (**self).zero(at, count);
            }
            fn allocate(&self, at: usize, count: usize) -> Result<(), AllocateError> {
                (**self).allocate(at, count)
            }
            fn release(&self, at: usize, count: usize) -> Result<(), AllocateError> {
                (**self).release(at, count)
            }
        }
    )*};
}

by_handle!(&W, alloc::sync::Arc<W>);
