//! Two cores over modelled memory, and what stands for their drivers' waiting.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use loom::thread::{self, Thread};
use throughline::core::{AttachOptions, Bell, Core, OpenOptions, Policy, Rung, Use};
use throughline::{Class, Geometry, Kind, Side};
use throughline_modelled::Modelled;
use throughline_ring::{Layout, Ledger, LinkWord, RecordWord};
use throughline_shmem::sync::{AtomicU64, Ordering};

pub const PORT: u32 = 7;
pub const RING: u64 = 4096;

/// Where a thread waits to be woken: as with a real bell, what the waker did before is seen by whom it woke.
#[derive(Debug)]
pub struct Place {
    woken: AtomicU64,
    parked: Mutex<Option<Thread>>,
}

impl Place {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { woken: AtomicU64::new(0), parked: Mutex::default() })
    }

    fn parked(&self) -> std::sync::MutexGuard<'_, Option<Thread>> {
        self.parked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for a wake-up; one that came before counts. For ever, where none comes: loom calls that a deadlock.
    pub fn wait(&self) {
        while self.woken.swap(0, Ordering::AcqRel) == 0 {
            // Nothing is modelled between the look and the parking: no wake-up comes in between.
            *self.parked() = Some(thread::current());
            thread::park();
        }
    }

    fn notify(&self) {
        // Swapped, so that loom orders it after every look that found nothing.
        self.woken.swap(1, Ordering::AcqRel);
        // A thread that waits for something else, a lock say, must be left alone.
        if let Some(thread) = self.parked().take() {
            thread.unpark();
        }
    }

    /// Whether a wake-up waits.
    pub fn is_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire) != 0
    }
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.notify();
    }
}

/// Wakes the driver that waits there.
#[derive(Debug)]
pub struct Doorbell(Arc<Place>);

impl Bell for Doorbell {
    fn ring(&self) -> Rung {
        self.0.notify();
        Rung::Accepted
    }
}

pub type ModelCore = Arc<Core<Arc<Modelled>, Doorbell>>;

/// One side: its core, and what its driver waits for.
#[derive(Clone)]
pub struct End {
    pub core: ModelCore,
    /// Where its driver waits: for the peer's bell, or a kick by this side.
    pub bell: Arc<Place>,
}

impl End {
    /// A driver that goes to sleep; whether it sleeps.
    pub fn falls_asleep(&self) -> bool {
        self.core.serve();
        self.core.fall_asleep()
    }

    /// What the bell, or being awake, makes of a driver in the end.
    pub fn goes_on(&self, asleep: bool) {
        if !asleep || self.bell.is_woken() {
            self.core.wake_up();
            self.core.serve();
        }
    }

    /// A driver, until the flag is set and it is kicked.
    pub fn drive(&self, ended: &AtomicBool) {
        while !ended.load(SeqCst) {
            if self.core.fall_asleep() {
                self.bell.wait();
                self.core.wake_up();
            }
        }
    }

    /// Task and driver in one thread: whom serving woke is the task, which looks again. Serving before the sleep is
    /// left out, as it is repeated in it.
    pub fn until<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        loop {
            if let Poll::Ready(done) = poll(&mut Context::from_waker(Waker::noop())) {
                return done;
            }
            if self.core.fall_asleep() {
                self.bell.wait();
                self.core.wake_up();
            }
        }
    }
}

/// The words that threads share in a model, in the record of each side.
pub type Shared<'a> = &'a [RecordWord];

/// The cursors and the wants: all that a channel's use consists of while nobody opens or closes.
pub const TRAFFIC: Shared = &[RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
/// The cursors and the states: all that opening and closing consist of. Waiting rests on sleep words besides.
pub const LIFE: Shared = &[RecordWord::State, RecordWord::Produced, RecordWord::Freed];
/// All of these.
pub const ALL: Shared =
    &[RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];

/// Host and guest with one channel that the host opens, both attached. Of each ring the first words are modelled.
pub fn attached(shared: Shared, ring_words: usize) -> (End, End) {
    let class = Class { opener: Side::Host, count: 1, ring_bytes: RING };
    let geometry = Geometry::new(vec![class]).expect("a geometry");
    let layout = Layout::new(&geometry);
    let sides = [Side::Host, Side::Guest];
    let records = sides.into_iter().flat_map(|side| shared.iter().map(move |word| (side, *word as usize)));
    let records = records.map(|(side, word)| layout.record(side, 0) + word);
    let sleeps = sides.map(|side| layout.link_word(side, LinkWord::Sleep));
    let rings = sides.map(|side| layout.slots()[0].ring_at(side));
    let rings = rings.into_iter().flat_map(|ring| ring..ring + ring_words);
    // Nothing touches the region beyond its only slot.
    let words = layout.control_words() + 2 * RING as usize / 8;
    let memory = Arc::new(Modelled::new(words, records.chain(sleeps).chain(rings)));
    let bells = sides.map(|_| Place::new());
    let end = |side, mine: usize| {
        let options =
            AttachOptions { side, now: Instant::now(), timeline: 1, random: 8, listen: vec![PORT], agent: None };
        let doorbell = Doorbell(bells[1 - mine].clone());
        let core = Core::attach(Ledger::new(memory.clone(), None), &geometry, doorbell, &options).expect("attached");
        End { core: Arc::new(core), bell: bells[mine].clone() }
    };
    (end(Side::Host, 0), end(Side::Guest, 1))
}

/// The same with a message channel between them, all that has happened so far noticed by both.
pub fn connected(shared: Shared, ring_words: usize) -> (End, End, Use) {
    let (host, guest) = attached(shared, ring_words);
    let this = host.core.try_open(&opening()).expect("opened");
    guest.core.serve();
    assert!(guest.core.poll_accept(PORT, &mut Context::from_waker(Waker::noop())).is_ready());
    while host.core.serve() + guest.core.serve() > 0 {}
    (host, guest, this)
}

pub fn opening() -> OpenOptions {
    OpenOptions { port: PORT, kind: Kind::Message, ring_bytes: RING, label: [0; 32], policy: Policy::default() }
}
