//! Regions, sidecars and leases, on real files, memfds and processes.

mod common;
mod full;
mod region;
mod rolled_back;
mod sidecar;
