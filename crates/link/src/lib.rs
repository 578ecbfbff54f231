//! A connection between a host and a microVM that survives snapshot, restore, fork, and the death of
//! either process.
//!
//! ```text
//!   Stream, Messages ── driver (tokio) ── core ── ring ── words of the region ── … the same, in the guest
//!                          │                                     │
//!                       doorbell                             sidecar (host only)
//! ```
//!
//! All of a connection's state is bytes in a [`Region`], which travels with the VM's memory, and in the
//! host's [`Sidecar`], which the guest never sees. A [`Link`] is one side's attachment; a channel is one
//! connection, a [`Stream`] of bytes or [`Messages`]. A new process that attaches finds every channel
//! where its predecessor left it ([`Link::channels`], [`Link::adopt`]).
//!
//! What you write is published when the call returns; what you have not read is still in the region.
//! `recv` and `AsyncRead` hand bytes over once. Who must not lose them to a crash of its own peeks,
//! processes, and commits.
//!
//! The link knows no VMM. Two processes can use it as they are, over a memfd and eventfds:
//!
//! ```
//! use throughline::{Doorbell, Geometry, Link, Region, Sidecar};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let region = Region::create_memfd("example", &Geometry::default())?;
//! let theirs = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned()?)?;
//! let (sidecar, _file) = Sidecar::create_memfd("example", &region)?;
//! let (here, there) = Doorbell::eventfd_pair()?;
//!
//! let host = Link::host(region, sidecar).doorbell(here).attach()?;
//! let guest = Link::guest(theirs).doorbell(there).listen(7).attach()?;
//!
//! let mut listener = guest.listener(7)?;
//! let echo = tokio::spawn(async move {
//!     let (mut reader, mut writer) = listener.accept().await?.stream()?.into_split();
//!     tokio::io::copy(&mut reader, &mut writer).await?;
//!     writer.shutdown().await
//! });
//!
//! let mut stream = host.connect(7).await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//! assert_eq!(answer, "hello");
//! echo.await??;
//! # Ok(())
//! # }
//! ```

#![cfg_attr(loom, expect(dead_code, reason = "models call a part of the core"))]

// The model checker gets the core alone: it knows neither the system nor tokio.
#[cfg(not(loom))]
mod backing;
#[cfg(not(loom))]
mod connect;
#[cfg(not(loom))]
mod control;
pub mod core;
mod counters;
#[cfg(not(loom))]
mod doorbell;
#[cfg(not(loom))]
mod driver;
mod error;
mod event;
#[cfg(not(loom))]
mod handle;
#[cfg(not(loom))]
mod lease;
#[cfg(not(loom))]
mod link;
#[cfg(not(loom))]
mod listener;
#[cfg(not(loom))]
mod messages;
#[cfg(not(loom))]
mod region;
#[cfg(not(loom))]
mod sidecar;
#[cfg(not(loom))]
mod spin;
#[cfg(not(loom))]
mod storm;
#[cfg(not(loom))]
mod stream;
mod sync;

#[cfg(not(loom))]
pub use backing::{BackingError, FileId};
#[cfg(not(loom))]
pub use connect::Connect;
#[cfg(not(loom))]
pub use control::{Request, Unanswered};
#[cfg(loom)]
pub use core::models;
pub use core::{AttachCoreError, Carried, ChannelId, ChannelInfo, OnFork, Rung};
pub use counters::Counters;
#[cfg(not(loom))]
pub use doorbell::{Doorbell, Drained};
pub use error::{AdoptError, Error};
pub use event::Event;
#[cfg(not(loom))]
pub use lease::{Holder, Lease};
#[cfg(not(loom))]
pub use link::{AttachError, Channel, Link, LinkBuilder};
#[cfg(not(loom))]
pub use listener::Listener;
#[cfg(not(loom))]
pub use messages::{MessageReceiver, MessageSender, Messages, TryRecv};
#[cfg(not(loom))]
pub use region::{GuestLeaseError, Region, RegionError};
#[cfg(not(loom))]
pub use sidecar::{Origin, Sidecar, SidecarError, SidecarFault, Timeline};
#[cfg(not(loom))]
pub use stream::{Stream, StreamReader, StreamWriter};
pub use throughline_ring::{Class, Corrupt, Geometry, Identity, Kind, Side};
