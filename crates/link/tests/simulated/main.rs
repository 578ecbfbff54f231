//! The simulator's lists of operations, run through both drivers: two links over a memfd, and the same oracle.

mod end;

use std::time::Duration;

use end::{Driver, Machine, Process};
use throughline::Side;
use throughline_sim::{Call, End, Judge, Op, Outcome, Scope, What, generate};

const SIDES: [Side; 2] = [Side::Host, Side::Guest];
const WATCHDOG: Duration = Duration::from_mins(1);

/// What the driver does by itself, or what is no matter of one process.
fn is_for_processes(call: &Call) -> bool {
    !matches!(call, Call::Tick | Call::GiveIdentity | Call::AskQuiet | Call::LiftQuiet | Call::Control)
}

struct Pair {
    driver: Driver,
    machine: Machine,
    ends: [Option<Process>; 2],
    judge: Judge,
}

impl Pair {
    fn call(&mut self, side: Side, call: &Call) -> Option<Outcome> {
        let end = self.ends[side as usize].as_mut()?;
        let plan = end.plan(call)?;
        let outcome = end.perform(&plan);
        self.judge.judge(side, &plan, &outcome).unwrap_or_else(|why| panic!("{side:?}, {plan:?}: {why}"));
        Some(outcome)
    }

    async fn attach(&mut self, side: Side) {
        if self.ends[side as usize].is_none() {
            self.ends[side as usize] = Some(self.machine.attach(side, self.driver).await);
            self.judge.attached(side);
        }
    }

    /// A process ends, and closes nothing.
    fn detach(&mut self, side: Side) {
        self.call(side, &Call::Thaw);
        if let Some(end) = self.ends[side as usize].take() {
            end.release();
            self.judge.detached(side);
        }
    }

    async fn step(&mut self, op: &Op) {
        match op.what {
            What::Call { call: Call::Drive, .. } | What::Quiet => self.rest().await,
            What::Call { side, call, .. } if is_for_processes(&call) => {
                // In real time nothing expires within a run.
                let call = match call {
                    Call::Open { kind, port, .. } => Call::Open { kind, port, expires: false },
                    call => call,
                };
                self.call(side, &call);
            }
            What::Kill { side } => self.detach(side),
            What::Attach { side, .. } => self.attach(side).await,
            _ => {}
        }
    }

    /// Both drivers have their turns.
    async fn rest(&self) {
        for _ in 0..8 {
            tokio::task::yield_now().await;
            self.ends.iter().flatten().for_each(Process::drive);
        }
    }

    /// Everything is read to its end and closed.
    async fn finish(&mut self) {
        for side in SIDES {
            self.attach(side).await;
            self.call(side, &Call::Thaw);
            self.call(side, &Call::Adopt);
        }
        while !self.judge.is_over() {
            self.rest().await;
            for side in SIDES {
                self.finish_side(side);
            }
        }
    }

    fn finish_side(&mut self, side: Side) {
        for port in [0, 1] {
            self.call(side, &Call::Accept { port });
        }
        let mut channel = 0;
        while self.ends[side as usize].as_ref().is_some_and(|end| usize::from(channel) < end.held_count()) {
            self.call(side, &Call::Shutdown { channel });
            let read = self.call(side, &Call::Read { channel, max: 4096, peek: false });
            if matches!(read, Some(Outcome::End | Outcome::Failed(_))) {
                self.call(side, &Call::Close { channel, reset: false });
            } else {
                channel += 1;
            }
        }
    }
}

async fn run(seed: u64, driver: Driver) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let scope = Scope { astray: false, snapshots: false, ..Scope::draw(&mut rng) };
    let ops = generate(&scope, &mut rng);
    let machine = Machine::new(scope.slots);
    let judge = Judge::new(machine.openers());
    let mut pair = Pair { driver, machine, ends: [None, None], judge };
    for side in SIDES {
        pair.attach(side).await;
    }
    for op in &ops {
        pair.step(op).await;
    }
    pair.finish().await;
    for end in pair.ends.into_iter().flatten() {
        assert_eq!(end.link().counters().backstop_finds, 0, "a bell was missing");
    }
}

fn run_all(driver: Driver) -> u64 {
    let seeds = throughline_effort::of(400, 20_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for seed in 0..seeds {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async { tokio::time::timeout(WATCHDOG, run(seed, driver)).await })
        }));
        assert!(
            matches!(done, Ok(Ok(()))),
            "seed {seed} fails: {}",
            if done.is_ok() { "it hangs" } else { "see above" }
        );
    }
    seeds
}

#[test]
fn the_simulators_lists_run_through_the_tokio_driver() {
    let seeds = run_all(Driver::Tokio);
    throughline_effort::proved("the simulator's lists through the tokio driver", seeds, "seeds");
}

#[test]
fn the_simulators_lists_run_through_the_driver_of_threads() {
    let seeds = run_all(Driver::Threads);
    throughline_effort::proved("the simulator's lists through the driver of threads", seeds, "seeds");
}
