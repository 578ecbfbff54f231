//! The one seam between the shipped atomics and the model checkers'.
//!
//! Loom explores what the memory model allows, for few threads. Shuttle tries schedules of whole links, in which
//! every access is sequentially consistent and its fence does nothing: it finds wrong orders of steps, never a
//! missing fence.

#[cfg(not(any(loom, shuttle)))]
pub use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(shuttle)]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
