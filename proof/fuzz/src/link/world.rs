//! A region, a sidecar, and the two cores over them.

use std::sync::Arc;
use std::time::Instant;

use throughline::core::{AttachOptions, Core, Use};
use throughline::{Class, Geometry, Kind, Side};
use throughline_ring::{Layout, Ledger, RecordWord};
use throughline_shmem::sync::Ordering::{Relaxed, SeqCst};
use throughline_shmem::{HeapWords, Words};

use super::model::Model;
use super::process::{NoBell, Process, nobody};
use super::{Act, Place, Rubbish, Who};

pub(super) const RING: u64 = 4096;
const SLOTS: usize = 3;

pub(super) type Memory = Arc<HeapWords>;

pub(super) struct World {
    geometry: Geometry,
    layout: Layout,
    region: Memory,
    sidecar: Memory,
    host: Process,
    /// None once the guest's own words are so damaged that nobody could take over.
    guest: Option<Process>,
    model: Model,
    restores: u128,
}

impl Who {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

/// Slots 0 and 1 are opened by the host, slot 2 by the guest.
fn geometry() -> Geometry {
    let class = |opener, count| Class { opener, count, ring_bytes: RING };
    Geometry::new(vec![class(Side::Host, 2), class(Side::Guest, 1)]).expect("it is possible")
}

fn attach(
    geometry: &Geometry,
    region: &Memory,
    sidecar: Option<&Memory>,
    timeline: u128,
    handles: Vec<(Use, Kind)>,
) -> Option<Process> {
    let options = AttachOptions {
        side: if sidecar.is_some() { Side::Host } else { Side::Guest },
        now: Instant::now(),
        timeline,
        random: 0,
        listen: vec![0, 1],
        agent: sidecar.is_none().then_some(1),
    };
    let ledger = Ledger::new(region.clone(), sidecar.cloned());
    let core = Core::attach(ledger, geometry, NoBell, &options).ok()?;
    Some(Process { core, handles })
}

impl World {
    pub(super) fn new(begin: u64) -> Self {
        let geometry = geometry();
        let layout = Layout::new(&geometry);
        // What lies beyond the rings is never touched.
        let region = Arc::new(HeapWords::new(layout.control_words() + SLOTS * 2 * RING as usize / 8));
        let sidecar = Arc::new(HeapWords::new(layout.sidecar_bytes() as usize / 8));
        for (side, slot) in
            [Side::Host, Side::Guest].into_iter().flat_map(|side| (0..SLOTS).map(move |slot| (side, slot)))
        {
            for word in [RecordWord::Produced, RecordWord::Freed, RecordWord::Taken] {
                let kept = if side == Side::Host { &sidecar } else { &region };
                kept.store(layout.record(side, slot) + word as usize, begin, Relaxed);
            }
        }
        let host = attach(&geometry, &region, Some(&sidecar), 0, Vec::new()).expect("a new region is sound");
        let guest = attach(&geometry, &region, None, 0, Vec::new());
        assert!(guest.is_some());
        Self { geometry, layout, region, sidecar, host, guest, model: Model::default(), restores: 0 }
    }

    fn process(&mut self, who: Who) -> Option<(&mut Process, &mut Model)> {
        match who {
            Who::Host => Some((&mut self.host, &mut self.model)),
            Who::Guest => Some((self.guest.as_mut()?, &mut self.model)),
        }
    }

    pub(super) fn act(&mut self, who: Who, act: Act) {
        if matches!(act, Act::Anew) {
            return self.anew(who);
        }
        let Some((process, model)) = self.process(who) else { return };
        process.act(who, act, model);
        process.look_at_events(model);
    }

    /// A process dies; what it had only staged dies with it.
    fn dies(&mut self, who: Who) {
        let Some((process, model)) = self.process(who) else { return };
        for channel in process.core.channels() {
            let handle = process
                .handles
                .iter()
                .find(|(this, _)| (this.slot, this.generation.number()) == (channel.id.slot, channel.id.generation));
            if let Some((this, _)) = handle {
                model.died(*this, who, channel.sent - channel.sent_from);
            }
        }
    }

    fn anew(&mut self, who: Who) {
        self.dies(who);
        let timeline = self.restores;
        match who {
            Who::Host => {
                let handles = std::mem::take(&mut self.host.handles);
                let host = attach(&self.geometry, &self.region, Some(&self.sidecar), timeline, handles);
                self.host = host.expect("nobody but the host writes its sidecar");
            }
            Who::Guest => {
                // Nobody takes over from a guest that has ruined its own words.
                let Some(guest) = self.guest.take().filter(|_| !self.model.ruined) else { return };
                self.guest = attach(&self.geometry, &self.region, None, timeline, guest.handles);
                assert!(self.guest.is_some());
            }
        }
    }

    /// Both die, and what a snapshot carries is all that is left.
    pub(super) fn restore(&mut self) {
        self.host.core.freeze();
        let (region, sidecar) = (HeapWords::new(self.region.len()), HeapWords::new(self.sidecar.len()));
        let put = |to: &HeapWords, at: u64, bytes: &[u8]| to.copy_in(at as usize / 8, bytes);
        let copied = self.host.core.copy_region(|at, bytes| {
            put(&region, at, bytes);
            Ok::<(), ()>(())
        });
        assert!(
            copied.is_ok()
                && self.host.core.copy_sidecar(|at, bytes| {
                    put(&sidecar, at, bytes);
                    Ok::<(), ()>(())
                }) == Ok(())
        );
        self.dies(Who::Host);
        self.dies(Who::Guest);
        self.restores += 1;
        (self.region, self.sidecar) = (Arc::new(region), Arc::new(sidecar));
        self.anew(Who::Host);
        self.anew(Who::Guest);
    }

    /// The guest writes where it likes.
    pub(super) fn write(&mut self, place: Place, rubbish: Rubbish) {
        let slot = |slot: u8| usize::from(slot) % SLOTS;
        let ring = |slot: usize, from: Side, word: u16| {
            let words = RING as usize / 8;
            let end = self.region.load(self.layout.record(from, slot) + RecordWord::Produced as usize, Relaxed) / 8;
            // Half of them close to where something goes on.
            let near = (end as usize).wrapping_sub(usize::from(word) % 16);
            let word = if word & 0x8000 == 0 { usize::from(word) } else { near };
            self.layout.slots()[slot].ring_at(from) + word % words
        };
        let record = |slot: usize, side: Side, word: u8| self.layout.record(side, slot) + usize::from(word) % 64;
        let (at, lied) = match place {
            Place::Record { slot: s, word } => (record(slot(s), Side::Guest, word), Some(slot(s))),
            Place::HostRecord { slot: s, word } => (record(slot(s), Side::Host, word), Some(slot(s))),
            Place::Ring { slot: s, word } => (ring(slot(s), Side::Guest, word), Some(slot(s))),
            Place::HostRing { slot: s, word } => (ring(slot(s), Side::Host, word), Some(slot(s))),
            Place::Link(word) => (self.layout.side_pages(Side::Guest).0 + usize::from(word), None),
        };
        let old = self.region.load(at, SeqCst);
        let value = match rubbish {
            Rubbish::Any(value) => value,
            Rubbish::Near(by) => old.wrapping_add_signed(by.into()),
            Rubbish::Flip(bit) => old ^ 1 << (bit % 64),
            Rubbish::HostsOwn => self.region.load(at.saturating_sub(self.layout.side_pages(Side::Guest).1), SeqCst),
        };
        self.region.store(at, value, SeqCst);
        self.model.lied.extend(lied);
        self.model.ruined |= matches!(place, Place::Record { .. });
    }

    /// Both sides do all that is left to do; every byte that somebody can still receive arrives.
    pub(super) fn finish(mut self) {
        for who in [Who::Host, Who::Guest] {
            let Some((process, _)) = self.process(who) else { continue };
            process.core.thaw();
            for (this, _) in process.handles.clone() {
                let _ = process.core.poll_flush(this, &mut nobody());
            }
        }
        for _ in 0..2 {
            for who in [Who::Host, Who::Guest] {
                let Some((process, model)) = self.process(who) else { continue };
                process.settle();
                for channel in 0..process.handles.len() {
                    process.receive_all(who, channel as u8, model);
                }
                process.look_at_events(model);
            }
        }
    }
}
