//! Doorbells: those that work, and those that do not.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use throughline::Rung;
use throughline::core::Bell;
use throughline_shmem::sync::Ordering::Relaxed;
use throughline_shmem::{HeapWords, Words};

use crate::memory::Watch;

/// What becomes of bells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bells {
    /// They arrive at once.
    #[default]
    Work,
    /// They are taken, and get lost.
    GetLost,
    /// Nobody is at the other end, and the ringer is told so.
    FindNobody,
    /// They arrive when bells work again.
    AreLate,
    /// Each comes twice, the second time when the first has been heard.
    ComeTwice,
}

/// The way from one side to the other.
#[derive(Debug)]
pub(crate) struct Wire {
    way: Cell<Bells>,
    arrived: Cell<u32>,
    late: Cell<u32>,
    again: Cell<bool>,
    /// Whether any bell ever went another way than it should: the receiver may then have to look by itself.
    faulty: Cell<bool>,
    /// Whoever attaches or thaws rings whatever the peer's word says.
    unconditional: Cell<bool>,
    rung: Cell<u64>,
    is_trusted: Cell<bool>,
    /// The receiver's sleep word that was rung for.
    rung_for: Cell<u64>,
    region: Rc<HeapWords>,
    sleep_at: usize,
    complaint: RefCell<Option<String>>,
}

impl Wire {
    /// The way to the side whose sleep word is at `sleep_at`.
    pub(crate) fn new(region: Rc<HeapWords>, sleep_at: usize) -> Rc<Self> {
        Rc::new(Self {
            way: Cell::default(),
            arrived: Cell::default(),
            late: Cell::default(),
            again: Cell::default(),
            faulty: Cell::default(),
            unconditional: Cell::default(),
            rung: Cell::default(),
            is_trusted: Cell::new(true),
            rung_for: Cell::default(),
            region,
            sleep_at,
            complaint: RefCell::default(),
        })
    }

    pub(crate) fn set_way(&self, way: Bells) {
        self.way.set(way);
        if way == Bells::Work {
            self.arrived.set(self.arrived.get() + self.late.take());
        }
        self.faulty.set(self.faulty.get() || way != Bells::Work);
    }

    /// A side writes rubbish: bells tell nothing any more.
    pub(crate) fn distrust(&self) {
        self.faulty.set(true);
        self.is_trusted.set(false);
    }

    /// A bell that nobody rang.
    pub(crate) fn ring_spuriously(&self) {
        self.arrived.set(self.arrived.get() + 1);
    }

    /// Whether every bell so far arrived, and at once.
    pub(crate) fn is_faultless(&self) -> bool {
        !self.faulty.get()
    }

    pub(crate) fn has_bells(&self) -> bool {
        self.arrived.get() > 0
    }

    /// Begins or ends a call that rings unconditionally.
    pub(crate) fn set_unconditional(&self, unconditional: bool) {
        self.unconditional.set(unconditional);
    }

    /// A new process rings this: it does not know what its predecessor has rung for.
    pub(crate) fn forget(&self) {
        self.rung_for.set(0);
    }

    pub(crate) fn take_complaint(&self) -> Option<String> {
        self.complaint.take()
    }

    /// Bells rung so far, whatever became of them.
    pub(crate) fn rung(&self) -> u64 {
        self.rung.get()
    }

    fn ring(&self) -> Rung {
        self.rung.set(self.rung.get() + 1);
        if self.is_trusted.get() && !self.unconditional.get() {
            self.check();
        }
        if self.arrived.get() + self.late.get() > 0 && self.way.get() != Bells::FindNobody {
            return Rung::Pending;
        }
        match self.way.get() {
            Bells::Work => self.arrived.set(1),
            Bells::GetLost => {}
            Bells::FindNobody => {
                self.rung_for.set(0);
                return Rung::Lost;
            }
            Bells::AreLate => self.late.set(1),
            Bells::ComeTwice => {
                self.arrived.set(1);
                self.again.set(true);
            }
        }
        Rung::Accepted
    }

    /// One bell a sleep, and none while the peer is awake.
    fn check(&self) {
        let sleep = self.region.load(self.sleep_at, Relaxed);
        let complaint = if sleep & 1 == 0 {
            "a bell for a side that is awake"
        } else if self.rung_for.replace(sleep) == sleep {
            "a second bell for one sleep"
        } else {
            return;
        };
        self.complaint.borrow_mut().get_or_insert_with(|| complaint.to_owned());
    }

    /// Takes the bells; what a doubled one leaves behind is a bell without a reason.
    fn drain(&self) -> bool {
        self.arrived.replace(u32::from(self.again.take())) > 0
    }
}

/// A process's two ends of bells.
#[derive(Debug)]
pub(crate) struct Doorbell {
    pub(crate) out: Rc<Wire>,
    pub(crate) into: Rc<Wire>,
    pub(crate) watch: Rc<Watch>,
}

impl Doorbell {
    /// Takes the bells that have arrived; whether there were any.
    pub(crate) fn drain(&self) -> bool {
        self.watch.input(|| self.into.drain().into()) == 1
    }
}

impl Bell for Doorbell {
    fn ring(&self) -> Rung {
        let rung = self.watch.input(|| match self.out.ring() {
            Rung::Accepted => 0,
            Rung::Pending => 1,
            Rung::Lost => 2,
        });
        [Rung::Accepted, Rung::Pending, Rung::Lost][rung as usize]
    }
}
