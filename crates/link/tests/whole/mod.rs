//! Two whole links in one schedule: cores, drivers, programs, their deaths, their freezes.

mod app;
mod line;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use throughline::Side;
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

use app::{App, Record, Stop};
use line::{Ear, Line, SIDES, TestCore};

/// What a schedule may do besides connecting, talking and closing.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Most deaths of each side's process.
    pub deaths: u32,
    pub freezes: bool,
    /// Bells before all get lost: a link that breaks.
    pub bells: u64,
}

/// One schedule.
pub fn live(script: Script, now: Instant) {
    let opener = SIDES[thread_rng().gen_range(0..2)];
    let line = Arc::new(Line::new(opener, script.bells));
    let record = Arc::new(Mutex::new(Record::default()));
    let sides = SIDES.map(|side| {
        let (line, record) = (line.clone(), record.clone());
        thread::spawn(move || side_lives(&line, side, side == opener, &record, script, now))
    });
    for side in sides {
        side.join().unwrap();
    }
    record.lock().unwrap().judge();
    check_left(&line, now);
}

/// Processes of one side, one after another.
fn side_lives(line: &Arc<Line>, side: Side, opens: bool, record: &Arc<Mutex<Record>>, script: Script, now: Instant) {
    let deaths = thread_rng().gen_range(0..=script.deaths);
    for life in 0..=deaths {
        let core = Arc::new(line.attach(side, now));
        let stop = Arc::new(Stop::default());
        let app = App { side, opens, core: core.clone(), stop: stop.clone(), record: record.clone() };
        let ear = line.ears[side as usize].clone();
        let driver = {
            let (core, ear, stop) = (core.clone(), ear.clone(), stop.clone());
            thread::spawn(move || drive(&core, &ear, &stop))
        };
        let program = thread::spawn(move || app.run());
        if script.freezes {
            freeze(line, side, &core, &ear);
        }
        if life < deaths {
            pause();
            stop.stop();
        }
        let _ = program.join().unwrap();
        stop.stop();
        driver.join().unwrap();
        ear.attach(false);
        if life < deaths && thread_rng().gen_range(0..2) == 0 {
            line.ears[side.peer() as usize].forget();
        }
    }
}

/// What every driver does.
fn drive(core: &TestCore, ear: &Ear, stop: &Stop) {
    let _ = throughline::core::Bell::ring(core.bell());
    while !stop.is_set() {
        if core.serve() == 0 && core.fall_asleep() {
            let _ = stop.or(|cx| ear.poll(cx));
            core.wake_up();
        }
    }
}

/// Lets others run for a while that the schedule chooses.
fn pause() {
    for _ in 0..thread_rng().gen_range(0..64) {
        thread::yield_now();
    }
}

fn freeze(line: &Line, side: Side, core: &TestCore, ear: &Ear) {
    pause();
    core.freeze();
    let before = line.published(side);
    for _ in 0..thread_rng().gen_range(0..16) {
        thread::yield_now();
    }
    assert_eq!(line.published(side), before, "{side:?} publishes during a freeze");
    core.thaw();
    let _ = ear.ring();
}

/// Both sides attach once more: nothing is open, and nothing is left in the rings.
fn check_left(line: &Line, now: Instant) {
    line.bells_left.store(0, Relaxed);
    let cores = SIDES.map(|side| line.attach(side, now));
    while cores.iter().map(TestCore::serve).sum::<usize>() > 0 {}
    for core in &cores {
        assert!(core.channels().is_empty(), "{:?}", core.channels());
    }
    let rings = line.layout.control_words()..line.region.len();
    assert!(
        rings.into_iter().all(|at| line.region.load(at, Ordering::Acquire) == 0),
        "consumed bytes are not scrubbed"
    );
}
