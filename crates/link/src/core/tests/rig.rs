//! Memory that fails on request, and two cores over it.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
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

/// Watches what a side loads from the region during one operation.
///
/// A task that registers a want, and a driver that shows that it sleeps, look again: that is an operation of its own.
#[derive(Debug)]
pub(super) struct Inspector {
    side: Side,
    /// Loads of each word.
    loads: Vec<AtomicU64>,
    /// Whether the memory behind each word was made to exist.
    exists: Vec<AtomicU64>,
    /// Words that a side never looks at: its pages (a guest's, which has no sidecar, it may), and the rings that
    /// it writes.
    own: Vec<Range<usize>>,
    /// Words whose second look is an operation of its own: the peer's states, before and after a copy; its link
    /// words, before and after a task registers, and before and after an identity.
    twice: Vec<usize>,
    /// Words that only decide on a bell, after each publishing store: sleep and wants.
    often: Vec<usize>,
    /// My sleep word.
    sleep: usize,
    /// My wants, with what is looked at again for each: the peer's record and its ring.
    wants: Vec<(usize, [Range<usize>; 2])>,
    /// First word and number of words of the side's pages.
    own_pages: (usize, usize),
    /// Whether a snapshot is being copied: it passes on what it does not judge.
    copies: AtomicBool,
}

const WANTS: [RecordWord; 2] = [RecordWord::WantData, RecordWord::WantSpace];

impl Inspector {
    fn new(layout: &Layout, words: usize, side: Side) -> Self {
        let (peer, slots) = (side.peer(), 0..layout.slots().len());
        let (first, count) = layout.side_pages(side);
        let ring = |slot: usize, from| {
            let at = layout.slots()[slot].ring_at(from);
            at..at + layout.slots()[slot].ring_bytes as usize / 8
        };
        let record = |slot| layout.record(peer, slot)..layout.record(peer, slot) + 64;
        let want = |side, slot| WANTS.map(|want| layout.record(side, slot) + want as usize);
        let again = |slot| want(side, slot).map(|at| (at, [record(slot), ring(slot, peer)]));
        let link = [LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent].map(|word| layout.link_word(peer, word));
        let exists = |word| AtomicU64::new(u64::from(word < layout.control_words()));
        Self {
            side,
            exists: (0..words).map(exists).collect(),
            loads: (0..words).map(|_| AtomicU64::new(0)).collect(),
            own: slots
                .clone()
                .map(|slot| ring(slot, side))
                .chain((side == Side::Host).then_some(first..first + count))
                .collect(),
            twice: slots.clone().map(|slot| layout.record(peer, slot)).chain(link).collect(),
            often: slots
                .clone()
                .flat_map(|slot| want(peer, slot))
                .chain([layout.link_word(peer, LinkWord::Sleep)])
                .collect(),
            sleep: layout.link_word(side, LinkWord::Sleep),
            wants: slots.flat_map(again).collect(),
            own_pages: (first, count),
            copies: AtomicBool::new(false),
        }
    }

    /// The next operation begins.
    pub(super) fn begin(&self) {
        self.loads.iter().for_each(|loads| loads.store(0, Relaxed));
    }

    /// The same of one that copies a snapshot.
    pub(super) fn begin_copy(&self, copies: bool) {
        self.copies.store(copies, Relaxed);
        self.begin();
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
        assert!(self.exists[at].load(Relaxed) == 1, "the {:?} touches word {at}, which may not exist", self.side);
    }

    fn stored(&self, at: usize) {
        self.touch(at);
        if at == self.sleep {
            self.begin();
        }
        for word in
            self.wants.iter().filter(|(want, _)| *want == at).flat_map(|(_, again)| again.iter().cloned().flatten())
        {
            self.loads[word].store(0, Relaxed);
        }
    }

    fn note(&self, at: usize) {
        self.touch(at);
        let copies = self.copies.load(Relaxed);
        let own = self.own.iter().any(|own| own.contains(&at));
        assert!(copies || !own, "the {:?} reads word {at}, its own, from the region", self.side);
        let loads = self.loads[at].fetch_add(1, Relaxed) + 1;
        // A guest's own pages are its memory of itself.
        let (first, count) = self.own_pages;
        if self.often.contains(&at) || (first..first + count).contains(&at) {
            return;
        }
        let most = 1 + u64::from(copies || self.twice.contains(&at));
        assert!(loads <= most, "word {at} of the peer is read {loads} times");
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
            inspector.stored(at);
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
    /// Set, it watches its side whenever that attaches.
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
        Self::opened_first_by(Side::Host, count)
    }

    /// So many slots that one side opens, then so many that the other does.
    pub(super) fn opened_first_by(side: Side, count: u32) -> Self {
        let class = |opener| Class { opener, count, ring_bytes: RING };
        let geometry = Geometry::new(vec![class(side), class(side.peer())]).unwrap();
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

    /// Watches whoever attaches on this side from now on.
    pub(super) fn inspect(&mut self, side: Side) -> Arc<Inspector> {
        let inspector = Arc::new(Inspector::new(&self.layout, self.region.len(), side));
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
            random: self.attaches.fetch_add(1, SeqCst) << 20,
            listen: self.listen.clone(),
            agent: (side == Side::Guest).then_some(3),
        };
        let sidecar = (side == Side::Host).then(|| fused(&self.sidecar, None));
        let inspector = self.inspector.clone().filter(|inspector| inspector.side == side);
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
