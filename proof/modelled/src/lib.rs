//! Memory of which a model checker sees the words that matter, and loom's runs over it.
//!
//! A region has thousands of words, and each one that is modelled costs every execution time. The words that
//! threads share in a model are modelled; the rest is plain memory, of which every thread sees the last store.

#[cfg(loom)]
mod explore;

use std::sync::atomic::AtomicU64 as Plain;

use throughline_shmem::Words;
use throughline_shmem::sync::{AtomicU64, Ordering};

#[cfg(loom)]
pub use explore::explore;

/// Words of which only some are modelled.
#[derive(Debug)]
pub struct Modelled {
    shared: Vec<AtomicU64>,
    /// For each word, its place in `shared` plus one; zero: it is plain.
    places: Box<[u16]>,
    rest: Box<[Plain]>,
}

impl Modelled {
    /// So many zeroed words, of which those in `shared` are modelled. Only inside a model.
    pub fn new(words: usize, shared: impl IntoIterator<Item = usize>) -> Self {
        let mut this = Self {
            shared: Vec::new(),
            places: vec![0; words].into(),
            rest: (0..words).map(|_| Plain::new(0)).collect(),
        };
        for at in shared {
            this.shared.push(AtomicU64::new(0));
            this.places[at] = this.shared.len() as u16;
        }
        this
    }

    fn modelled(&self, at: usize) -> Option<&AtomicU64> {
        usize::from(self.places[at]).checked_sub(1).map(|place| &self.shared[place])
    }
}

impl Words for Modelled {
    fn len(&self) -> usize {
        self.rest.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        check_order(order);
        self.modelled(at).map_or_else(|| self.rest[at].load(order), |word| word.load(order))
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        check_order(order);
        match self.modelled(at) {
            Some(word) => word.store(value, order),
            None => self.rest[at].store(value, order),
        }
    }
}

/// Loom takes sequentially consistent accesses for weaker ones, and so would not show what rests on them. What
/// must be sequentially consistent is a fence, which it models.
fn check_order(order: Ordering) {
    assert_ne!(order, Ordering::SeqCst, "an access of shared words that is SeqCst: use a fence, which models know");
}
