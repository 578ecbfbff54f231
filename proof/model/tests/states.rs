//! The scenarios. Each is a model of its own, bounded on its own: small in every run, larger with the full effort.

use throughline_model::{Budget, Op, Scenario, walk};
use throughline_ring::{Kind, Side};

/// A few bytes before the rings' end: all that is sent wraps.
const NEAR_THE_END: u64 = 7 * 4096 - 16;

const NOTHING: Budget =
    Budget { meets: 0, deaths: 0, deaths_inside: 0, losses: 0, hang_ups: 0, spurious: 0, freezes: 0, restores: 0 };

/// One use, that the host opens: a message from the guest, and closes.
const BASE: Scenario = Scenario {
    name: "",
    opener: Side::Host,
    kind: Kind::Message,
    uses: 1,
    sends: [0, 1],
    lengths: &[5, 0, 8],
    read: 0,
    begin: NEAR_THE_END,
    host: &[Op::Open, Op::Send, Op::Recv, Op::Close],
    guest: &[Op::Accept, Op::Send, Op::Recv, Op::Close],
    between: &[],
    budget: NOTHING,
};

fn proves(scenario: Scenario) {
    let states = walk(scenario);
    throughline_effort::proved(&format!("model, {}", scenario.name), states, "states");
}

/// So much in every run, or so much with the full effort.
fn of(every_run: u8, full: u8) -> u8 {
    throughline_effort::of(every_run.into(), full.into()) as u8
}

/// Drivers fall asleep and wake up, by bells that come late and some that nobody rang, between everything that a
/// channel's whole life consists of.
#[test]
fn drivers_that_sleep_and_wake_lose_nothing_and_nobody() {
    proves(Scenario {
        name: "sleep and wake",
        sends: [of(1, 2), of(0, 1)],
        host: &[Op::Open, Op::Send, Op::Recv, Op::Shutdown, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Shutdown, Op::Close],
        budget: Budget { spurious: 1, ..NOTHING },
        ..BASE
    });
}

/// The peer does something between any two accesses of an operation.
#[test]
fn operations_in_the_middle_of_others_lose_nothing_and_nobody() {
    proves(Scenario {
        name: "operations in the middle of others",
        host: &[Op::Open, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Feed, Op::Shutdown, Op::Reset],
        budget: Budget { meets: of(1, 2), ..NOTHING },
        ..BASE
    });
}

/// Connections one after another: accepted, refused, or given up before they are, with bytes that nobody read.
#[test]
fn uses_of_one_slot_keep_their_bytes_apart() {
    proves(Scenario {
        name: "uses of one slot, one after another",
        uses: of(2, 3),
        sends: [1, of(0, 1)],
        host: &[Op::Open, Op::OpenElsewhere, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Reset],
        budget: Budget { spurious: of(0, 1), hang_ups: of(0, 1), ..NOTHING },
        ..BASE
    });
}

/// A guest opens, and writes only when it was answered; both look before they consume.
#[test]
fn uses_that_the_guest_opens_keep_their_bytes_apart() {
    proves(Scenario {
        name: "uses that the guest opens",
        opener: Side::Guest,
        uses: of(1, 2),
        sends: [of(0, 1), 1],
        host: &[Op::Accept, Op::Send, Op::Peek, Op::Commit, Op::Close],
        guest: &[Op::Open, Op::OpenElsewhere, Op::Feed, Op::Flush, Op::Recv, Op::Close, Op::Reset],
        budget: Budget { meets: of(0, 1), ..NOTHING },
        ..BASE
    });
}

/// Messages that take the whole ring: each waits for the one before it.
#[test]
fn a_full_ring_goes_on_when_there_is_space() {
    proves(Scenario {
        name: "a full ring",
        sends: [of(2, 3), 0],
        lengths: &[4088],
        host: if throughline_effort::is_full() { &[Op::Open, Op::Send, Op::Close] } else { &[Op::Open, Op::Send] },
        guest: if throughline_effort::is_full() { &[Op::Accept, Op::Recv, Op::Close] } else { &[Op::Accept, Op::Recv] },
        between: &[Op::Recv, Op::Send],
        budget: Budget { meets: 1, ..NOTHING },
        ..BASE
    });
}

/// A bell is lost without notice, and another finds nobody.
#[test]
fn lost_bells_cost_time_only() {
    proves(Scenario {
        name: "lost bells",
        sends: [of(0, 1), 1],
        budget: Budget { losses: 1, hang_ups: 1, ..NOTHING },
        ..BASE
    });
}

/// A process dies between two operations, or between two stores of one, and its successor attaches.
#[test]
fn deaths_lose_nothing_that_was_accepted() {
    proves(Scenario {
        name: "deaths",
        sends: [of(0, 1), 1],
        budget: Budget { deaths: of(0, 1), deaths_inside: 1, ..NOTHING },
        ..BASE
    });
}

/// The host publishes nothing for a while.
#[test]
fn a_freeze_changes_nothing_but_the_time() {
    proves(Scenario {
        name: "freeze and thaw",
        uses: of(1, 2),
        sends: [of(0, 1), 1],
        budget: Budget { freezes: 1, ..NOTHING },
        ..BASE
    });
}

/// A snapshot is taken and restored, also in the middle of what the guest does.
#[test]
fn a_restore_goes_on_where_the_snapshot_was_taken() {
    proves(Scenario {
        name: "snapshot and restore",
        uses: of(1, 2),
        sends: [of(0, 1), 1],
        between: &[Op::Restore],
        budget: Budget { restores: 1, meets: 1, ..NOTHING },
        ..BASE
    });
}

/// Bytes in pieces that do not fill words.
#[test]
fn a_stream_comes_out_as_it_went_in() {
    proves(Scenario {
        name: "a stream",
        kind: Kind::Stream,
        sends: [of(1, 2), 0],
        lengths: &[9, 3],
        read: 7,
        host: &[Op::Open, Op::Send, Op::Feed, Op::Shutdown, Op::Close],
        guest: &[Op::Accept, Op::Recv, Op::Peek, Op::Commit, Op::Close],
        between: &[Op::Shutdown, Op::Close, Op::Commit],
        budget: Budget { meets: 1, ..NOTHING },
        ..BASE
    });
}

/// The same, with an end that dies.
#[test]
fn a_stream_survives_its_ends() {
    proves(Scenario {
        name: "a stream and deaths",
        kind: Kind::Stream,
        sends: [of(2, 3), 0],
        lengths: &[3, 2, 9],
        read: 5,
        host: &[Op::Open, Op::Send, Op::Shutdown],
        guest: &[Op::Accept, Op::Recv, Op::Close],
        budget: Budget { deaths_inside: 1, deaths: of(0, 1), ..NOTHING },
        ..BASE
    });
}
