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

#![cfg_attr(any(loom, shuttle), expect(dead_code, reason = "models call a part of the core"))]

// The model checkers get the core alone: they know neither the system nor tokio.
#[cfg(not(any(loom, shuttle)))]
mod backing;
#[cfg(not(any(loom, shuttle)))]
pub mod blocking;
#[cfg(not(any(loom, shuttle)))]
mod connect;
#[cfg(not(any(loom, shuttle)))]
mod control;
pub mod core;
mod counters;
#[cfg(not(any(loom, shuttle)))]
mod doorbell;
#[cfg(not(any(loom, shuttle)))]
mod driver;
mod error;
mod event;
#[cfg(not(any(loom, shuttle)))]
mod handle;
#[cfg(not(any(loom, shuttle)))]
mod lease;
#[cfg(not(any(loom, shuttle)))]
mod link;
#[cfg(not(any(loom, shuttle)))]
mod listener;
#[cfg(not(any(loom, shuttle)))]
mod messages;
#[cfg(not(any(loom, shuttle)))]
mod region;
#[cfg(all(feature = "tokio", not(any(loom, shuttle))))]
mod relay;
#[cfg(not(any(loom, shuttle)))]
mod sidecar;
#[cfg(not(any(loom, shuttle)))]
mod stream;
#[cfg(all(feature = "tokio", not(any(loom, shuttle))))]
mod stream_io;
mod sync;

#[cfg(not(any(loom, shuttle)))]
pub use backing::{BackingError, FileId};
#[cfg(not(any(loom, shuttle)))]
pub use connect::Connect;
#[cfg(not(any(loom, shuttle)))]
pub use control::{NotTaken, Request, Unanswered};
pub use core::{AttachCoreError, Carried, ChannelId, ChannelInfo, OnFork, RolledBack, Rung, Undone};
pub use counters::Counters;
#[cfg(not(any(loom, shuttle)))]
pub use doorbell::{Doorbell, Drained};
pub use error::{AdoptError, Error};
pub use event::Event;
#[cfg(not(any(loom, shuttle)))]
pub use lease::{Holder, Lease};
#[cfg(not(any(loom, shuttle)))]
pub use link::{AttachError, Channel, Link, LinkBuilder};
#[cfg(not(any(loom, shuttle)))]
pub use listener::Listener;
#[cfg(not(any(loom, shuttle)))]
pub use messages::{MessageReceiver, MessageSender, Messages, TryRecv};
#[cfg(not(any(loom, shuttle)))]
pub use region::{GuestLeaseError, Region, RegionError};
#[cfg(all(feature = "tokio", not(any(loom, shuttle))))]
pub use relay::{Began, Ended, Relay};
#[cfg(not(any(loom, shuttle)))]
pub use sidecar::{Origin, Sidecar, SidecarError, SidecarFault, Timeline};
#[cfg(not(any(loom, shuttle)))]
pub use stream::{Stream, StreamReader, StreamWriter};
pub use throughline_ring::{Class, Corrupt, Geometry, Hostname, HostnameError, Identity, Kind, Side};
