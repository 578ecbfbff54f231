//! Words in this process's own memory.

use alloc::vec::Vec;

use crate::Words;
use crate::sync::{AtomicU64, Ordering};

/// Zeroed words on the heap: for models, for tests, and for two threads of one process.
#[derive(Debug)]
pub struct HeapWords(Vec<AtomicU64>);

impl HeapWords {
    /// Allocates `words` zeroed words.
    pub fn new(words: usize) -> Self {
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Words for HeapWords {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0[at].load(order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.0[at].store(value, order);
    }
}
