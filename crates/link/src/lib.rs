//! Placeholder.

mod doorbell;
mod lease;
mod region;
mod sidecar;
