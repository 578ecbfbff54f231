//! Echo.
//!
//! [`port::ECHO`](crate::port::ECHO) sends back what comes, message by message or byte by byte.
//! [`port::ECHO_POLL`](crate::port::ECHO_POLL) takes a [`Poll`] first and then answers messages without
//! ever sleeping, for measuring the link without its doorbell.

use serde::{Deserialize, Serialize};

use crate::Message;

/// How long to poll: the first message on a polled echo channel. It is not echoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    /// Milliseconds without a message after which the guest goes back to sleeping echo; it returns to
    /// polling with the next message. At most [`Poll::MAX_MILLIS`] are granted.
    pub millis: u32,
}

impl Poll {
    /// Longest time the guest polls without traffic.
    pub const MAX_MILLIS: u32 = 10_000;
}

impl Message for Poll {
    const NAME: &'static str = "polled echo request";
    const MAX_LEN: usize = 16;
}
