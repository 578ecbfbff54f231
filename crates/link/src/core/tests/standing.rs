//! A snapshot of a guest that is in the middle of something: it stands still between any two stores, and
//! goes on with nothing but what the copy carried.

use std::sync::{Arc, Mutex};

use throughline_ring::Side;
use throughline_shmem::sync::Ordering::SeqCst;
use throughline_shmem::{HeapWords, WORD, Words};

use super::abort::{MOST_STEPS, assert_scrubbed, begin};
use super::app::{App, Step};
use super::rig::{Fuse, TestCore, World};

/// Puts pieces of a copy in the place of everything that was there.
fn replace(memory: &HeapWords, copy: &[(u64, Vec<u8>)]) {
    (0..memory.len()).for_each(|at| memory.store(at, 0, SeqCst));
    for (at, piece) in copy {
        memory.copy_in(*at as usize / WORD, piece);
    }
}

/// The host freezes and copies; then only the copies are left, and no host.
fn restored(region: &HeapWords, sidecar: &HeapWords, host: &mut Option<TestCore>) {
    let host = host.take().expect("one snapshot");
    let (mut pieces, mut kept) = (Vec::new(), Vec::new());
    host.freeze();
    let put = |copy: &mut Vec<_>, at, bytes: &[u8]| -> Result<(), ()> {
        copy.push((at, bytes.to_vec()));
        Ok(())
    };
    host.copy_region(|at, bytes| put(&mut pieces, at, bytes)).unwrap();
    host.copy_sidecar(|at, bytes| put(&mut kept, at, bytes)).unwrap();
    replace(region, &pieces);
    replace(sidecar, &kept);
}

/// Runs all plans, with a snapshot and its restore before the guest's store number `k` (counted with the
/// attach); returns the guest's stores.
fn run(slot: usize, first: Side, k: u64) -> u64 {
    let world = World::new();
    begin(&world, slot);
    let host = Arc::new(Mutex::new(Some(world.living(Side::Host))));
    let (region, sidecar, frozen) = (world.region.clone(), world.sidecar.clone(), host.clone());
    let fuse = Fuse::interrupted(k, move || restored(&region, &sidecar, &mut frozen.lock().unwrap()));
    let guest = world.attach(Side::Guest, &fuse);
    let [mut on_host, mut in_guest] = App::both(slot);
    for _ in 0..MOST_STEPS {
        let steps = [first, first.peer()].map(|side| {
            if side == Side::Guest {
                return in_guest.step(&guest);
            }
            let mut host = host.lock().unwrap();
            let core = host.get_or_insert_with(|| {
                let core = world.living(Side::Host);
                on_host.begin_anew(&core);
                core
            });
            on_host.step(core)
        });
        if steps == [Step::Done; 2] {
            for from in [Side::Host, Side::Guest] {
                assert_scrubbed(&world, slot, from);
            }
            return fuse.made();
        }
    }
    panic!("the applications hang");
}

/// Slot 0 is opened by the host, slot 1 by the guest; who moves first decides who waits for whom.
#[test]
fn a_guest_that_stands_still_between_any_two_stores_goes_on_in_a_copy_and_loses_nothing() {
    for slot in [0, 1] {
        for first in [Side::Host, Side::Guest] {
            let stores = run(slot, first, u64::MAX);
            assert!(stores > 250, "{stores}");
            for k in 0..stores {
                let outcome = std::panic::catch_unwind(|| run(slot, first, k));
                if let Err(cause) = outcome {
                    eprintln!("slot {slot}, snapshot after {k} of {stores} stores, {first:?} first");
                    std::panic::resume_unwind(cause);
                }
            }
        }
    }
}
