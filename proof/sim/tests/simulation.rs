//! Many seeds, each a run of everything that may happen to a link.

use std::panic::{AssertUnwindSafe, catch_unwind};

use throughline_sim::Tally;

/// Names the one seed to run, and to tell everything about.
const SEED: &str = "THROUGHLINE_SIM_SEED";

fn judged<T>(run: impl FnOnce() -> Result<T, throughline_sim::Violation>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|why| why.to_string()),
        Err(_) => Err("it panicked, see above".to_owned()),
    }
}

/// The same again, told line by line.
fn replay(seed: u64) {
    let (result, lines) = throughline_sim::trace(seed);
    println!("{}", lines.join("\n"));
    println!("seed {seed}: {result:?}");
    assert!(result.is_ok(), "seed {seed} fails");
}

#[test]
fn every_timeline_of_every_seed_sees_what_it_must() {
    if let Ok(seed) = std::env::var(SEED) {
        return replay(seed.parse().expect("a number"));
    }
    let seeds = throughline_effort::of(20_000, 2_000_000);
    let mut sum = Tally::default();
    for seed in 0..seeds {
        match judged(|| throughline_sim::run(seed)) {
            Ok(tally) => {
                sum.ops += tally.ops;
                sum.bytes += tally.bytes;
                sum.deaths += tally.deaths;
                sum.timelines += tally.timelines;
                sum.amid += tally.amid;
            }
            Err(why) => panic!(
                "seed {seed}: {why}\nto see it again: {SEED}={seed} cargo test -p throughline-sim --test simulation -- --nocapture"
            ),
        }
    }
    println!("{sum:?}");
    throughline_effort::proved("simulated runs in which each timeline saw what it must", seeds, "seeds");
}
