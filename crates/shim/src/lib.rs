//! A shim: the small process that holds one sandbox's link and machine, and what its clients say to it.
//!
//! ```text
//!   client ──ring in memory of the client's own──► shim ──ring in the sandbox's region──► guest
//!      └────────────── lines of JSON (calls) ───────┘
//! ```
//!
//! | Module | Purpose |
//! |---|---|
//! | [`api`] | the calls, and their version |
//! | [`mod@line`] | how they travel |
//! | [`server`] | the shim |
//! | [`client`] | [`Remote`](client::Remote): a sandbox through its shim, which starts a new one when the old one dies |
//! | [`start`] | starting a shim |
//! | [`pool`] | pools of children in waiting, and their keepers |
//!
//! A shim may be killed at any moment. Its successor finds the guest's channels in the sandbox's region, the clients'
//! in theirs, and by the positions in both how far its predecessor came ([`throughline::Relay`]): nothing is lost,
//! nothing doubled, and the guest notices nothing.

pub mod api;
pub mod client;
mod error;
pub mod line;
pub mod pool;
pub mod server;
pub mod start;

pub use error::ShimError;
