//! A state's print: a hash of all that decides what may happen next.

use std::fmt::{self, Write};
use std::hash::{BuildHasher, Hash, Hasher};

use ahash::{AHasher, RandomState};
use throughline_ring::{LinkWord, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::Relaxed;

use crate::world::{SIDES, World};

impl World {
    /// Two states of one print go on in the same way.
    pub(crate) fn print(&self) -> u64 {
        let mut hasher = RandomState::with_seeds(1, 2, 3, 4).build_hasher();
        self.soft.borrow().hash(&mut hasher);
        // Of a sleep word it matters whether that side sleeps, and whether this very sleep was rung for. Its number
        // only grows, and would make every state another one.
        let sleeps = SIDES.map(|side| self.layout.link_word(side, LinkWord::Sleep));
        for (at, value) in self.region.nonzero() {
            if !sleeps.contains(&at) {
                (at, value).hash(&mut hasher);
            }
        }
        for pair in self.sidecar.nonzero() {
            pair.hash(&mut hasher);
        }
        for side in SIDES {
            let slept = |side| self.region.load(self.layout.link_word(side, LinkWord::Sleep), Relaxed);
            (slept(side) & 1).hash(&mut hasher);
            if let Some(core) = self.core(side) {
                let mut private = Private::new(hasher);
                // Ends with an error: on purpose, where nothing of interest follows.
                let _ = write!(private, "{core:?}");
                (private.rung == slept(peer(side))).hash(&mut private.hasher);
                hasher = private.hasher;
            }
        }
        hasher.finish()
    }
}

fn peer(side: Side) -> Side {
    side.peer()
}

/// What a core has for itself, as its `Debug` tells it: from the ringer on, which is the first that changes, up to the
/// counters, which decide nothing.
struct Private {
    hasher: AHasher,
    tells: bool,
    /// The next number is kept apart.
    apart: Option<Apart>,
    rung: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Apart {
    Rung,
    Episode,
}

impl Private {
    fn new(hasher: AHasher) -> Self {
        Self { hasher, tells: false, apart: None, rung: 0 }
    }
}

impl Write for Private {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        // Between names and values there is nothing to learn, and most pieces are that.
        if matches!(piece.as_bytes().first(), None | Some(b' ' | b',' | b':')) {
            return Ok(());
        }
        match piece {
            "ringer" => self.tells = true,
            "counting" => return Err(fmt::Error),
            _ if !self.tells => return Ok(()),
            "rung" => self.apart = Some(Apart::Rung),
            "episode" => self.apart = Some(Apart::Episode),
            _ => {}
        }
        if let (Some(apart), Ok(number)) = (self.apart, piece.parse()) {
            self.apart = None;
            if apart == Apart::Rung {
                self.rung = number;
            }
            return Ok(());
        }
        self.hasher.write(piece.as_bytes());
        Ok(())
    }
}
