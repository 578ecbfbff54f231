//! A clock in the guest that the host watches, to measure how long the guest stood still.
//!
//! The guest's own clocks stop with it, so a gap is only seen from outside: the host stamps each
//! [`Tick`] with its own clock as it arrives, and the largest distance between two of them is the
//! stand-still as a program in the guest would have suffered it. The period is added to every gap.

use serde::{Deserialize, Serialize};

use crate::Message;

/// Starts the ticks. They end when the host closes the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Microseconds between ticks; the guest uses at least [`Request::MIN_PERIOD`].
    pub period_us: u32,
}

impl Request {
    /// Shortest period in microseconds.
    pub const MIN_PERIOD: u32 = 100;
}

impl Message for Request {
    const NAME: &'static str = "ticker request";
    const MAX_LEN: usize = 16;
}

/// One tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// Number of this tick, from 0, without gaps.
    pub number: u64,
    /// Periods of the guest's timer that have passed; ahead of `number` where the guest was late by its own clock.
    pub periods: u64,
    /// The guest's `CLOCK_MONOTONIC` in nanoseconds.
    pub monotonic_ns: u64,
    /// The guest's `CLOCK_REALTIME` in nanoseconds.
    pub realtime_ns: u64,
}

impl Message for Tick {
    const NAME: &'static str = "tick";
    const MAX_LEN: usize = 64;
}
