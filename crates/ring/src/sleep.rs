//! Sleeping and waking: one bell per sleep, none while the peer is awake.
//!
//! ```text
//! sleeper                                waker
//!   want = position                        produced = position   (or freed, or state)
//!   fence ─────────────────────────────────  fence
//!   look again at produced                 look at sleep: asleep, and not rung for already?
//!   sleep = asleep                         look at want: reached?
//!   fence                                  ring
//!   look again at all wants
//!   wait for a bell
//! ```
//!
//! Of two stores, each followed by a `SeqCst` fence and a load of the other's word, at least one load
//! sees the other's store. So either the sleeper sees the bytes, or the waker sees that it sleeps and
//! what it wants. Without either fence both may miss, and both sleep for ever.

use throughline_shmem::Words;
use throughline_shmem::sync::{AtomicU64, Ordering, fence};

use crate::{Ledger, NEVER, RecordWord, View};

/// One sleep of a side, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Episode(u64);

/// A side's own sleep word. Only its driver holds it.
#[derive(Debug)]
pub struct Sleeper {
    at: usize,
    episode: u64,
}

impl Sleeper {
    /// Shows that this side is awake. `first` is random, so that a bell rung for a predecessor is not
    /// taken for one rung for this side.
    pub fn attach(ledger: &Ledger<impl Words>, at: usize, first: u64) -> Self {
        let this = Self { at, episode: first >> 1 };
        ledger.show(at, this.episode << 1);
        this
    }

    /// Shows that this side sleeps. After this call, look again at every want; only then wait.
    pub fn fall_asleep(&mut self, ledger: &Ledger<impl Words>) {
        self.episode = self.episode.wrapping_add(1) & (u64::MAX >> 1);
        ledger.show(self.at, self.episode << 1 | 1);
        // Pairs with the fence in `Ringer::claim`.
        fence(Ordering::SeqCst);
    }

    /// Shows that this side is awake again.
    pub fn wake_up(&mut self, ledger: &Ledger<impl Words>) {
        ledger.show(self.at, self.episode << 1);
    }
}

/// Registers a want. After this call, look again; only then pend.
pub fn register(view: &View<'_, impl Words>, word: RecordWord, position: u64) {
    view.show(word, position);
    // Pairs with the fence in `Ringer::claim`.
    fence(Ordering::SeqCst);
}

/// What was published, and so which want decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// My `produced` is here.
    Data(u64),
    /// My `freed` is here.
    Space(u64),
    /// My state changed: always worth a bell.
    State,
}

/// Decides whether the peer must be woken. Shared by all tasks of a side.
#[derive(Debug)]
pub struct Ringer {
    /// Place of the peer's sleep word.
    at: usize,
    /// The peer's sleep word that was rung for; an awake word at first, which never asks for a bell.
    rung: AtomicU64,
}

impl Ringer {
    /// Nothing has been rung for yet. `at` is the place of the peer's sleep word.
    pub fn attach(at: usize) -> Self {
        Self { at, rung: AtomicU64::new(0) }
    }

    /// To be called after every publishing store of a channel. `Some` means: ring now, and tell
    /// [`refused`](Self::refused) if the bell was not taken.
    #[must_use = "the peer sleeps and waits for a bell"]
    #[inline]
    pub fn claim<W: Words>(&self, ledger: &Ledger<W>, view: &View<'_, W>, cause: Cause) -> Option<Episode> {
        self.claim_if(ledger, || match cause {
            Cause::Data(position) => wants(view, RecordWord::WantData, position),
            Cause::Space(position) => wants(view, RecordWord::WantSpace, position),
            Cause::State => true,
        })
    }

    /// The same after a store to a link word, for which the peer always waits.
    #[must_use = "the peer sleeps and waits for a bell"]
    pub fn claim_link(&self, ledger: &Ledger<impl Words>) -> Option<Episode> {
        self.claim_if(ledger, || true)
    }

    #[inline]
    fn claim_if(&self, ledger: &Ledger<impl Words>, reached: impl FnOnce() -> bool) -> Option<Episode> {
        // Pairs with the fences in `Sleeper::fall_asleep` and `register`.
        fence(Ordering::SeqCst);
        let sleep = ledger.alleged(self.at);
        // Claimed before the bell is rung: two tasks that publish at once ring once.
        let claimed = sleep & 1 == 1 && reached() && self.rung.swap(sleep, Ordering::Relaxed) != sleep;
        claimed.then_some(Episode(sleep))
    }

    /// The bell was not taken: whoever publishes next rings again.
    pub fn refused(&self, episode: Episode) {
        let _ = self.rung.compare_exchange(episode.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn wants(view: &View<'_, impl Words>, word: RecordWord, position: u64) -> bool {
    let want = view.alleged(word);
    want != NEVER && position >= want
}
