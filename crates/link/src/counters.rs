//! What a link counts.

// Not of the models: nothing depends on a counter.
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::Rung;

/// Totals since the attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Bells rung and taken.
    pub bells_sent: u64,
    /// Bells not rung, because the peer was awake, had been rung for, or wanted something else.
    pub bells_suppressed: u64,
    /// Bells that found nobody.
    pub bells_lost: u64,
    /// Wake-ups by the doorbell.
    pub bells_received: u64,
    /// Wake-ups by the doorbell that found nothing to do.
    pub bells_fruitless: u64,
    /// Times that the driver waited for the doorbell.
    pub sleeps: u64,
    /// Finds of the backstop that no bell followed. Zero where no bell is lost.
    pub backstop_finds: u64,
}

/// One counter each, in the order of [`Counters`].
#[derive(Debug)]
pub(crate) struct Counting([AtomicU64; 7]);

impl Counting {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn add(&self, counter: usize) {
        self.0[counter].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn rung(&self, rung: Rung) {
        self.add(if rung == Rung::Lost { 2 } else { 0 });
    }

    pub(crate) fn suppressed(&self) {
        self.add(1);
    }

    pub(crate) fn received(&self, fruitless: bool) {
        self.add(3);
        if fruitless {
            self.add(4);
        }
    }

    pub(crate) fn slept(&self) {
        self.add(5);
    }

    pub(crate) fn backstop(&self) {
        self.add(6);
    }

    pub(crate) fn totals(&self) -> Counters {
        let at = |counter: usize| self.0[counter].load(Ordering::Relaxed);
        Counters {
            bells_sent: at(0),
            bells_suppressed: at(1),
            bells_lost: at(2),
            bells_received: at(3),
            bells_fruitless: at(4),
            sleeps: at(5),
            backstop_finds: at(6),
        }
    }
}
