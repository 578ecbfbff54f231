//! The scenarios.

use throughline_model::{Budget, Op, Scenario, walk};
use throughline_ring::{Kind, Side};

/// A few bytes before the rings' end: all that is sent wraps.
const NEAR_THE_END: u64 = 7 * 4096 - 16;

/// One use, a message each way.
const BASE: Scenario = Scenario {
    name: "",
    opener: Side::Host,
    kind: Kind::Message,
    uses: 1,
    sends: [1, 1],
    lengths: &[5, 0, 8],
    read: 0,
    begin: NEAR_THE_END,
    host: &[Op::Open, Op::Send, Op::Recv, Op::Shutdown, Op::Close],
    guest: &[Op::Accept, Op::Send, Op::Recv, Op::Shutdown, Op::Close],
    budget: Budget { meets: 0, deaths: 0, deaths_inside: 0, losses: 0, hang_ups: 0, spurious: 0, freezes: 0, restores: 0 },
};

fn proves(scenario: Scenario) {
    let started = std::time::Instant::now();
    let states = walk(scenario);
    println!("{:?}", started.elapsed());
    throughline_effort::proved(&format!("model: {}", scenario.name), states, "states");
}

fn of(every: u8, full: u8) -> u8 {
    throughline_effort::of(every.into(), full.into()) as u8
}

/// Drivers fall asleep and wake up between everything that a channel's whole life consists of.
#[test]
fn messages_between_drivers_that_sleep_and_wake() {
    let sends = [of(1, 2), of(0, 1)];
    let budget = Budget { spurious: of(1, 1), ..BASE.budget };
    proves(Scenario { name: "sleep and wake", sends, budget, ..BASE });
}

/// The peer does something in the middle of an operation.
#[test]
fn an_operation_in_the_middle_of_another() {
    proves(Scenario {
        name: "operations that meet",
        sends: [0, 1],
        host: &[Op::Open, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Feed, Op::Shutdown, Op::Reset],
        budget: Budget { meets: of(1, 2), ..BASE.budget },
        ..BASE
    });
}

/// Connections one after another, accepted, refused, or given up before they are.
#[test]
fn uses_of_one_slot() {
    proves(Scenario {
        name: "uses of one slot",
        uses: of(2, 3),
        sends: [1, of(0, 1)],
        host: &[Op::Open, Op::OpenElsewhere, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Reset],
        ..BASE
    });
}

#[test]
fn a_full_ring() {
    proves(Scenario {
        name: "a full ring",
        sends: [of(2, 3), 0],
        lengths: &[4088],
        host: &[Op::Open, Op::Send, Op::Close],
        guest: &[Op::Accept, Op::Recv, Op::Close],
        ..BASE
    });
}

#[test]
fn bells_that_are_lost() {
    proves(Scenario {
        name: "lost bells",
        sends: [of(0, 1), 1],
        host: &[Op::Open, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Close],
        budget: Budget { losses: 1, hang_ups: 1, ..BASE.budget },
        ..BASE
    });
}

#[test]
fn a_process_that_dies() {
    proves(Scenario {
        name: "deaths",
        sends: [of(0, 1), 1],
        host: &[Op::Open, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Close],
        budget: Budget { deaths: of(0, 1), deaths_inside: 1, ..BASE.budget },
        ..BASE
    });
}

#[test]
fn a_freeze() {
    proves(Scenario {
        name: "freeze and thaw",
        sends: [of(0, 1), 1],
        host: &[Op::Open, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Close],
        budget: Budget { freezes: 1, ..BASE.budget },
        ..BASE
    });
}

#[test]
fn a_restore() {
    proves(Scenario {
        name: "snapshot and restore",
        sends: [of(0, 1), 1],
        host: &[Op::Open, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Close],
        budget: Budget { restores: 1, meets: of(0, 1), ..BASE.budget },
        ..BASE
    });
}

#[test]
fn a_stream() {
    proves(Scenario {
        name: "a stream",
        kind: Kind::Stream,
        sends: [2, 0],
        lengths: &[3, 9],
        read: 4,
        host: &[Op::Open, Op::Send, Op::Shutdown, Op::Close],
        guest: &[Op::Accept, Op::Recv, Op::Peek, Op::Commit, Op::Close],
        ..BASE
    });
}

#[test]
fn a_stream_whose_ends_die() {
    proves(Scenario {
        name: "a stream and deaths",
        kind: Kind::Stream,
        sends: [2, 0],
        lengths: &[3, 9],
        read: 5,
        host: &[Op::Open, Op::Send, Op::Shutdown],
        guest: &[Op::Accept, Op::Recv, Op::Close],
        budget: Budget { deaths_inside: 1, deaths: of(0, 1), ..BASE.budget },
        ..BASE
    });
}
