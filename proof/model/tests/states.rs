//! The scenarios.

use throughline_model::{Budget, Op, Scenario, walk};
use throughline_ring::{Kind, Side};

#[test]
fn messages_between_drivers_that_sleep_and_wake() {
    let scenario = Scenario {
        name: "sleep and wake",
        opener: Side::Host,
        kind: Kind::Message,
        uses: 1,
        sends: [1, 1],
        lengths: &[5, 0, 8],
        read: 0,
        begin: 7 * 4096 - 16,
        host: &[Op::Open, Op::Send, Op::Recv, Op::Close],
        guest: &[Op::Accept, Op::Send, Op::Recv, Op::Close],
        budget: Budget::default(),
    };
    let states = walk(scenario);
    throughline_effort::proved("model: sleep and wake", states, "states");
}
