//! Two processes over one region, what is around them, and an onlooker.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use throughline::core::{AttachOptions, Core, Use};
use throughline_ring::{Class, Geometry, Layout, Ledger, RecordWord, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::Relaxed;

use crate::action::{Action, Cut, Op};
use crate::memory::{Armed, Lines, Memory, Noted, Ring, Tap};
use crate::scenario::{RING, Scenario};
use crate::soft::{Soft, Task};

/// The port that is listened on.
pub(crate) const PORT: u32 = 7;
/// The slot that all of it is about.
pub(crate) const SLOT: usize = 0;
pub(crate) const SIDES: [Side; 2] = [Side::Host, Side::Guest];

pub(crate) type ModelCore = Core<Memory, Ring>;

thread_local! {
    /// Which tasks were woken, by side. One world runs on a thread at a time.
    static WOKEN: Cell<[u8; 2]> = const { Cell::new([0; 2]) };
}

/// A task of any world: its waker is the same for all, so that a core's print depends on nothing else.
struct Woken(Side, Task);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut woken = WOKEN.get();
        woken[self.0 as usize] |= 1 << self.1 as u8;
        WOKEN.set(woken);
    }
}

static WAKERS: LazyLock<[[Waker; 3]; 2]> = LazyLock::new(|| {
    let tasks = [Task::Reader, Task::Writer, Task::Opener];
    SIDES.map(|side| tasks.map(|task| Waker::from(Arc::new(Woken(side, task)))))
});

/// All there is.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) layout: Layout,
    geometry: Geometry,
    pub(crate) region: Rc<Noted>,
    pub(crate) sidecar: Rc<Noted>,
    taps: [Rc<Tap>; 2],
    pub(crate) cores: RefCell<[Option<Rc<ModelCore>>; 2]>,
    pub(crate) lines: Rc<Lines>,
    pub(crate) soft: RefCell<Soft>,
    /// What the applications hold.
    pub(crate) uses: [Cell<Option<Use>>; 2],
    attaches: Cell<u64>,
    /// What was to happen in the middle of an operation could not.
    missed: Cell<bool>,
    /// Which promise was broken first.
    pub(crate) broken: Cell<Option<&'static str>>,
}

impl World {
    /// Both sides attached, nothing done.
    pub(crate) fn new(scenario: &Scenario) -> Rc<Self> {
        let class = Class { opener: scenario.opener, count: 1, ring_bytes: RING };
        let geometry = Geometry::new(vec![class]).expect("a geometry");
        let layout = Layout::new(&geometry);
        // The region's end is never touched.
        let words = layout.slots()[SLOT].ring_at(Side::Guest) + RING as usize / 8;
        let world = Rc::new_cyclic(|world: &Weak<Self>| Self {
            scenario: *scenario,
            region: Rc::new(Noted::new(words)),
            sidecar: Rc::new(Noted::new(layout.sidecar_bytes() as usize / 8)),
            taps: SIDES.map(|side| Rc::new(Tap::new(world.clone(), side))),
            cores: RefCell::default(),
            lines: Rc::default(),
            soft: RefCell::new(Soft::new(scenario)),
            uses: Default::default(),
            attaches: Cell::new(0),
            missed: Cell::new(false),
            broken: Cell::new(None),
            geometry,
            layout,
        });
        WOKEN.set([0; 2]);
        world.begin();
        for side in SIDES {
            world.run(side, Op::Attach);
        }
        // What the attaches rang for is over.
        world.lines.cut();
        world
    }

    fn begin(&self) {
        for side in SIDES {
            for word in [RecordWord::Produced, RecordWord::Freed, RecordWord::Taken] {
                let at = self.layout.record(side, SLOT) + word as usize;
                self.region.store(at, self.scenario.begin, Relaxed);
                if side == Side::Host {
                    self.sidecar.store(at, self.scenario.begin, Relaxed);
                }
            }
        }
    }

    /// One step of a run; `false` where it cannot be taken.
    pub(crate) fn act(&self, action: Action) -> bool {
        let Action { side, op, cut } = action;
        if !self.soft.borrow().allows(&self.scenario, side, op) {
            return false;
        }
        self.lines.rings.iter().chain(&self.lines.taken).for_each(|bells| bells.set(0));
        self.missed.set(false);
        let before = *self.soft.borrow();
        let published = self.published(side);
        let tap = &self.taps[side as usize];
        let happened = match cut {
            Cut::Whole => {
                tap.begin(Armed::Nothing);
                self.survive(|| self.run(side, op));
                self.check_bells(side, op, &before, published);
                tap.end()
            }
            Cut::Meets(at, between) => {
                self.soft.borrow_mut().left.meets -= 1;
                tap.begin(Armed::Meets(at, between));
                self.survive(|| self.run(side, op));
                tap.end() && !self.missed.get()
            }
            Cut::Dies(at) => {
                self.soft.borrow_mut().left.deaths_inside -= 1;
                tap.begin(Armed::Dies(at));
                let died = self.survive(|| self.run(side, op));
                if died {
                    self.die(side);
                }
                tap.end();
                died
            }
        };
        if op != Op::Restore {
            self.check_words(side);
        }
        self.note();
        happened
    }

    /// Runs an operation; returns whether the process died in it, as it was to.
    fn survive(&self, operation: impl FnOnce()) -> bool {
        let Err(cause) = catch_unwind(AssertUnwindSafe(operation)) else { return false };
        if !cause.is::<crate::memory::Died>() {
            self.breaks("an operation panicked");
        }
        true
    }

    /// In the middle of the peer's operation.
    pub(crate) fn met(&self, side: Side, op: Op) {
        self.note();
        if !op.goes_between() || !self.soft.borrow().allows(&self.scenario, side, op) {
            self.missed.set(true);
            return;
        }
        self.taps[side as usize].begin(Armed::Nothing);
        self.run(side, op);
    }

    /// Takes over what tasks and doorbells know.
    pub(crate) fn note(&self) {
        let mut soft = self.soft.borrow_mut();
        for side in 0..2 {
            soft.woken[side] = WOKEN.get()[side] & soft.blocked[side];
            soft.pending[side] = self.lines.pending[side].get();
            soft.hung[side] = self.lines.hung[side].get();
            soft.lost[side] = self.lines.lost[side].get();
        }
    }

    pub(crate) fn breaks(&self, promise: &'static str) {
        if self.broken.get().is_none() {
            self.broken.set(Some(promise));
        }
    }

    pub(crate) fn check(&self, holds: bool, promise: &'static str) {
        if !holds {
            self.breaks(promise);
        }
    }

    /// A word of a side's record, as everybody sees it.
    pub(crate) fn word(&self, side: Side, word: RecordWord) -> u64 {
        self.region.load(self.layout.record(side, SLOT) + word as usize, Relaxed)
    }

    /// A word of a side's record, as its successor finds it.
    pub(crate) fn kept(&self, side: Side, word: RecordWord) -> u64 {
        let memory = if side == Side::Host { &self.sidecar } else { &self.region };
        memory.load(self.layout.record(side, SLOT) + word as usize, Relaxed)
    }

    /// What a side shows of the slot, besides what it waits for.
    fn published(&self, side: Side) -> [u64; 3] {
        [RecordWord::State, RecordWord::Produced, RecordWord::Freed].map(|word| self.word(side, word))
    }

    /// Accesses to the region, and stores, of a side's last operation.
    pub(crate) fn made(&self, side: Side) -> (u16, u16) {
        self.taps[side as usize].made()
    }

    fn check_words(&self, side: Side) {
        // A longest message is copied once, and scrubbed once; the rest is some dozen control words.
        let most = 200 + 2 * RING as u16 / 8;
        self.check(self.made(side).0 < most, "the work of a call is bounded");
        let corrupt = SIDES.map(|side| self.kept(side, RecordWord::Corrupt));
        self.check(corrupt == [0; 2], "honest sides find nothing corrupt");
    }

    /// After an operation that nothing came into: who is awake gets no bell, a bell that found nobody is rung again
    /// with the next store that is always worth one.
    fn check_bells(&self, side: Side, op: Op, before: &Soft, published: [u64; 3]) {
        let peer = side.peer() as usize;
        let rings = self.lines.rings[peer].get();
        if !matches!(op, Op::Attach | Op::Thaw | Op::Restore) {
            let taken = self.lines.taken[peer].get();
            self.check(taken <= u8::from(before.asleep[peer]), "who is awake gets no bell, and who sleeps one");
        }
        let now = self.published(side);
        let changed = now[0] != published[0];
        if before.asleep[peer] && before.lost[peer] && before.alive[peer] && changed {
            self.check(rings > 0, "a bell that found nobody is rung again");
        }
        self.check(op != Op::Thaw || rings > 0, "a thaw rings whatever the peer's word says");
        if side == Side::Host && before.frozen && !matches!(op, Op::Thaw | Op::Restore) {
            self.check(now == published, "who is frozen publishes nothing");
        }
    }

    pub(crate) fn core(&self, side: Side) -> Option<Rc<ModelCore>> {
        self.cores.borrow()[side as usize].clone()
    }

    /// Polls on behalf of a task: `poll` returns whether it pends.
    pub(crate) fn task(&self, side: Side, task: Task, poll: impl FnOnce(&mut Context<'_>) -> bool) {
        let bit = 1 << task as u8;
        self.soft.borrow_mut().blocked[side as usize] &= !bit;
        let mut woken = WOKEN.get();
        woken[side as usize] &= !bit;
        WOKEN.set(woken);
        let pends = poll(&mut Context::from_waker(&WAKERS[side as usize][task as usize]));
        if pends {
            self.soft.borrow_mut().blocked[side as usize] |= bit;
        }
    }

    /// The process is gone, with all that it had for itself.
    pub(crate) fn die(&self, side: Side) {
        let at = side as usize;
        drop(self.cores.borrow_mut()[at].take());
        self.lines.there[at].set(false);
        self.lines.pending[at].set(false);
        let mut woken = WOKEN.get();
        woken[at] = 0;
        WOKEN.set(woken);
        let soft = &mut *self.soft.borrow_mut();
        (soft.alive[at], soft.asleep[at], soft.died) = (false, false, true);
        (soft.live[at], soft.blocked[at], soft.peeked[at]) = (0, 0, 0);
        (soft.read_up[at], soft.unwritable[at]) = (false, false);
        if side == Side::Host {
            soft.frozen = false;
        }
    }

    /// A new process attaches, and its application adopts what it finds.
    pub(crate) fn attach(&self, side: Side) {
        let memory =
            |words: &Rc<Noted>, shared| Memory { words: words.clone(), tap: self.taps[side as usize].clone(), shared };
        let attaches = self.attaches.replace(self.attaches.get() + 1);
        let options = AttachOptions {
            side,
            now: *NOW,
            timeline: 1,
            // Apart from every episode of a predecessor, as a random number is.
            random: (attaches + 1) << 20,
            listen: vec![PORT],
            agent: None,
        };
        let sidecar = (side == Side::Host).then(|| memory(&self.sidecar, false));
        let ledger = Ledger::new(memory(&self.region, true), sidecar);
        let bell = Ring { lines: self.lines.clone(), to: side.peer() };
        self.lines.there[side as usize].set(true);
        self.lines.lost[side as usize].set(false);
        let Ok(core) = Core::attach(ledger, &self.geometry, bell, &options) else {
            return self.breaks("whatever was kept can be attached to");
        };
        let core = Rc::new(core);
        self.cores.borrow_mut()[side as usize] = Some(core.clone());
        self.soft.borrow_mut().alive[side as usize] = true;
        self.adopt(side, &core);
        let _ = core.ring();
    }
}

/// No deadline matters here.
static NOW: LazyLock<Instant> = LazyLock::new(Instant::now);
