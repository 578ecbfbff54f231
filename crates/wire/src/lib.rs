//! What a host and the agent in its guest say to each other.
//!
//! The agent listens on the well-known [`port`]s. Each request opens a channel of its own, so a slow
//! one delays nobody else:
//!
//! ```text
//!   port::EXEC      messages           one command: exec::Request →, ← exec::Event
//!   port::INFO      messages           who the guest is now: info::Request →, ← info::Info
//!   port::POWER     messages           end the guest: power::Request →, ← power::Reply
//!   port::FILES     messages           files into the guest and out of it: files::Request →, data both ways, ← files::Reply
//!   port::SECRETS   messages           the user's secrets: secrets::Request →, ← secrets::Reply
//!   port::ECHO      messages, stream   what comes goes back
//!   port::ECHO_POLL messages           the same by busy polling, after an echo::Poll
//!   port::TICKER    messages           a clock to measure stand-still with: ticker::Request →, ← ticker::Tick
//!   port::SEQUENCE  messages, stream   numbered, checksummed records both ways: sequence
//!   port::REPORT    messages           what the guest's sequence service sent and saw: report::Request →, ← report::Reply
//! ```
//!
//! Messages are serde types in postcard's encoding, one to a frame. Sequence records are raw bytes
//! with a layout of their own. Everything a peer sends is bounded and checked before it is believed:
//! nothing here panics, whatever the bytes.
//!
//! ```
//! use throughline_wire::{decode, encode, exec};
//!
//! let bytes = encode(&exec::Request::Stdin(b"hello"))?;
//! assert_eq!(decode::<exec::Request>(&bytes)?, exec::Request::Stdin(b"hello"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Changing a message
//!
//! Frozen guests outlive releases, and the encoding describes nothing about itself. So a shipped
//! variant keeps its fields, their order and its place for ever; what is new becomes a new variant at
//! the end, and the host looks at the agent's version (see [`PROTOCOL`]) before it uses it. The golden
//! bytes in the tests notice when somebody forgets.

#![forbid(unsafe_code)]

mod codec;
pub mod echo;
pub mod exec;
pub mod files;
pub mod info;
pub mod port;
pub mod power;
pub mod report;
pub mod secrets;
pub mod sequence;
pub mod ticker;

pub use codec::{DecodeError, EncodeError, Message, decode, encode};

/// Version of this protocol. The agent stores it in its page of the region when it attaches, so a host
/// that takes over a restored guest knows it although nobody greets it again.
pub const PROTOCOL: u32 = 3;
