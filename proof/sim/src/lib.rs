//! Both ends of a link in simulated time, with everything that may go wrong, and an oracle that knows what
//! each timeline must see.
//!
//! ```text
//!   seed ── list of operations ── run ── worlds (timelines) ── two processes each ── core ── memory
//!                                           │                                          │
//!                                         oracle                       dies, is copied, lives again
//! ```
//!
//! One seed is one run, the same every time. What the processes do is the shipped core, driven as the
//! drivers drive it; a list of [`Call`]s can be run through any driver's process, which is an [`End`].
//! A process is killed before any of its stores. A machine is copied before any store of either side: its
//! guest, whose memory belongs to the copy, is made again by living through all that it had taken in, and
//! goes on from that very store. A failing seed says how to see it again.

mod bells;
mod call;
mod desk;
mod judge;
mod memory;
mod op;
mod oracle;
mod process;
mod raw;
mod run;
mod world;

pub use bells::Bells;
pub use call::{Action, Call, End, LISTENED, Outcome, Plan, RING, TICK_MS, UNADOPTED_MS, UNLISTENED};
pub use desk::Desk;
pub use judge::Judge;
pub use memory::Fate;
pub use op::{Op, Scope, What, generate};
pub use oracle::Violation;
pub use run::{Tally, run, trace};
