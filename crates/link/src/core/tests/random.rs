//! What one table of cases cannot list: every operation with the inspector looking on, and rubbish at random.

use throughline_effort::{of, proved};
use throughline_ring::{LinkWord, RecordWord, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering::SeqCst;

use super::ops::{OPERATIONS, Random, copies, operate};
use super::rig::{RING, World};
use super::scene::{MOMENTS, Scene};

const SIDES: [Side; 2] = [Side::Host, Side::Guest];
/// Slots that the lies are about: one that is opened here, and one that the peer opens.
const ATTACKED: [usize; 2] = [0, 2];

/// One call under the inspector.
fn inspected(scene: &Scene, slot: usize, number: usize, random: &mut Random) {
    if copies(number) {
        scene.inspector.begin_copy(true);
        operate(&scene.me, slot, number, random);
        scene.inspector.begin_copy(false);
    } else {
        scene.op(|me| operate(me, slot, number, random));
    }
}

/// The inspector panics when a word of the peer is read twice in one operation. Here it sees all operations, on
/// both sides, in all moments, each after each other one.
#[test]
fn no_operation_reads_a_word_of_the_peer_twice() {
    let mut made = 0;
    let mut random = Random(0x1234_5678_9abc_def1);
    let rounds = of(1, 20);
    for (side, moment) in SIDES.into_iter().flat_map(|side| MOMENTS.map(|moment| (side, moment))) {
        for (slot, first) in ATTACKED.into_iter().flat_map(|slot| (0..OPERATIONS).map(move |first| (slot, first))) {
            for second in (0..OPERATIONS * rounds as usize).map(|second| second % OPERATIONS) {
                let scene = Scene::new(side, moment);
                inspected(&scene, slot, first, &mut random);
                inspected(&scene, slot, second, &mut random);
                made += 2;
            }
        }
    }
    proved("operations of both sides read no word of the peer twice", made, "operations");
}

/// A word of the peer's about this slot, or about the link.
fn somewhere(world: &World, side: Side, slot: usize, random: &mut Random) -> usize {
    let record = world.layout.record(side.peer(), slot);
    let words =
        [RecordWord::State, RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
    match random.below(8) {
        0..=4 => record + random.of(&words) as usize,
        5 => world.layout.slots()[slot].ring_at(side.peer()) + random.below(8),
        6 => world.layout.slots()[slot].ring_at(side.peer()) + random.below(RING as usize / 8),
        _ => world.layout.link_word(side.peer(), LinkWord::Sleep) + random.below(80),
    }
}

/// What the peer may write there: something near, something that it would say another time, or anything.
fn something(old: u64, mine: u64, random: &mut Random) -> u64 {
    match random.below(8) {
        0 => old.wrapping_add(8 * random.below(600) as u64),
        1 => old.wrapping_sub(8 * random.below(20) as u64),
        2 => old ^ 1 << random.below(64),
        3 => old ^ random.of(&[1, 2, 3, 8, 9, 10, 16, 0x100, 0x101]),
        4 => mine,
        5 => mine ^ random.of(&[3, 8, 0x100, 0x300]),
        6 => random.of(&[0, 1, RING, u64::MAX, 1 << 63]),
        _ => random.next(),
    }
}

/// A life of both slots under lies: operations and rubbish in turn.
fn live(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (side, moment) = (random.of(&SIDES), random.of(&MOMENTS));
    let mut scene = Scene::new(side, moment);
    for _ in 0..40 {
        let slot = random.of(&ATTACKED);
        if random.below(3) == 0 {
            let at = somewhere(&scene.world, side, slot, &mut random);
            let mine = scene.world.word(scene.world.layout.record(side, slot));
            let value = something(scene.world.word(at), mine, &mut random);
            scene.world.region.store(at, value, SeqCst);
        } else {
            let number = random.below(OPERATIONS);
            inspected(&scene, slot, number, &mut random);
        }
        if random.below(100) == 0 {
            scene.inspector.begin();
            scene.me = scene.world.living(side);
        }
    }
    scene.settle();
    scene.others_go_on();
}

#[test]
fn rubbish_at_random_costs_the_peer_its_channels_and_nothing_else() {
    let seeds = of(4000, 2_000_000);
    for seed in 1..=seeds {
        let lived = std::panic::catch_unwind(|| live(seed));
        if let Err(panic) = lived {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
    proved("lives of two channels under rubbish at random, on either side", seeds, "seeds");
}
