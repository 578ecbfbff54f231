//! Ending the guest.

use serde::{Deserialize, Serialize};

use crate::Message;

/// How to end the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Ends all commands (`SIGTERM`, after `grace_ms` `SIGKILL`), syncs and powers off.
    Off {
        /// Milliseconds that commands get to end by themselves; at most [`Request::MAX_GRACE`].
        grace_ms: u32,
    },
}

impl Request {
    /// Longest grace in milliseconds.
    pub const MAX_GRACE: u32 = 60_000;
}

impl Message for Request {
    const NAME: &'static str = "power request";
    const MAX_LEN: usize = 16;
}

/// Answer to a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Commands have ended; the guest is gone in a moment.
    PoweringOff,
}

impl Message for Reply {
    const NAME: &'static str = "power reply";
    const MAX_LEN: usize = 16;
}
