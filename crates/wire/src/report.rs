//! What the guest's sequence service sent and saw, as the guest itself recorded it.
//!
//! The record lives in the guest's memory and so travels with every snapshot. The answer to a
//! [`Request`] is one [`Reply::Channel`] each and a [`Reply::End`].

use serde::{Deserialize, Serialize};

use crate::Message;
use crate::sequence::{Params, Seen, Sent};

/// Asks for figures; may be repeated on one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Of all channels that the guest remembers.
    All,
    /// Of the channels with this seed.
    Seed(u64),
}

impl Message for Request {
    const NAME: &'static str = "report request";
    const MAX_LEN: usize = 16;
}

/// Answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// One channel, oldest first.
    Channel(Box<Channel>),
    /// All were sent.
    End {
        /// How many.
        channels: u64,
    },
}

impl Message for Reply {
    const NAME: &'static str = "report reply";
    const MAX_LEN: usize = 2048;
}

/// A channel of the sequence service, seen from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// What the host asked for.
    pub params: Params,
    /// Whether it is a stream; messages otherwise.
    pub stream: bool,
    /// Guest to host.
    pub sent: Sent,
    /// Host to guest.
    pub seen: Seen,
    /// Whether both directions came to their end.
    pub finished: bool,
    /// What ended the channel before that, empty if nothing did.
    pub error: String,
}

impl Channel {
    /// Longest [`error`](Self::error) in bytes.
    pub const MAX_ERROR: usize = 512;
}
