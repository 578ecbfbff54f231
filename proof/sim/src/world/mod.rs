//! One timeline: a machine, its two processes, the bells between them, and the oracle.

mod bundle;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use throughline::{Geometry, Side};
use throughline_ring::{Layout, LinkWord, RecordWord};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::Relaxed;

use crate::bells::{Bells, Wire};
use crate::call::{Call, End, Outcome, Plan, RING};
use crate::memory::{Fate, Memories, Record, Watch, survives};
use crate::oracle::{Judged, Oracle, Orphans, Violation, check_memory, ensure, find_orphans};
use crate::process::{Process, Start};
use crate::raw::Raw;

pub(crate) use bundle::Bundle;

/// Words of a record that the other side looks at.
const WORDS: [RecordWord; 5] =
    [RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
/// Words that one call may load and store: a few rings, whatever the peer says.
const MOST_WORK: u64 = 6 * RING / 8 + 2000;
pub(crate) const SIDES: [Side; 2] = [Side::Host, Side::Guest];
/// Rounds after which two honest sides that have nothing more to do are quiet.
const MOST_ROUNDS: usize = 40;

/// What all timelines of a run share.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) geometry: Geometry,
    pub(crate) layout: Layout,
    pub(crate) base: Instant,
}

impl Shape {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let layout = Layout::new(&geometry);
        Self { geometry, layout, base: Instant::now() }
    }
}

/// A process's whole life: how it began, and its calls.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    start: Start,
    calls: Vec<Call>,
}

pub(crate) struct World {
    pub(crate) shape: Rc<Shape>,
    pub(crate) memories: Memories,
    pub(crate) oracle: Oracle,
    orphans: Orphans,
    timeline: u128,
    restored_from: Option<u128>,
    processes: [Option<Process>; 2],
    lives: [Option<Life>; 2],
    /// By receiver.
    wires: [Rc<Wire>; 2],
    clock: Rc<Cell<u64>>,
    starts: u64,
    /// Snapshots taken in the middle of calls.
    pub(crate) bundles: Vec<Bundle>,
    /// What happens, line by line, if somebody wants to know.
    pub(crate) trace: Option<Vec<String>>,
}

impl World {
    /// A new machine that nobody is attached to.
    pub(crate) fn new(shape: &Rc<Shape>, timeline: u128) -> Self {
        let layout = &shape.layout;
        // The region's end is never touched: only what is used, to make thousands of worlds cheap.
        let rings: u64 = layout.slots().iter().map(|slot| 2 * slot.ring_bytes / 8).sum();
        let memories = Memories::new(layout.control_words() + rings as usize, layout.sidecar_bytes() as usize / 8);
        let oracle = Oracle::new(layout.slots().iter().map(|slot| slot.opener), timeline);
        Self::with(shape, memories, oracle, Orphans::new(), timeline)
    }

    fn with(shape: &Rc<Shape>, memories: Memories, oracle: Oracle, orphans: Orphans, timeline: u128) -> Self {
        let wire = |side| Wire::new(memories.region.clone(), shape.layout.link_word(side, LinkWord::Sleep));
        Self {
            shape: shape.clone(),
            wires: SIDES.map(wire),
            clock: Rc::new(Cell::new(oracle.now)),
            memories,
            oracle,
            orphans,
            timeline,
            restored_from: None,
            processes: [None, None],
            lives: [None, None],
            starts: 0,
            bundles: Vec::new(),
            trace: None,
        }
    }

    pub(crate) fn timeline(&self) -> u128 {
        self.timeline
    }

    pub(crate) fn is_alive(&self, side: Side) -> bool {
        self.processes[side as usize].is_some()
    }

    pub(crate) fn process(&self, side: Side) -> Option<&Process> {
        self.processes[side as usize].as_ref()
    }

    pub(crate) fn wire_to(&self, side: Side) -> &Wire {
        &self.wires[side as usize]
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    /// Starts a process of a side that has none; it may die in the attach.
    pub(crate) fn attach(&mut self, side: Side, fate: Fate) -> Judged {
        if self.is_alive(side) {
            return Ok(());
        }
        self.starts += 1;
        let start = Start {
            side,
            geometry: self.shape.geometry.clone(),
            base: self.shape.base,
            timeline: self.timeline,
            restored_from: self.restored_from.filter(|_| side == Side::Host),
            random: self.starts << 20,
            now: self.clock.get(),
        };
        let watch = Watch::new(self.memories.clone(), Record::default());
        let started = self.start(&start, &watch, fate);
        if let Some(image) = watch.take_image() {
            let guest = match side {
                Side::Host => self.lives[Side::Guest as usize].clone(),
                Side::Guest => Some(Life { start: start.clone(), calls: Vec::new() }),
            };
            self.bundle(image, side, (self.oracle.clone(), self.orphans.clone()), None, guest);
        }
        self.note(|| format!("{side:?} starts ({fate:?}): {}", if started.is_some() { "lives" } else { "dies" }));
        if let Some(process) = started {
            self.processes[side as usize] = Some(process);
            self.lives[side as usize] = Some(Life { start, calls: Vec::new() });
            self.oracle.attached(side);
        } else {
            let raw = Raw { memories: &self.memories, layout: &self.shape.layout };
            self.oracle.died(side, None, &raw)?;
            find_orphans(&raw, side, &mut self.orphans);
        }
        Ok(())
    }

    fn start(&self, start: &Start, watch: &Rc<Watch>, fate: Fate) -> Option<Process> {
        let out = &self.wires[start.side.peer() as usize];
        let into = &self.wires[start.side as usize];
        out.forget();
        out.set_unconditional(true);
        watch.set_fate(fate);
        let started = survives(|| Process::start(start, watch, [out.clone(), into.clone()], &self.clock));
        watch.set_fate(Fate::Lives);
        out.set_unconditional(false);
        started
    }

    /// Has a process do something; `None` where there is nothing to do, or nobody.
    pub(crate) fn call(&mut self, side: Side, call: Call, fate: Fate) -> Judged<Option<Outcome>> {
        let Some(process) = &mut self.processes[side as usize] else { return Ok(None) };
        let Some(plan) = process.plan(&call) else { return Ok(None) };
        if call == Call::Tick {
            self.clock.set(self.clock.get() + crate::call::TICK_MS);
            self.oracle.now = self.clock.get();
        }
        let before = matches!(fate, Fate::IsCopied(_)).then(|| (self.oracle.clone(), self.orphans.clone()));
        if let Some(life) = &mut self.lives[side as usize] {
            life.calls.push(call);
        }
        process.watch().set_fate(fate);
        let work = process.watch().work();
        let outcome = survives(|| process.perform(&plan));
        process.watch().set_fate(Fate::Lives);
        let image = process.watch().take_image();
        let complaint = process.take_complaint();
        let work = process.watch().work() - work;
        ensure!(work <= MOST_WORK, "{side:?}: {call:?} made {work} loads and stores");
        self.note(|| {
            format!("{side:?} {} ({fate:?}): {}", brief(&plan), outcome.as_ref().map_or("dies".into(), short))
        });
        if let (Some(image), Some((oracle, orphans))) = (image, before) {
            let guest = self.lives[Side::Guest as usize].clone();
            self.bundle(image, side, (oracle, orphans), Some(plan.clone()), guest);
        }
        if let Some(complaint) = complaint {
            return Err(Violation(format!("{side:?}: {complaint}")));
        }
        match &outcome {
            Some(outcome) => self.done(side, &plan, outcome)?,
            None => self.bury(side, Some(&plan))?,
        }
        Ok(outcome)
    }

    fn done(&mut self, side: Side, plan: &Plan, outcome: &Outcome) -> Judged {
        self.oracle.judge(side, plan, outcome)?;
        let raw = Raw { memories: &self.memories, layout: &self.shape.layout };
        self.oracle.check_kept(side, &raw)?;
        if let Outcome::Found(count) = outcome {
            // Who dies between a store and its bell is succeeded by one who rings.
            let told = self.wire_to(side).is_faultless() && self.is_alive(side.peer());
            let missed = *count > 0 && told && !self.oracle.is_frozen(side);
            ensure!(!missed, "the backstop of {side:?} finds {count} things that no bell told of, and none was lost");
        }
        Ok(())
    }

    fn bury(&mut self, side: Side, plan: Option<&Plan>) -> Judged {
        self.processes[side as usize] = None;
        self.lives[side as usize] = None;
        let raw = Raw { memories: &self.memories, layout: &self.shape.layout };
        self.oracle.died(side, plan, &raw)?;
        find_orphans(&raw, side, &mut self.orphans);
        Ok(())
    }

    /// Kills a process between two calls.
    pub(crate) fn kill(&mut self, side: Side) -> Judged {
        if self.is_alive(side) {
            self.note(|| format!("{side:?} is killed"));
            self.bury(side, None)?;
        }
        Ok(())
    }

    pub(crate) fn set_bells(&mut self, to: Side, way: Bells) {
        self.note(|| format!("bells to {to:?}: {way:?}"));
        self.wires[to as usize].set_way(way);
    }

    /// A hostile guest writes a word: of a slot's record or rings, of the host's record of it, or of its own
    /// link words.
    pub(crate) fn scribble(&mut self, slot: u8, word: u16, value: u64) {
        let layout = &self.shape.layout;
        let slots = layout.slots().len();
        let slot = usize::from(slot) % (slots + 1);
        let word = usize::from(word);
        let at = if slot == slots {
            let words = [LinkWord::Sleep, LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent];
            layout.link_word(Side::Guest, words[word % words.len()])
        } else {
            match word % 8 {
                0..5 => layout.record(Side::Guest, slot) + WORDS[word / 8 % WORDS.len()] as usize,
                5 => layout.record(Side::Host, slot) + WORDS[word / 8 % WORDS.len()] as usize,
                6 => layout.slots()[slot].ring_at(Side::Host) + word % (RING as usize / 8),
                _ => layout.slots()[slot].ring_at(Side::Guest) + word % (RING as usize / 8),
            }
        };
        self.oracle.spoil((slot < slots).then_some(slot));
        for wire in &self.wires {
            wire.distrust();
        }
        self.note(|| format!("the guest writes {value:#x} at {at}, slot {slot} of {slots}"));
        self.memories.region.store(at, value, Relaxed);
    }

    /// Checks the whole memory.
    pub(crate) fn check_memory(&self) -> Judged {
        let raw = Raw { memories: &self.memories, layout: &self.shape.layout };
        check_memory(&self.oracle, &raw, &self.orphans, SIDES.map(|side| self.is_alive(side)))
    }

    /// Nobody does anything but what the drivers do, until both sleep. Then no wait that could be served
    /// is left. Both must live, unfrozen.
    pub(crate) fn quiet(&mut self) -> Judged {
        if !SIDES.iter().all(|side| self.is_alive(*side) && !self.oracle.is_frozen(*side)) {
            return Ok(());
        }
        let mut ticks = 0;
        for _ in 0..MOST_ROUNDS {
            if SIDES.iter().any(|side| !self.process(*side).is_some_and(Process::is_sound_asleep)) {
                for side in SIDES {
                    self.call(side, Call::Drive, Fate::Lives)?;
                }
            } else if ticks < 3 && SIDES.iter().any(|side| !self.wire_to(*side).is_faultless()) {
                // Bells were lost: the backstop finds what they were for.
                ticks += 1;
                for side in SIDES {
                    self.call(side, Call::Tick, Fate::Lives)?;
                }
            } else {
                return self.check_waits();
            }
        }
        Err(Violation("it never gets quiet".to_owned()))
    }

    fn check_waits(&mut self) -> Judged {
        let raw = Raw { memories: &self.memories, layout: &self.shape.layout };
        for side in SIDES {
            let waiting = self.processes[side as usize].as_ref().map(|process| process.desk().waiting());
            for plan in waiting.into_iter().flatten() {
                self.oracle.check_wait(side, &plan, &raw)?;
            }
        }
        Ok(())
    }

    /// Whether a channel that a process holds is one that a hostile guest spoilt.
    pub(crate) fn is_held_spoilt(&self, side: Side, channel: usize) -> bool {
        let slot = self.process(side).and_then(|process| process.desk().slot(channel));
        slot.is_some_and(|slot| self.oracle.is_spoilt(slot))
    }

    /// Whether every slot is free, and all that was sent has been freed.
    pub(crate) fn is_settled(&self) -> bool {
        let raw = Raw { memories: &self.memories, layout: &self.shape.layout };
        let word = |side, slot, word| raw.shown(side, slot, word);
        (0..self.shape.layout.slots().len()).filter(|slot| !self.oracle.is_spoilt(*slot)).all(|slot| {
            let states = SIDES.map(|side| word(side, slot, RecordWord::State));
            let empty =
                |from: Side| word(from, slot, RecordWord::Produced) == word(from.peer(), slot, RecordWord::Freed);
            states[0] == states[1] && states[0].trailing_zeros() >= 2 && SIDES.into_iter().all(empty)
        })
    }
}

fn brief(plan: &Plan) -> String {
    let mut text = format!("{:?}", plan.action);
    if let crate::call::Action::Write { payload, feed } = &plan.action {
        text = format!("Write {{ {} bytes, feed: {feed} }}", payload.len());
    }
    plan.on
        .map_or(text.clone(), |(slot, generation, kind)| format!("{text} on slot {slot} use {generation} ({kind:?})"))
}

fn short(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Got(bytes) => format!("Got {} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}
