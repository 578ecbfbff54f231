//! Every input that fuzzing found worth keeping, again, in an ordinary build; and some at random.

use std::fs;
use std::path::PathBuf;

use throughline_effort::{of, proved};
use throughline_fuzz::{TARGETS, Target};

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs an input; its name stands above what it panics with.
fn replay(run: fn(&[u8]), name: &str, input: &[u8]) {
    if let Err(panic) = std::panic::catch_unwind(|| run(input)) {
        eprintln!("the input was {name}: {input:02x?}");
        std::panic::resume_unwind(panic);
    }
}

/// The corpus as it is, and each input with its bytes changed: so much of fuzzing works without libFuzzer.
fn all((name, run): Target) {
    let files = corpus(name);
    assert!(files.len() >= 10, "the corpus of {name} has {} files", files.len());
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut runs = 0;
    for file in files {
        let input = fs::read(&file).unwrap();
        replay(run, &file.display().to_string(), &input);
        for _ in 0..of(5, 500) {
            let mut changed = input.clone();
            for _ in 0..4 {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                let at = (random >> 40) as usize % changed.len().max(1);
                if let Some(byte) = changed.get_mut(at) {
                    *byte = (random >> 32) as u8;
                }
            }
            replay(run, &format!("made of {}", file.display()), &changed);
            runs += 1;
        }
        runs += 1;
    }
    proved(&format!("inputs of the fuzz target {name}, replayed and changed"), runs, "inputs");
}

#[test]
fn the_corpus_of_the_ring_is_replayed() {
    all(TARGETS[0]);
}

#[test]
fn the_corpus_of_the_link_is_replayed() {
    all(TARGETS[1]);
}

#[test]
fn the_corpus_of_the_wire_is_replayed() {
    all(TARGETS[2]);
}

#[test]
fn the_corpus_of_the_bundle_is_replayed() {
    all(TARGETS[3]);
}
