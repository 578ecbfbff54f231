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
