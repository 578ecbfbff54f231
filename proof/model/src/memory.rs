//! The words of one process, which may be met or die at any of its accesses.

use std::cell::Cell;
use std::fmt;
use std::panic::resume_unwind;
use std::rc::{Rc, Weak};

use throughline::core::{Bell, Rung};
use throughline_ring::Side;
use throughline_shmem::sync::Ordering;
use throughline_shmem::{HeapWords, Words};

use crate::action::Op;
use crate::world::World;

/// Unwinds out of an operation without a word: the process is dead.
pub(crate) struct Died;

/// What is to happen in the middle of an operation.
#[derive(Clone, Copy, Default)]
pub(crate) enum Armed {
    #[default]
    Nothing,
    /// Before so many more accesses to the region, the peer does this.
    Meets(u16, Op),
    /// Before so many more stores, to the region or the sidecar, the process dies.
    Dies(u16),
}

/// One process's way to its memory.
pub(crate) struct Tap {
    world: Weak<World>,
    side: Side,
    armed: Cell<Armed>,
    /// Accesses to the region since the operation began,
    shared: Cell<u16>,
    /// and stores, to the region or the sidecar.
    stores: Cell<u16>,
}

impl Tap {
    pub(crate) fn new(world: Weak<World>, side: Side) -> Self {
        Self { world, side, armed: Cell::default(), shared: Cell::new(0), stores: Cell::new(0) }
    }

    /// An operation begins.
    pub(crate) fn begin(&self, armed: Armed) {
        self.armed.set(armed);
        self.shared.set(0);
        self.stores.set(0);
    }

    /// It is over: whether what was armed has happened.
    pub(crate) fn end(&self) -> bool {
        matches!(self.armed.take(), Armed::Nothing)
    }

    /// How many accesses to the region the operation made, and how many stores.
    pub(crate) fn made(&self) -> (u16, u16) {
        (self.shared.get(), self.stores.get())
    }

    fn touch(&self, stores: bool, shared: bool) {
        self.shared.set(self.shared.get().saturating_add(u16::from(shared)));
        self.stores.set(self.stores.get().saturating_add(u16::from(stores)));
        match self.armed.get() {
            Armed::Nothing => {}
            Armed::Meets(0, op) => {
                if shared {
                    self.armed.set(Armed::Nothing);
                    if let Some(world) = self.world.upgrade() {
                        world.met(self.side.peer(), op);
                    }
                }
            }
            Armed::Meets(left, op) => self.armed.set(Armed::Meets(left - u16::from(shared), op)),
            Armed::Dies(0) if stores => {
                self.armed.set(Armed::Nothing);
                resume_unwind(Box::new(Died));
            }
            Armed::Dies(left) => self.armed.set(Armed::Dies(left - u16::from(stores))),
        }
    }
}

/// Words, and which of them were written: few are, and only those go into a state's print.
pub(crate) struct Noted {
    words: HeapWords,
    written: Box<[Cell<u64>]>,
}

impl Noted {
    pub(crate) fn new(words: usize) -> Self {
        Self { words: HeapWords::new(words), written: vec![Cell::new(0); words.div_ceil(64)].into() }
    }

    /// All words that are not zero, with their places, in order.
    pub(crate) fn nonzero(&self) -> impl Iterator<Item = (usize, u64)> {
        let places = self.written.iter().enumerate().flat_map(|(index, bits)| {
            let mut bits = bits.get();
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(index * 64 + bit)
            })
        });
        places.map(|at| (at, self.words.load(at, Ordering::Relaxed))).filter(|(_, value)| *value != 0)
    }
}

impl Words for Noted {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.words.load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        let bits = &self.written[at / 64];
        bits.set(bits.get() | 1 << (at % 64));
        self.words.store(at, value, order);
    }
}

/// Words that a process reaches through its tap.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) words: Rc<Noted>,
    pub(crate) tap: Rc<Tap>,
    /// Whether the peer reaches them too.
    pub(crate) shared: bool,
}

impl fmt::Debug for Memory {
    /// Says nothing: the words go into a state's print by themselves.
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Words for Memory {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.tap.touch(false, self.shared);
        self.words.load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.tap.touch(true, self.shared);
        self.words.store(at, value, order);
    }
}

/// The doorbells of both directions, by the side that they wake.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// A bell is on its way.
    pub(crate) pending: [Cell<bool>; 2],
    /// The next bell finds nobody.
    pub(crate) hung: [Cell<bool>; 2],
    /// Somebody is at the end.
    pub(crate) there: [Cell<bool>; 2],
    /// The last bell found nobody.
    pub(crate) lost: [Cell<bool>; 2],
    /// Attempts since the operation began,
    pub(crate) rings: [Cell<u8>; 2],
    /// and those that did not find nobody.
    pub(crate) taken: [Cell<u8>; 2],
}

impl Lines {
    /// Nothing is on its way any more, in either direction.
    pub(crate) fn cut(&self) {
        self.pending.iter().for_each(|pending| pending.set(false));
    }
}

/// One side's way to ring the other.
#[derive(Clone)]
pub(crate) struct Ring {
    pub(crate) lines: Rc<Lines>,
    pub(crate) to: Side,
}

impl fmt::Debug for Ring {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl Bell for Ring {
    fn ring(&self) -> Rung {
        let (lines, to) = (&self.lines, self.to as usize);
        lines.rings[to].set(lines.rings[to].get().saturating_add(1));
        let lost = !lines.there[to].get() || lines.hung[to].take();
        lines.lost[to].set(lost);
        if lost {
            return Rung::Lost;
        }
        lines.taken[to].set(lines.taken[to].get() + 1);
        if lines.pending[to].replace(true) { Rung::Pending } else { Rung::Accepted }
    }
}
