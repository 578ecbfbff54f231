//! One side of a channel over modelled memory: its cursors, its sleep, and who rings it.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

use loom::thread::{self, JoinHandle, Thread};
use throughline_modelled::Modelled;
use throughline_ring::{
    Cause, Class, Consumer, Full, Geometry, Layout, Ledger, LinkWord, NEVER, Producer, RecordWord, Ringer, Side,
    Sleeper, View,
};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

pub const RING: u64 = 4096;

/// Where a thread waits to be woken: as with a real bell, what the waker did before is seen by whom it woke.
#[derive(Default)]
pub struct Place {
    thread: OnceLock<Thread>,
    woken: AtomicBool,
}

impl Place {
    /// Says who waits here: before it begins.
    pub fn belongs_to(&self, thread: &JoinHandle<()>) {
        self.thread.set(thread.thread().clone()).unwrap();
    }

    /// Waits for a wake-up; one that came before counts. For ever, where none comes: loom calls that a deadlock.
    pub fn wait(&self) {
        while !self.woken.swap(false, SeqCst) {
            thread::park();
        }
    }

    pub fn wake(&self) {
        self.woken.store(true, SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Whether a wake-up waits.
    pub fn is_woken(&self) -> bool {
        self.woken.load(SeqCst)
    }
}

/// The memory of one channel that the host opens, whose rings begin empty at a position.
pub struct Memory {
    layout: Layout,
    words: Arc<Modelled>,
    bells: [Arc<Place>; 2],
}

impl Memory {
    /// Models these words of each side's record, both sleep words, and the words of the guest's ring at these
    /// positions.
    pub fn new(begin: u64, record: &[RecordWord], positions: &[u64]) -> Self {
        let class = Class { opener: Side::Host, count: 1, ring_bytes: RING };
        let layout = Layout::new(&Geometry::new(vec![class]).unwrap());
        let sides = [Side::Host, Side::Guest];
        let places = |side| record.iter().map(move |word| (side, *word as usize));
        let records = sides.into_iter().flat_map(places).map(|(side, word)| layout.record(side, 0) + word);
        let sleeps = sides.map(|side| layout.link_word(side, LinkWord::Sleep));
        let ring = layout.slots()[0].ring_at(Side::Guest);
        let data = positions.iter().map(|position| ring + (position % RING) as usize / 8);
        // Nothing touches the region beyond its only slot.
        let count = layout.control_words() + 2 * RING as usize / 8;
        let words = Arc::new(Modelled::new(count, records.chain(sleeps).chain(data)));
        for side in sides {
            let set = |word, value| words.store(layout.record(side, 0) + word as usize, value, Ordering::Relaxed);
            for word in [RecordWord::Produced, RecordWord::Freed, RecordWord::Taken] {
                set(word, begin);
            }
            for word in [RecordWord::WantData, RecordWord::WantSpace] {
                set(word, NEVER);
            }
        }
        Self { layout, words, bells: Default::default() }
    }

    pub fn end(&self, side: Side) -> End {
        let ledger = Ledger::new(self.words.clone(), None);
        let view = View::new(&ledger, &self.layout, side, 0);
        let (tx, rx) = (Mutex::new(Producer::attach(&view)), Mutex::new(Consumer::attach(&view)));
        let ringer = Ringer::attach(self.layout.link_word(side.peer(), LinkWord::Sleep));
        let (bell, peer) = (self.bells[side as usize].clone(), self.bells[side.peer() as usize].clone());
        End { layout: self.layout.clone(), ledger, side, ringer, tx, rx, bell, peer }
    }
}

/// One side. Its locks stand for those of a link; no two threads of a model want the same one.
pub struct End {
    layout: Layout,
    pub ledger: Ledger<Arc<Modelled>>,
    side: Side,
    pub ringer: Ringer,
    pub tx: Mutex<Producer>,
    pub rx: Mutex<Consumer>,
    /// What this side waits at, and what it rings.
    pub bell: Arc<Place>,
    peer: Arc<Place>,
}

impl End {
    pub fn view(&self) -> View<'_, Arc<Modelled>> {
        View::new(&self.ledger, &self.layout, self.side, 0)
    }

    pub fn sleeper(&self, first: u64) -> Sleeper {
        Sleeper::attach(&self.ledger, self.layout.link_word(self.side, LinkWord::Sleep), first)
    }

    /// Sends a message, or says where there will be space for it.
    pub fn try_send(&self, payload: &[u8]) -> Result<(), u64> {
        let (view, mut tx) = (self.view(), self.tx.lock().unwrap());
        match tx.stage_message(&view, payload) {
            Ok(()) => {}
            Err(Full::Until(position)) => return Err(position.0),
            Err(broken) => panic!("{broken}"),
        }
        assert!(tx.publish(&view));
        self.notify(Cause::Data(tx.produced().0));
        Ok(())
    }

    /// Receives this message, or says where the next one will begin to be there; tells whoever waits for space.
    pub fn try_receive(&self, expected: &[u8]) -> Result<(), u64> {
        self.try_take(expected)?;
        self.notify(Cause::Space(self.rx.lock().unwrap().freed().0));
        Ok(())
    }

    /// The same, where nobody waits for space.
    pub fn try_take(&self, expected: &[u8]) -> Result<(), u64> {
        let (view, mut rx) = (self.view(), self.rx.lock().unwrap());
        let Some(frame) = rx.next_frame(&view).unwrap() else { return Err(rx.taken().0 + 1) };
        let mut out = vec![0; frame.len()];
        rx.read_frame(&view, frame, &mut out);
        assert_eq!(out, expected, "lost, doubled, torn or out of order");
        rx.commit(&view, frame.span());
        Ok(())
    }

    fn notify(&self, cause: Cause) {
        if self.ringer.claim(&self.ledger, &self.view(), cause).is_some() {
            self.peer.wake();
        }
    }
}
