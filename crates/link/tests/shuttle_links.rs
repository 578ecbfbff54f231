//! Two whole links under schedules tried at random: nothing lost, doubled or reordered, and nobody waits for ever.
//!
//! Run with `RUSTFLAGS="--cfg shuttle" cargo test -p throughline --release --test shuttle_links`. A failing schedule
//! is printed; `THROUGHLINE_SCHEDULE=<it>` replays it in the test that failed.
#![cfg(shuttle)]

mod whole;

use std::thread;
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};
use throughline_effort::{of, proved};
use whole::{Script, live};

/// Names a schedule to replay.
const SCHEDULE: &str = "THROUGHLINE_SCHEDULE";
/// Preemptions that a mistake may need.
const DEPTH: usize = 3;

fn config() -> Config {
    let mut config = Config::new();
    // All accesses are sequentially consistent here; loom looks at the others.
    config.silence_warnings = true;
    config.stack_size = 1 << 17;
    config
}

fn run(scheduler: impl Scheduler + 'static, config: Config, script: Script) -> u64 {
    let now = Instant::now();
    Runner::new(scheduler, config).run(move || live(script, now)) as u64
}

/// Tries a script so often, by half at random and by half with few preemptions at places chosen at random.
fn check(what: &str, script: Script, every_run: u64, full: u64) {
    if let Ok(schedule) = std::env::var(SCHEDULE) {
        run(ReplayScheduler::new_from_encoded(&schedule), config(), script);
        return;
    }
    let count = of(every_run, full) / 2;
    let tried = run(RandomScheduler::new_from_seed(7, count as usize), config(), script)
        + run(PctScheduler::new_from_seed(7, DEPTH, count as usize), config(), script);
    proved(what, tried, "schedules");
}

const ALL_WELL: Script = Script { deaths: 0, freezes: false, bells: u64::MAX };

#[test]
fn links_that_open_talk_and_close_lose_nothing_and_nobody_sleeps_for_ever() {
    check("two links: opening, traffic, closing", ALL_WELL, 10_000, 1_700_000);
}

#[test]
fn links_that_freeze_and_thaw_lose_nothing_and_publish_nothing_meanwhile() {
    let script = Script { freezes: true, ..ALL_WELL };
    check("two links: freezing and thawing besides", script, 10_000, 1_700_000);
}

#[test]
fn links_whose_processes_die_and_attach_anew_lose_nothing() {
    let script = Script { deaths: 2, freezes: true, ..ALL_WELL };
    check("two links: deaths besides, with the bells lost", script, 10_000, 1_700_000);
}

/// Bells that nobody hears are no doorbell's: both sides wait for ever, which is found, kept and found again.
#[test]
fn a_schedule_that_fails_is_kept_and_replays() {
    let script = Script { bells: 3, ..ALL_WELL };
    let folder = tempfile::tempdir().unwrap();
    let mut keeping = config();
    keeping.failure_persistence = FailurePersistence::File(Some(folder.path().to_path_buf()));
    let found = thread::spawn(move || run(RandomScheduler::new_from_seed(7, 100), keeping, script)).join();
    assert!(is_deadlock(found));

    let encoded = std::fs::read_to_string(folder.path().join("schedule000.txt")).unwrap();
    let mut quiet = config();
    quiet.failure_persistence = FailurePersistence::None;
    let again = thread::spawn(move || run(ReplayScheduler::new_from_encoded(&encoded), quiet, script)).join();
    assert!(is_deadlock(again));
}

fn is_deadlock(outcome: thread::Result<u64>) -> bool {
    let cause = outcome.expect_err("a link without bells");
    let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
    text.is_some_and(|text| text.contains("deadlock"))
}
