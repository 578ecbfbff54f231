//! The core in every order that the memory model allows. `tests/loom_core.rs` runs these.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::thread;
use throughline_ring::{Class, Geometry, Kind, Layout, Ledger, LinkWord, RecordWord, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::{AtomicU64, Ordering};

use super::{AttachOptions, Bell, Core, OpenOptions, Policy, Publish, Rung, Take, Use};

const PORT: u32 = 7;
const RING: u64 = 4096;

/// Words of which only those that threads share are modelled: a region has too many.
struct Modelled {
    shared: HashMap<usize, AtomicU64>,
    rest: std::sync::Mutex<HashMap<usize, u64>>,
}

impl Words for Modelled {
    fn len(&self) -> usize {
        usize::MAX
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        let rest = || self.rest.lock().map_or(0, |rest| rest.get(&at).copied().unwrap_or(0));
        self.shared.get(&at).map_or_else(rest, |word| word.load(order))
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        if let Some(word) = self.shared.get(&at) {
            word.store(value, order);
        } else if let Ok(mut rest) = self.rest.lock() {
            rest.insert(at, value);
        }
    }
}

/// Counts; what a bell does is decided by whoever hears it.
struct Rang(std::sync::atomic::AtomicU64);

impl Bell for Rang {
    fn ring(&self) -> Rung {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Rung::Accepted
    }
}

impl Rang {
    fn count(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// A task that notes that it was woken.
struct Task(std::sync::atomic::AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Task {
    fn new() -> Arc<Self> {
        Arc::new(Self(std::sync::atomic::AtomicBool::new(false)))
    }

    fn is_woken(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

type ModelCore = Arc<Core<Arc<Modelled>, Rang>>;

/// Host and guest with a message channel between them, all that has happened so far noticed by both.
fn connected() -> (ModelCore, ModelCore, Use) {
    let class = Class { opener: Side::Host, count: 1, ring_bytes: RING };
    let geometry = Geometry::new(vec![class]).expect("a geometry");
    let layout = Layout::new(&geometry);
    let sides = [Side::Host, Side::Guest];
    let words =
        [RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
    let records = sides.into_iter().flat_map(|side| words.map(|word| layout.record(side, 0) + word as usize));
    let sleeps = sides.map(|side| layout.link_word(side, LinkWord::Sleep));
    let rings = sides.map(|side| layout.slots()[0].ring_at(side)).into_iter().flat_map(|ring| [ring, ring + 1]);
    let shared = records.chain(sleeps).chain(rings).map(|at| (at, AtomicU64::new(0))).collect();
    let memory = Arc::new(Modelled { shared, rest: std::sync::Mutex::default() });
    let attach = |side| {
        let options = AttachOptions {
            side,
            now: std::time::Instant::now(),
            timeline: 1,
            restored_from: None,
            random: 8,
            listen: vec![PORT],
            agent: None,
        };
        let ledger = Ledger::new(memory.clone(), None);
        Arc::new(Core::attach(ledger, &geometry, Rang(0.into()), &options).expect("attached"))
    };
    let (host, guest): (ModelCore, ModelCore) = (attach(Side::Host), attach(Side::Guest));
    let options =
        OpenOptions { port: PORT, kind: Kind::Message, ring_bytes: RING, label: [0; 32], policy: Policy::default() };
    let this = host.try_open(&options).expect("opened");
    guest.serve();
    assert!(guest.poll_accept(PORT, &mut Context::from_waker(Waker::noop())).is_ready());
    while host.serve() + guest.serve() > 0 {}
    (host, guest, this)
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A driver that goes to sleep; whether it sleeps.
fn falls_asleep(core: &ModelCore) -> bool {
    core.serve();
    core.fall_asleep()
}

/// What the bell, or being awake, makes of a driver in the end.
fn driver_goes_on(core: &ModelCore, asleep: bool, rung: bool) {
    if !asleep || rung {
        core.wake_up();
        core.serve();
    }
}

/// A task of the host waits for a message, its driver falls asleep, and the guest sends one.
///
/// # Panics
/// When a wake-up is lost.
pub fn no_wake_up_is_lost_for_a_message() {
    check(|| {
        let (host, guest, this) = connected();
        let before = guest.bell().count();
        let task = Task::new();
        let receiving = {
            let (host, waker) = (host.clone(), Waker::from(task.clone()));
            thread::spawn(move || {
                let mut out = Vec::new();
                host.poll_recv(this, Take::Consume, Some(&mut Context::from_waker(&waker)), &mut out).is_ready()
            })
        };
        let driving = {
            let host = host.clone();
            thread::spawn(move || falls_asleep(&host))
        };
        assert_eq!(guest.poll_send(this, Publish::Now, None, b"wake up"), Poll::Ready(Ok(())));
        let (received, asleep) = (receiving.join().expect("received"), driving.join().expect("drove"));
        driver_goes_on(&host, asleep, guest.bell().count() > before);
        assert!(received || task.is_woken(), "the message lies there, and all of the host sleeps");
    });
}

/// The same for a change of the peer's state: the guest ends its direction.
///
/// # Panics
/// When a wake-up is lost.
pub fn no_wake_up_is_lost_for_an_end() {
    check(|| {
        let (host, guest, this) = connected();
        let before = guest.bell().count();
        let task = Task::new();
        let receiving = {
            let (host, waker) = (host.clone(), Waker::from(task.clone()));
            thread::spawn(move || {
                let mut out = Vec::new();
                host.poll_recv(this, Take::Consume, Some(&mut Context::from_waker(&waker)), &mut out).is_ready()
            })
        };
        let driving = {
            let host = host.clone();
            thread::spawn(move || falls_asleep(&host))
        };
        let shut = guest.poll_shutdown(this, &mut Context::from_waker(Waker::noop()));
        assert_eq!(shut, Poll::Ready(Ok(())));
        let (received, asleep) = (receiving.join().expect("received"), driving.join().expect("drove"));
        driver_goes_on(&host, asleep, guest.bell().count() > before);
        assert!(received || task.is_woken(), "the peer has ended, and all of the host sleeps");
    });
}

/// A task of the guest waits for space, its driver falls asleep, and the host receives.
///
/// # Panics
/// When a wake-up is lost.
pub fn no_wake_up_is_lost_for_space() {
    check(|| {
        let (host, guest, this) = connected();
        assert_eq!(guest.poll_send(this, Publish::Now, None, &[7; RING as usize - 8]), Poll::Ready(Ok(())));
        let before = host.bell().count();
        let task = Task::new();
        let sending = {
            let (guest, waker) = (guest.clone(), Waker::from(task.clone()));
            thread::spawn(move || {
                guest.poll_send(this, Publish::Now, Some(&mut Context::from_waker(&waker)), b"").is_ready()
            })
        };
        let driving = {
            let guest = guest.clone();
            thread::spawn(move || falls_asleep(&guest))
        };
        let received = host.poll_recv(this, Take::Consume, None, &mut Vec::new());
        assert_eq!(received, Poll::Ready(Ok(true)));
        let (sent, asleep) = (sending.join().expect("sent"), driving.join().expect("drove"));
        driver_goes_on(&guest, asleep, host.bell().count() > before);
        assert!(sent || task.is_woken(), "there is space, and all of the guest sleeps");
    });
}
