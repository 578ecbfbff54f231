//! Memory that a process reaches through its own death, its recording, or a camera.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use throughline_shmem::sync::Ordering::{self, Relaxed};
use throughline_shmem::{HeapWords, Words};

/// Unwinds out of a call without a word: the process is dead.
struct Died;

/// Runs a call; `None` if the process died in it.
pub(crate) fn survives<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|cause| {
            if !cause.is::<Died>() {
                resume_unwind(cause)
            }
        })
        .ok()
}

/// What happens to a process in the middle of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    #[default]
    Lives,
    /// It is killed before the store after so many.
    Dies(u16),
    /// The machine is copied before the store after so many, and goes on.
    IsCopied(u16),
}

/// All that a process has taken in since it was started. Together with the list of its calls it is its
/// whole memory: who makes the same calls and takes in the same becomes the same process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// What each load found, what became of each bell, and so on, in order.
    inputs: Vec<u64>,
    stores: u64,
}

/// A copy of the machine.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) region: Vec<u64>,
    pub(crate) sidecar: Vec<u64>,
    /// What the process in whose call this was taken had taken in by then.
    pub(crate) record: Record,
}

/// The shared words of a machine, and the host's own.
#[derive(Clone, Debug)]
pub(crate) struct Memories {
    pub(crate) region: Rc<HeapWords>,
    pub(crate) sidecar: Rc<HeapWords>,
}

impl Memories {
    pub(crate) fn new(region: usize, sidecar: usize) -> Self {
        Self { region: Rc::new(HeapWords::new(region)), sidecar: Rc::new(HeapWords::new(sidecar)) }
    }

    pub(crate) fn from_image(image: &Image) -> Self {
        let this = Self::new(image.region.len(), image.sidecar.len());
        for (words, copy) in [(&this.region, &image.region), (&this.sidecar, &image.sidecar)] {
            for (at, word) in copy.iter().enumerate().filter(|(_, word)| **word != 0) {
                words.store(at, *word, Relaxed);
            }
        }
        this
    }

    pub(crate) fn image(&self, record: Record) -> Image {
        let copy = |words: &HeapWords| (0..words.len()).map(|at| words.load(at, Relaxed)).collect();
        Image { region: copy(&self.region), sidecar: copy(&self.sidecar), record }
    }
}

/// What stands between one process and the machine.
#[derive(Debug)]
pub(crate) struct Watch {
    memories: Memories,
    fate: Cell<Fate>,
    image: RefCell<Option<Image>>,
    record: RefCell<Record>,
    /// Inputs of the record that were played back, and stores that were left out.
    played: Cell<(usize, u64)>,
    /// How much of the record is to be played back before life begins.
    script: (usize, u64),
}

impl Watch {
    /// A process that lives through `record` again, and then goes on with these memories.
    pub(crate) fn new(memories: Memories, record: Record) -> Rc<Self> {
        let script = (record.inputs.len(), record.stores);
        Rc::new(Self {
            memories,
            fate: Cell::default(),
            image: RefCell::default(),
            record: RefCell::new(record),
            played: Cell::new((0, 0)),
            script,
        })
    }

    pub(crate) fn set_fate(&self, fate: Fate) {
        self.fate.set(fate);
    }

    /// The copy that was taken since the last call of this.
    pub(crate) fn take_image(&self) -> Option<Image> {
        self.image.take()
    }

    pub(crate) fn record(&self) -> Record {
        self.record.borrow().clone()
    }

    /// Loads and stores so far.
    pub(crate) fn work(&self) -> u64 {
        let record = self.record.borrow();
        record.inputs.len() as u64 + record.stores
    }

    /// Whether everything of the record has been played back.
    pub(crate) fn is_live(&self) -> bool {
        self.played.get() == self.script
    }

    /// Something from outside the process: found now, or played back.
    pub(crate) fn input(&self, find: impl FnOnce() -> u64) -> u64 {
        let (inputs, stores) = self.played.get();
        if inputs < self.script.0 {
            self.played.set((inputs + 1, stores));
            return self.record.borrow().inputs[inputs];
        }
        assert_eq!(stores, self.script.1, "a process that lives again does something else");
        let found = find();
        self.record.borrow_mut().inputs.push(found);
        found
    }

    /// Whether a store is to be made.
    fn stores(&self) -> bool {
        let (inputs, stores) = self.played.get();
        if stores < self.script.1 {
            self.played.set((inputs, stores + 1));
            return false;
        }
        assert_eq!(inputs, self.script.0, "a process that lives again does something else");
        match self.fate.get() {
            Fate::Lives => {}
            Fate::Dies(0) => resume_unwind(Box::new(Died)),
            Fate::Dies(left) => self.fate.set(Fate::Dies(left - 1)),
            Fate::IsCopied(0) => {
                *self.image.borrow_mut() = Some(self.memories.image(self.record()));
                self.fate.set(Fate::Lives);
            }
            Fate::IsCopied(left) => self.fate.set(Fate::IsCopied(left - 1)),
        }
        self.record.borrow_mut().stores += 1;
        true
    }
}

/// Words as one process reaches them.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    words: Rc<HeapWords>,
    watch: Rc<Watch>,
}

impl Memory {
    pub(crate) fn region(watch: &Rc<Watch>) -> Self {
        Self { words: watch.memories.region.clone(), watch: watch.clone() }
    }

    pub(crate) fn sidecar(watch: &Rc<Watch>) -> Self {
        Self { words: watch.memories.sidecar.clone(), watch: watch.clone() }
    }
}

impl Words for Memory {
    fn len(&self) -> usize {
        self.words.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.watch.input(|| self.words.load(at, order))
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        if self.watch.stores() {
            self.words.store(at, value, order);
        }
    }
}
