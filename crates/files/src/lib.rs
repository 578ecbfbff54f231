//! Files and trees over a message channel: what host and guest share.
//!
//! ```text
//!   pack    tree ──► headers, bytes ──► Output ─┐                    ┌─► Input ──► unpack ──► tree
//!           (a thread)                          └─► pump ═ channel ═ pump          (a thread)
//! ```
//!
//! Both sides pack and unpack with the same code, and neither believes the other: an archive is read with bounds on
//! everything, its paths are taken below an open folder, and no symbolic link is ever gone through. So a hostile guest
//! writes nothing outside the destination on the host, and a link that a user planted in the guest misleads nobody.
//!
//! File systems are touched in a thread of their own ([`pump`]), which may hang there without hanging anybody else.
//! The bytes are copied as little as possible: out of the ring, then straight into the file; out of the file, then
//! into the ring.

mod archive;
mod chunks;
mod failure;
mod pack;
mod place;
pub mod pump;
mod root;
mod unpack;

pub use chunks::{Input, Output};
pub use failure::failure;
pub use pack::{found, pack};
pub use root::{Owner, Root};
pub use unpack::unpack;
