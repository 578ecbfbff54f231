//! The sleep protocol and the hand-over of bytes, in every order that the memory model allows.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p throughline-ring --release --test loom_sleep`.
#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use throughline_modelled::{Modelled, explore};
use throughline_ring::{
    Cause, Class, Consumer, Geometry, Layout, Ledger, LinkWord, NEVER, Producer, RecordWord, Ringer, Side, Sleeper,
    View, register,
};
use throughline_shmem::Words;
use throughline_shmem::sync::{AtomicU64, Ordering, fence};

const RING: u64 = 4096;

struct Model {
    layout: Layout,
    ledger: Ledger<Arc<Modelled>>,
}

impl Model {
    /// One channel that the host opens. Both rings begin at `begin`, with nothing in them.
    fn new(begin: u64, ring_words: &[u64]) -> Arc<Self> {
        let geometry = Geometry::new(vec![Class { opener: Side::Host, count: 1, ring_bytes: RING }]).unwrap();
        let layout = Layout::new(&geometry);
        let record = |side, word| layout.record(side, 0) + word as usize;
        let link = |side| layout.link_word(side, LinkWord::Sleep);
        let cursors = [RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
        let sides = [Side::Host, Side::Guest];
        let control =
            sides.into_iter().flat_map(|side| cursors.map(|word| record(side, word)).into_iter().chain([link(side)]));
        let ring = layout.slots()[0].ring_at(Side::Guest);
        let data = ring_words.iter().map(|position| ring + (position % RING) as usize / 8);
        // Nothing touches the region beyond its only slot.
        let count = layout.control_words() + 2 * RING as usize / 8;
        let words = Arc::new(Modelled::new(count, control.chain(data)));
        for side in sides {
            for word in [RecordWord::Produced, RecordWord::Freed, RecordWord::Taken] {
                words.store(record(side, word), begin, Ordering::Relaxed);
            }
            for word in [RecordWord::WantData, RecordWord::WantSpace] {
                words.store(record(side, word), NEVER, Ordering::Relaxed);
            }
        }
        Arc::new(Self { ledger: Ledger::new(words, None), layout })
    }

    fn view(&self, side: Side) -> View<'_, Arc<Modelled>> {
        View::new(&self.ledger, &self.layout, side, 0)
    }
}

/// What the host's driver knows of its tasks, as the link keeps it.
struct Watch {
    want: AtomicU64,
}

impl Watch {
    fn is_reached(&self, view: &View<'_, Arc<Modelled>>) -> bool {
        let want = self.want.load(Ordering::Relaxed);
        want != NEVER && view.alleged(RecordWord::Produced) >= want
    }
}

/// Task: looks, registers, looks again. Driver: falls asleep, looks again at what is registered. Peer:
/// publishes, and rings if it must. Whatever the order, somebody finds the bytes.
#[test]
fn no_wake_up_is_lost_between_a_task_its_driver_and_the_peer() {
    explore("a task, its driver and the peer", None, || {
        let model = Model::new(0, &[0, 8]);
        let watch = Arc::new(Watch { want: AtomicU64::new(NEVER) });
        let sleeper = Sleeper::attach(&model.ledger, model.layout.link_word(Side::Host, LinkWord::Sleep), 6);
        let view = model.view(Side::Guest);
        let mut producer = Producer::attach(&view);
        let ringer = Ringer::attach(model.layout.link_word(Side::Host, LinkWord::Sleep));

        let task = {
            let (model, watch) = (model.clone(), watch.clone());
            let mut consumer = Consumer::attach(&model.view(Side::Host));
            thread::spawn(move || {
                let view = model.view(Side::Host);
                if consumer.next_frame(&view).unwrap().is_some() {
                    return true;
                }
                // Exactly what the message makes: a want is reached where it lies, not beyond it.
                watch.want.store(16, Ordering::Relaxed);
                register(&view, RecordWord::WantData, 16);
                consumer.next_frame(&view).unwrap().is_some()
            })
        };
        let driver = {
            let (model, watch) = (model.clone(), watch.clone());
            thread::spawn(move || {
                let mut sleeper = sleeper;
                sleeper.fall_asleep(&model.ledger);
                watch.is_reached(&model.view(Side::Host))
            })
        };
        producer.stage_message(&view, b"wake up").unwrap();
        assert!(producer.publish(&view));
        let rung = ringer.claim(&model.ledger, &view, Cause::Data(producer.produced().0)).is_some();

        let (taken, found) = (task.join().unwrap(), driver.join().unwrap());
        assert!(taken || found || rung, "the bytes lie there, and both sides sleep");
    });
}

/// The same for space: the task waits for room, the peer reads and frees.
#[test]
fn no_wake_up_is_lost_for_space() {
    explore("a task, its driver and space", None, || {
        let model = Model::new(0, &[0, 8]);
        // The guest's ring is full of one message, which the host reads.
        let mut producer = {
            let view = model.view(Side::Guest);
            let mut producer = Producer::attach(&view);
            producer.stage_message(&view, &[7; RING as usize - 8]).unwrap();
            assert!(producer.publish(&view));
            producer
        };
        let sleeper = Sleeper::attach(&model.ledger, model.layout.link_word(Side::Guest, LinkWord::Sleep), 8);
        let want = Arc::new(AtomicU64::new(NEVER));
        let view = model.view(Side::Host);
        let mut consumer = Consumer::attach(&view);
        let ringer = Ringer::attach(model.layout.link_word(Side::Guest, LinkWord::Sleep));

        let task = {
            let (model, want) = (model.clone(), want.clone());
            thread::spawn(move || {
                let view = model.view(Side::Guest);
                let Err(throughline_ring::Full::Until(position)) = producer.stage_message(&view, b"") else {
                    return true;
                };
                want.store(position.0, Ordering::Relaxed);
                register(&view, RecordWord::WantSpace, position.0);
                producer.stage_message(&view, b"").is_ok()
            })
        };
        let driver = {
            let (model, want) = (model.clone(), want.clone());
            thread::spawn(move || {
                let mut sleeper = sleeper;
                sleeper.fall_asleep(&model.ledger);
                let want = want.load(Ordering::Relaxed);
                want != NEVER && model.view(Side::Guest).alleged(RecordWord::Freed) >= want
            })
        };
        let frame = consumer.next_frame(&view).unwrap().unwrap();
        consumer.commit(&view, frame.span());
        let rung = ringer.claim(&model.ledger, &view, Cause::Space(consumer.freed().0)).is_some();

        let (staged, found) = (task.join().unwrap(), driver.join().unwrap());
        assert!(staged || found || rung, "there is space, and both sides sleep");
    });
}

/// Two tasks of one side publish while the peer sleeps: it is rung for once.
#[test]
fn two_tasks_ring_once_for_one_sleep() {
    explore("two tasks and one sleep", None, || {
        let model = Model::new(0, &[]);
        let mut sleeper = Sleeper::attach(&model.ledger, model.layout.link_word(Side::Host, LinkWord::Sleep), 2);
        sleeper.fall_asleep(&model.ledger);
        let ringer = Arc::new(Ringer::attach(model.layout.link_word(Side::Host, LinkWord::Sleep)));
        let other = {
            let (model, ringer) = (model.clone(), ringer.clone());
            thread::spawn(move || ringer.claim(&model.ledger, &model.view(Side::Guest), Cause::State).is_some())
        };
        let mine = ringer.claim(&model.ledger, &model.view(Side::Guest), Cause::State).is_some();
        assert_eq!(u32::from(mine) + u32::from(other.join().unwrap()), 1);
    });
}

/// A message that wraps is whole for whoever sees that it was published.
#[test]
fn what_is_published_is_whole_across_the_rings_end() {
    const BEGIN: u64 = 3 * RING - 8;
    explore("a message across the ring's end", None, || {
        let model = Model::new(BEGIN, &[BEGIN, BEGIN + 8, BEGIN + 16]);
        let view = model.view(Side::Guest);
        let mut producer = Producer::attach(&view);
        let reader = {
            let model = model.clone();
            let mut consumer = Consumer::attach(&model.view(Side::Host));
            thread::spawn(move || {
                let view = model.view(Side::Host);
                for _ in 0..2 {
                    if let Some(frame) = consumer.next_frame(&view).unwrap() {
                        let mut out = vec![0; frame.len()];
                        consumer.read_frame(&view, frame, &mut out);
                        assert_eq!(out, *b"whole or not");
                        consumer.commit(&view, frame.span());
                        return;
                    }
                }
            })
        };
        producer.stage_message(&view, b"whole or not").unwrap();
        assert!(producer.publish(&view));
        reader.join().unwrap();
    });
}

/// Space that was freed is scrubbed: what the producer writes there next is not zeroed under it.
#[test]
fn what_is_written_into_freed_space_is_not_scrubbed() {
    explore("scrubbed space that is written again", None, || {
        let model = Model::new(0, &[0, 8]);
        let old: Vec<u8> = (0..RING).map(|at| at as u8 | 1).collect();
        let view = model.view(Side::Guest);
        let mut producer = Producer::attach(&view);
        assert_eq!(producer.stage_stream(&view, &old), Ok(RING as usize));
        assert!(producer.publish(&view));
        let reader = {
            let (model, old) = (model.clone(), old.clone());
            let mut consumer = Consumer::attach(&model.view(Side::Host));
            thread::spawn(move || {
                let view = model.view(Side::Host);
                let mut out = [0; 16];
                assert_eq!(consumer.read_stream(&view, 0, &mut out), Ok(16));
                assert_eq!(out, old[..16]);
                consumer.commit(&view, 16);
            })
        };
        let written = producer.stage_stream(&view, &[0xee; 16]);
        assert!(producer.publish(&view) == written.is_ok());
        reader.join().unwrap();
        if written.is_ok() {
            fence(Ordering::SeqCst);
            let mut consumer = Consumer::attach(&model.view(Side::Host));
            let mut out = vec![0; RING as usize];
            let view = model.view(Side::Host);
            assert_eq!(consumer.read_stream(&view, 0, &mut out), Ok(RING as usize));
            assert_eq!(out[RING as usize - 16..], [0xee; 16]);
        }
    });
}
