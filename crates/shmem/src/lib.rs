//! Shared memory as 64-bit words.
//!
//! This is the only crate of Throughline that touches memory which another process, or a hostile
//! guest, may write at the same time. Everything above it works on the [`Words`] trait, and so runs
//! unchanged on plain memory, on instrumented memory, and under a model checker.

#![cfg_attr(not(any(feature = "std", loom, shuttle)), no_std)]

extern crate alloc;

#[cfg(all(feature = "std", not(any(loom, shuttle))))]
mod bulk;
mod heap;
#[cfg(all(feature = "std", not(any(loom, shuttle))))]
mod mapping;
pub mod sync;
mod words;

pub use heap::HeapWords;
#[cfg(all(feature = "std", not(any(loom, shuttle))))]
pub use mapping::{MapError, Mapping, Populate};
pub use words::{AllocateError, WORD, Words};
