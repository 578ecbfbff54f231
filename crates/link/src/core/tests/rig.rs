//! Memory that fails on request, and two cores over it.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};

use throughline_ring::{Class, Geometry, Layout, Ledger, LinkWord, RecordWord, Side};
use throughline_shmem::sync::Ordering;
use throughline_shmem::{AllocateError, HeapWords, Words};

use super::super::{AttachOptions, Bell, Core};
use crate::core::Rung;

pub(super) const RING: u64 = 4096;
pub(super) const PORT: u32 = 7;

/// Unwinds out of an operation without a word: the process is dead.
struct Died;

/// How many stores a side has left. Its region and sidecar are counted together.
pub(super) struct Fuse {
    left: AtomicU64,
    made: AtomicU64,
    /// What happens then, instead of the process's death.
    interruption: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Fuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fuse").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Fuse {
    pub(super) fn new(left: u64) -> Arc<Self> {
        Arc::new(Self { left: AtomicU64::new(left), made: AtomicU64::new(0), interruption: Mutex::default() })
    }

    /// Something happens once, before the store after so many. The process notices nothing.
    pub(super) fn interrupted(left: u64, by: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let fuse = Self::new(left);
        *fuse.interruption.lock().unwrap() = Some(Box::new(by));
        fuse
    }

    fn burn(&self) {
        if self.left.load(Relaxed) == 0 {
            let interruption = self.interruption.lock().unwrap().take();
            interruption.unwrap_or_else(|| resume_unwind(Box::new(Died)))();
            self.left.store(u64::MAX, Relaxed);
        }
        self.left.fetch_sub(1, Relaxed);
        self.made.fetch_add(1, Relaxed);
    }

    /// Stores made so far.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }
}

/// Runs an operation; `None` if the process died in it.
pub(super) fn survives<T>(operation: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(operation))
        .map_err(|cause| {
            if !cause.is::<Died>() {
                resume_unwind(cause)
            }
        })
        .ok()
}

/// Watches what a host loads from the region during one operation.
#[derive(Debug)]
pub(super) struct Inspector {
    /// Loads of each word.
    loads: Vec<AtomicU64>,
    /// Whether the memory behind each word was made to exist.
    exists: Vec<AtomicU64>,
    /// Words that a host has for itself: its pages, and the rings that it writes.
    own: Vec<Range<usize>>,
    /// Words whose second look is an operation of its own: the peer's states.
    twice: Vec<usize>,
    /// Words that only decide on a bell, after each publishing store: sleep and wants.
    often: Vec<usize>,
}

impl Inspector {
    fn new(layout: &Layout, words: usize) -> Self {
        let (first, count) = layout.side_pages(Side::Host);
        let rings = layout.slots().iter().map(|slot| slot.ring_at(Side::Host)..slot.ring_at(Side::Guest));
        let states = (0..layout.slots().len()).map(|slot| layout.record(Side::Guest, slot));
        let wants = [RecordWord::WantData, RecordWord::WantSpace];
        let often = (0..layout.slots().len())
            .flat_map(|slot| wants.map(|want| layout.record(Side::Guest, slot) + want as usize))
            .chain([layout.link_word(Side::Guest, LinkWord::Sleep)]);
        let exists = |word| AtomicU64::new(u64::from(word < layout.control_words()));
        Self {
            exists: (0..words).map(exists).collect(),
            loads: (0..words).map(|_| AtomicU64::new(0)).collect(),
            own: rings.chain(std::iter::once(first..first + count)).collect(),
            twice: states.collect(),
            often: often.collect(),
        }
    }

    /// The next operation begins.
    pub(super) fn begin(&self) {
        self.loads.iter().for_each(|loads| loads.store(0, Relaxed));
    }

    /// Loads of all words since the operation began.
    pub(super) fn total(&self) -> u64 {
        self.loads.iter().map(|loads| loads.load(Relaxed)).sum()
    }

    /// The memory behind these words exists.
    fn allocated(&self, at: usize, count: usize) {
        self.exists[at..at + count].iter().for_each(|exists| exists.store(1, Relaxed));
    }

    fn touch(&self, at: usize) {
        assert!(self.exists[at].load(Relaxed) == 1, "the host touches word {at}, which may not exist");
    }

    fn note(&self, at: usize) {
        self.touch(at);
        assert!(!self.own.iter().any(|own| own.contains(&at)), "the host reads word {at}, its own, from the region");
        let loads = self.loads[at].fetch_add(1, Relaxed) + 1;
        if self.often.contains(&at) {
            return;
        }
        assert!(loads <= 1 + u64::from(self.twice.contains(&at)), "word {at} of the peer is read {loads} times");
    }
}

/// What the peer writes at the very moment at which a word is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trap {
    pub(super) when: usize,
    pub(super) word: usize,
    pub(super) value: u64,
}

/// Words that a side reaches through its fuse.
#[derive(Clone, Debug)]
pub(super) struct Fused {
    pub(super) memory: Arc<HeapWords>,
    fuse: Arc<Fuse>,
    inspector: Option<Arc<Inspector>>,
    trap: Arc<Mutex<Option<Trap>>>,
    /// Words that the file system has left; allocations beyond fail.
    room: Arc<AtomicU64>,
}

impl Words for Fused {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        if let Some(inspector) = &self.inspector {
            inspector.note(at);
        }
        let loaded = self.memory.load(at, order);
        let sprung = self.trap.lock().unwrap().take_if(|trap| trap.when == at);
        if let Some(trap) = sprung {
            self.memory.store(trap.word, trap.value, SeqCst);
        }
        loaded
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.fuse.burn();
        if let Some(inspector) = &self.inspector {
            inspector.touch(at);
        }
        self.memory.store(at, value, order);
    }

    fn allocate(&self, at: usize, count: usize) -> Result<(), AllocateError> {
        let enough = |left: u64| left.checked_sub(count as u64);
        let taken = self.room.fetch_update(SeqCst, SeqCst, enough);
        taken.map_err(|_| AllocateError::NoSpace { bytes: count as u64 * 8 })?;
        if let Some(inspector) = &self.inspector {
            inspector.allocated(at, count);
        }
        Ok(())
    }
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct TestBell {
    pub(super) rung: AtomicU64,
}

impl Bell for TestBell {
    fn ring(&self) -> Rung {
        self.rung.fetch_add(1, SeqCst);
        Rung::Accepted
    }
}

pub(super) type TestCore = Core<Fused, TestBell>;

/// A region, a sidecar, and whoever is attached.
pub(super) struct World {
    pub(super) geometry: Geometry,
    pub(super) layout: Layout,
    pub(super) region: Arc<HeapWords>,
    pub(super) sidecar: Arc<HeapWords>,
    pub(super) room: Arc<AtomicU64>,
    pub(super) listen: Vec<u32>,
    /// Set, it watches every host that attaches.
    pub(super) inspector: Option<Arc<Inspector>>,
    pub(super) trap: Arc<Mutex<Option<Trap>>>,
    attaches: AtomicU64,
}

impl World {
    /// Slot 0 is opened by the host, slot 1 by the guest.
    pub(super) fn new() -> Self {
        Self::with(1)
    }

    /// So many slots that the host opens, then so many that the guest does.
    pub(super) fn with(count: u32) -> Self {
        let class = |opener| Class { opener, count, ring_bytes: RING };
        let geometry = Geometry::new(vec![class(Side::Host), class(Side::Guest)]).unwrap();
        let layout = Layout::new(&geometry);
        // The region's end is never touched: only what is used, to make thousands of worlds cheap.
        let words = layout.control_words() + layout.slots().len() * 2 * RING as usize / 8;
        Self {
            region: Arc::new(HeapWords::new(words)),
            sidecar: Arc::new(HeapWords::new(layout.sidecar_bytes() as usize / 8)),
            room: Arc::new(AtomicU64::new(u64::MAX)),
            listen: vec![PORT],
            inspector: None,
            trap: Arc::default(),
            attaches: AtomicU64::new(0),
            geometry,
            layout,
        }
    }

    /// Watches the hosts that attach from now on.
    pub(super) fn inspect(&mut self) -> Arc<Inspector> {
        let inspector = Arc::new(Inspector::new(&self.layout, self.region.len()));
        self.inspector = Some(inspector.clone());
        inspector
    }

    /// Attaches a side through a fuse.
    pub(super) fn attach(&self, side: Side, fuse: &Arc<Fuse>) -> TestCore {
        let fused = |memory: &Arc<HeapWords>, inspector| Fused {
            memory: memory.clone(),
            fuse: fuse.clone(),
            inspector,
            trap: self.trap.clone(),
            room: self.room.clone(),
        };
        let options = AttachOptions {
            now: std::time::Instant::now(),
            side,
            timeline: 1,
            restored_from: None,
            random: self.attaches.fetch_add(1, SeqCst) << 20,
            listen: self.listen.clone(),
            agent: (side == Side::Guest).then_some(3),
        };
        let sidecar = (side == Side::Host).then(|| fused(&self.sidecar, None));
        let inspector = self.inspector.clone().filter(|_| side == Side::Host);
        let ledger = Ledger::new(fused(&self.region, inspector), sidecar);
        Core::attach(ledger, &self.geometry, TestBell::default(), &options).unwrap()
    }

    /// Attaches a side that lives.
    pub(super) fn living(&self, side: Side) -> TestCore {
        self.attach(side, &Fuse::new(u64::MAX))
    }

    /// A word of the region, as anybody sees it.
    pub(super) fn word(&self, at: usize) -> u64 {
        self.region.load(at, Ordering::SeqCst)
    }
}
