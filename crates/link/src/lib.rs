//! Placeholder.

mod backing;
mod doorbell;
mod lease;
mod region;
mod sidecar;

pub use backing::{BackingError, FileId};
pub use doorbell::{Doorbell, Drained, Rung};
pub use lease::{Holder, Lease};
pub use region::{GuestLeaseError, Region, RegionError};
pub use sidecar::{Origin, Sidecar, SidecarError, SidecarFault, Timeline};
