//! What two sides share and what survives each: the region, the host's sidecar, the doorbells.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use throughline::core::{AttachOptions, Bell, Core, Rung};
use throughline::{Class, Geometry, Side};
use throughline_modelled::Modelled;
use throughline_ring::{Layout, Ledger, LinkWord, RecordWord};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

pub const PORT: u32 = 7;
pub const RING: u64 = 4096;
pub const SIDES: [Side; 2] = [Side::Host, Side::Guest];
/// The first words of each ring, at which schedules switch too.
const RING_WORDS: usize = 2;

pub type TestCore = Core<Arc<Modelled>, Doorbell>;

/// Where a side hears its bell. No step of it is one of the schedule's: a bell is rung, or taken, at once.
#[derive(Debug, Default)]
pub struct Ear(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    attached: bool,
    rung: bool,
    waker: Option<Waker>,
}

impl Ear {
    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A bell, or a kick of this side's own.
    pub fn ring(&self) -> Rung {
        let waker = {
            let mut heard = self.heard();
            if !heard.attached {
                return Rung::Lost;
            }
            heard.rung = true;
            heard.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Rung::Accepted
    }

    /// Bells of before are lost.
    pub fn attach(&self, attached: bool) {
        *self.heard() = Heard { attached, ..Heard::default() };
    }

    /// Bells that wait to be heard are lost: who rang them has died.
    pub fn forget(&self) {
        self.heard().rung = false;
    }

    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut heard = self.heard();
        if std::mem::take(&mut heard.rung) {
            return Poll::Ready(());
        }
        heard.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Rings the other side.
#[derive(Debug)]
pub struct Doorbell {
    ear: Arc<Ear>,
    /// Bells left before they break: what must be found out.
    left: Arc<AtomicU64>,
}

impl Bell for Doorbell {
    fn ring(&self) -> Rung {
        let broken = self.left.load(Relaxed) == 0;
        self.left.store(self.left.load(Relaxed).saturating_sub(1), Relaxed);
        if broken { Rung::Accepted } else { self.ear.ring() }
    }
}

/// One channel between two sides.
pub struct Line {
    pub geometry: Geometry,
    pub layout: Layout,
    pub region: Arc<Modelled>,
    sidecar: Arc<Modelled>,
    pub ears: [Arc<Ear>; 2],
    attaches: AtomicU64,
    pub bells_left: Arc<AtomicU64>,
}

impl Line {
    pub fn new(opener: Side, bells: u64) -> Self {
        let geometry = Geometry::new(vec![Class { opener, count: 1, ring_bytes: RING }]).unwrap();
        let layout = Layout::new(&geometry);
        let words =
            [RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
        let records = SIDES.into_iter().flat_map(|side| words.map(|word| layout.record(side, 0) + word as usize));
        let sleeps = SIDES.map(|side| layout.link_word(side, LinkWord::Sleep));
        let rings = SIDES.map(|side| layout.slots()[0].ring_at(side));
        let rings = rings.into_iter().flat_map(|ring| ring..ring + RING_WORDS);
        // Nothing touches the region beyond its only slot.
        let count = layout.control_words() + 2 * RING as usize / 8;
        Self {
            region: Arc::new(Modelled::new(count, records.chain(sleeps).chain(rings))),
            sidecar: Arc::new(Modelled::new(layout.sidecar_bytes() as usize / 8, [])),
            ears: Default::default(),
            attaches: AtomicU64::new(0),
            bells_left: Arc::new(AtomicU64::new(bells)),
            geometry,
            layout,
        }
    }

    pub fn attach(&self, side: Side, now: Instant) -> TestCore {
        let options = AttachOptions {
            side,
            now,
            timeline: 1,
            random: (self.attaches.fetch_add(1, Relaxed) + 1) << 20,
            listen: vec![PORT],
            agent: None,
        };
        let ledger = Ledger::new(self.region.clone(), (side == Side::Host).then(|| self.sidecar.clone()));
        let bell = Doorbell { ear: self.ears[side.peer() as usize].clone(), left: self.bells_left.clone() };
        let core = Core::attach(ledger, &self.geometry, bell, &options).unwrap();
        self.ears[side as usize].attach(true);
        core
    }

    /// What a side has published, as anybody sees it.
    pub fn published(&self, side: Side) -> [u64; 3] {
        [RecordWord::State, RecordWord::Produced, RecordWord::Freed]
            .map(|word| self.region.load(self.layout.record(side, 0) + word as usize, Ordering::Acquire))
    }
}
