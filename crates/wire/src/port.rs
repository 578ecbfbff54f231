//! Ports that the agent listens on. Those below [`FIRST_FREE`] belong to Throughline; programs use the rest.

/// Commands; see [`crate::exec`].
pub const EXEC: u32 = 1;
/// Identity and counters; see [`crate::info`].
pub const INFO: u32 = 2;
/// Power-off; see [`crate::power`].
pub const POWER: u32 = 3;
/// Files into the guest and out of it; see [`crate::files`].
pub const FILES: u32 = 4;
/// The user's secrets; see [`crate::secrets`].
pub const SECRETS: u32 = 5;
/// Plain echo of messages or of a stream.
pub const ECHO: u32 = 7;
/// Echo by busy polling; see [`crate::echo`].
pub const ECHO_POLL: u32 = 8;
/// Numbered ticks; see [`crate::ticker`].
pub const TICKER: u32 = 13;
/// Numbered records both ways, as messages or as a stream; see [`crate::sequence`].
pub const SEQUENCE: u32 = 20;
/// Figures of the sequence service; see [`crate::report`].
pub const REPORT: u32 = 21;

/// The first port that Throughline never uses itself.
pub const FIRST_FREE: u32 = 1024;

/// All of the agent's ports.
pub const ALL: [u32; 10] = [EXEC, INFO, POWER, FILES, SECRETS, ECHO, ECHO_POLL, TICKER, SEQUENCE, REPORT];
