//! A process dies between any two stores; its successor goes on, and every byte is accounted for.

use throughline_ring::{RecordWord, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::SeqCst;

use super::app::{App, Step};
use super::rig::{Fuse, RING, TestCore, World, survives};

/// Where both cursors of both directions begin: a few words before the rings' end, so that all wraps.
const BEGIN: u64 = 7 * RING - 40;
/// Steps of both sides that all plans take at most; a multiple of what they do take.
pub(super) const MOST_STEPS: usize = 5000;

/// Who is started anew after the death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Anew {
    Victim,
    /// A snapshot of that moment, restored: nobody's memory but the bytes is left.
    Both,
}

pub(super) fn begin(world: &World, slot: usize) {
    for side in [Side::Host, Side::Guest] {
        for word in [RecordWord::Produced, RecordWord::Freed, RecordWord::Taken] {
            let at = world.layout.record(side, slot) + word as usize;
            world.region.store(at, BEGIN, SeqCst);
            if side == Side::Host {
                world.sidecar.store(at, BEGIN, SeqCst);
            }
        }
    }
}

/// Whether everything but the unread bytes of `from`'s ring is zero.
pub(super) fn assert_scrubbed(world: &World, slot: usize, from: Side) {
    let at = |side, word| world.word(world.layout.record(side, slot) + word as usize);
    let (freed, produced) = (at(from.peer(), RecordWord::Freed), at(from, RecordWord::Produced));
    let ring = world.layout.slots()[slot].ring_at(from);
    for offset in (0..RING).step_by(8) {
        let position = freed / RING * RING + offset;
        let position = if position < freed { position + RING } else { position };
        if position >= produced.next_multiple_of(8) {
            let found = world.word(ring + offset as usize / 8);
            assert_eq!(found, 0, "{from:?}'s byte {position} is not scrubbed ({freed}..{produced})");
        }
    }
}

struct Run<'a> {
    world: &'a World,
    slot: usize,
    victim: Side,
    cores: [Option<TestCore>; 2],
    apps: [App; 2],
}

impl<'a> Run<'a> {
    fn new(world: &'a World, slot: usize, victim: Side) -> Self {
        begin(world, slot);
        let apps = App::both(slot);
        Self { world, slot, victim, cores: [None, None], apps }
    }

    fn attach(&mut self, side: Side, fuse: &std::sync::Arc<Fuse>) {
        self.cores[side as usize] = survives(|| self.world.attach(side, fuse));
    }

    /// One step of a side; `None` if it died, or had died before.
    fn step(&mut self, side: Side) -> Option<Step> {
        let core = self.cores[side as usize].as_ref()?;
        let step = survives(|| self.apps[side as usize].step(core));
        if step.is_none() {
            self.cores[side as usize] = None;
        }
        step
    }

    fn revive(&mut self, anew: Anew) {
        let living = Fuse::new(u64::MAX);
        if anew == Anew::Both {
            self.cores = [None, None];
        }
        for side in [Side::Host, Side::Guest] {
            if self.cores[side as usize].is_none() {
                self.attach(side, &living);
                self.assert_freed(side);
                let core = self.cores[side as usize].as_ref().unwrap();
                self.apps[side as usize].begin_anew(core);
            }
        }
        // What the dead one's peer sent was scrubbed up to where it was freed; what the dead one staged
        // and never published lies in its own ring, until its successor stages there.
        assert_scrubbed(self.world, self.slot, self.victim.peer());
    }

    /// What was taken is free again, as far as it fills words.
    fn assert_freed(&self, side: Side) {
        let at = |word| self.world.layout.record(side, self.slot) + word as usize;
        let kept = if side == Side::Host { &self.world.sidecar } else { &self.world.region };
        let taken = kept.load(at(RecordWord::Taken), SeqCst);
        assert_eq!(self.world.word(at(RecordWord::Freed)), taken / 8 * 8);
    }

    fn finish(&mut self, mut first: Side, anew: Anew) {
        for _ in 0..MOST_STEPS {
            let steps = [first, first.peer()].map(|side| self.step(side));
            if steps.contains(&None) {
                self.revive(anew);
                // Found half-way by its successor, not by its peer.
                first = self.victim;
            } else if steps == [Some(Step::Done); 2] {
                return self.account();
            }
        }
        let states = [0, 1].map(|side: usize| {
            let core = self.cores[side].as_ref().unwrap();
            core.slots[self.slot].entry.lock().channel.mine
        });
        panic!("the applications hang in {states:?}");
    }

    /// Both slots are free, both rings empty, and nothing is left in them.
    fn account(&self) {
        for from in [Side::Host, Side::Guest] {
            assert_scrubbed(self.world, self.slot, from);
            let word = |side, word| self.world.word(self.world.layout.record(side, self.slot) + word as usize);
            let (sent, freed) = (word(from, RecordWord::Produced), word(from.peer(), RecordWord::Freed));
            assert_eq!((sent, sent % 8), (freed, 0));
            assert!(sent > BEGIN + 40, "nothing wrapped");
        }
    }
}

/// Runs all plans, the victim dying before store number `k` (counted with the attach); returns the
/// stores it made before.
fn run(slot: usize, victim: Side, first: Side, anew: Anew, k: u64) -> u64 {
    let world = World::new();
    let mut run = Run::new(&world, slot, victim);
    let fuse = Fuse::new(k);
    run.attach(victim.peer(), &Fuse::new(u64::MAX));
    run.attach(victim, &fuse);
    if run.cores[victim as usize].is_none() {
        run.revive(anew);
    }
    run.finish(first, anew);
    fuse.made()
}

/// Every place between two stores, of a side's whole life. Who moves first decides who is found
/// half-way by whom.
fn everywhere(slot: usize, victim: Side) -> u64 {
    let mut most = 0;
    for first in [Side::Host, Side::Guest] {
        let stores = run(slot, victim, first, Anew::Victim, u64::MAX);
        for k in 0..stores {
            for anew in [Anew::Victim, Anew::Both] {
                let outcome = std::panic::catch_unwind(|| run(slot, victim, first, anew, k));
                if let Err(cause) = outcome {
                    eprintln!(
                        "slot {slot}, {victim:?} dead after {k} of {stores} stores, {anew:?} anew, {first:?} first"
                    );
                    std::panic::resume_unwind(cause);
                }
            }
        }
        most = most.max(stores);
    }
    most
}

#[test]
fn a_death_between_any_two_stores_of_the_opening_host_loses_nothing() {
    assert!(everywhere(0, Side::Host) > 400);
}

#[test]
fn a_death_between_any_two_stores_of_the_accepting_guest_loses_nothing() {
    assert!(everywhere(0, Side::Guest) > 250);
}

#[test]
fn a_death_between_any_two_stores_of_the_opening_guest_loses_nothing() {
    assert!(everywhere(1, Side::Guest) > 250);
}

#[test]
fn a_death_between_any_two_stores_of_the_accepting_host_loses_nothing() {
    assert!(everywhere(1, Side::Host) > 400);
}
