//! Who the guest is at this moment: for tests of identity repair, and for a look at the agent.

use serde::{Deserialize, Serialize};

use crate::Message;

/// Asks for an [`Info`]; may be repeated on one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request;

impl Message for Request {
    const NAME: &'static str = "info request";
    // A unit struct encodes to nothing at all.
    const MAX_LEN: usize = 0;
}

/// The guest as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// [`PROTOCOL`](crate::PROTOCOL) of the agent.
    pub protocol: u32,
    /// The agent's package version.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Epoch of the identity that the agent applied last; 0 = none yet.
    pub epoch: u128,
    /// Number of that identity.
    pub identity_seq: u64,
    /// 32 bytes from `getrandom`, fresh for each request.
    pub random: [u8; 32],
    /// `CLOCK_REALTIME` in nanoseconds.
    pub realtime_ns: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub monotonic_ns: u64,
    /// First line of `/etc/machine-id`, empty without one.
    pub machine_id: String,
    /// The kernel's host name.
    pub hostname: String,
    /// Commands that are running.
    pub commands: u32,
    /// Name and value of counters: the link's in the guest (bells and so on) and the agent's.
    pub counters: Vec<(String, u64)>,
}

impl Message for Info {
    const NAME: &'static str = "info";
    const MAX_LEN: usize = 8 * 1024;
}
