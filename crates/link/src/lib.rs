//! Placeholder.

mod backing;
mod connect;
mod control;
mod core;
mod counters;
mod doorbell;
mod driver;
mod error;
mod event;
mod handle;
mod lease;
mod link;
mod listener;
mod messages;
mod region;
mod sidecar;
mod spin;
mod storm;
mod stream;
mod sync;

pub use backing::{BackingError, FileId};
pub use connect::Connect;
pub use control::{Request, Unanswered};
pub use core::{AttachCoreError, Carried, ChannelId, ChannelInfo, OnFork};
pub use counters::Counters;
pub use doorbell::{Doorbell, Drained, Rung};
pub use error::{AdoptError, Error};
pub use event::Event;
pub use lease::{Holder, Lease};
pub use link::{AttachError, Channel, Link, LinkBuilder};
pub use listener::Listener;
pub use messages::{MessageReceiver, MessageSender, Messages, TryRecv};
pub use region::{GuestLeaseError, Region, RegionError};
pub use sidecar::{Origin, Sidecar, SidecarError, SidecarFault, Timeline};
pub use stream::{Stream, StreamReader, StreamWriter};
pub use throughline_ring::{Class, Corrupt, Geometry, Identity, Kind, Side};
