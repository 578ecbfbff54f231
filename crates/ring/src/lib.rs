//! The byte ring that carries one direction of a Throughline channel, and the words around it.
//!
//! ```text
//!                   region (shared)                                    sidecar (host only)
//!   page 0          header: magic, version, geometry, id               sidecar header
//!   pages 1..=S     host pages:  link words, one record per channel    the same words, kept
//!   pages S+1..=2S  guest pages: link words, one record per channel
//!   rings           per channel host→guest, then guest→host
//!
//!   a ring:   freed ........ taken ........ produced ........ freed + capacity
//!             | being scrubbed | unread bytes | the producer's to write |
//! ```
//!
//! Everything here is pure protocol over [`Words`](throughline_shmem::Words): no system calls, no
//! clocks, no unsafe code. Cursors are absolute 64-bit positions that never go back. A side keeps
//! its own cursors privately and treats each word of the peer as an allegation, which is loaded once
//! and checked before it is used. See PROTOCOL.md for each word's offset, writer and order of stores.
//!
//! ```
//! use throughline_ring::{Geometry, Class, Side, Layout, Ledger, Producer, Consumer, View};
//! use throughline_shmem::HeapWords;
//!
//! let geometry = Geometry::new(vec![Class { opener: Side::Host, count: 1, ring_bytes: 4096 }])?;
//! let layout = Layout::new(&geometry);
//! let memory = HeapWords::new(layout.region_words());
//! let host = Ledger::new(&memory, None);
//! let guest = Ledger::new(&memory, None);
//! let (sending, receiving) = (View::new(&host, &layout, Side::Host, 0), View::new(&guest, &layout, Side::Guest, 0));
//!
//! let mut producer = Producer::attach(&sending);
//! producer.stage_message(&sending, b"hello")?;
//! producer.publish(&sending);
//!
//! let mut consumer = Consumer::attach(&receiving);
//! let frame = consumer.next_frame(&receiving)?.expect("a message was published");
//! let mut payload = vec![0; frame.len()];
//! consumer.read_frame(&receiving, frame, &mut payload);
//! consumer.commit(&receiving, frame.span());
//! assert_eq!(payload, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(not(loom), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod consumer;
mod corrupt;
mod cursor;
#[cfg(all(test, not(loom)))]
mod exhaustive;
mod frame;
mod geometry;
mod header;
mod hostname;
mod identity;
mod layout;
mod producer;
mod sleep;
mod state;
#[cfg(feature = "test-switches")]
pub mod switches;
mod view;

pub use consumer::Consumer;
pub use corrupt::{Corrupt, Fault, PeerWord};
pub use cursor::{NEVER, Position};
pub use frame::{Frame, HEADER_BYTES};
pub use geometry::{Class, Geometry, GeometryError, Side};
pub use header::{Header, HeaderError, MAJOR, MINOR, Version};
pub use hostname::{Hostname, HostnameError};
pub use identity::{Identity, erase_entropy, last_identity, read_identity, write_identity};
pub use layout::{Layout, LinkWord, PAGE_BYTES, RecordWord, Slot};
pub use producer::{Full, Producer};
pub use sleep::{Cause, Episode, Ringer, Sleeper, register};
pub use state::{Generation, Kind, Phase, Reason, State};
pub use view::{Ledger, View};
