//! Numbered, checksummed records both ways, for tests and the demo.
//!
//! The host opens a channel to [`port::SEQUENCE`](crate::port::SEQUENCE), as messages or as a stream, and
//! first sends its [`Params`]. Then both send records and check what they receive, until each has sent
//! an end record.
//!
//! *Everything is a pure function.* Length and content of record `i` in a [`Direction`] depend on the
//! parameters and `i` alone. Whoever takes a channel over, and knows nothing but its position, computes
//! what comes next ([`locate`]) and goes on: [`Sender::resume`], [`Checker::resume`],
//! [`StreamChecker::resume`].
//!
//! ```text
//!   host → guest   params (48 bytes) | record 0 | record 1 | … | end
//!   guest → host                       record 0 | record 1 | … | end
//!
//!   record, little-endian:
//!     0   u32  magic
//!     4   u32  length of the whole record, header included
//!     8   u64  number (end record: count of records before it)
//!    16   u64  checksum over everything else
//!    24        content
//! ```
//!
//! On a message channel each of these is one message; on a stream they follow each other.

mod checker;
mod figures;
mod params;
mod place;
mod record;
mod sender;
mod stream;

pub use checker::Checker;
pub use figures::{Seen, Sent};
pub use params::{PARAMS_LEN, Params, ParamsError};
pub use place::{Framing, LocateError, Place, locate};
pub use record::{Direction, HEADER_LEN, MAX_RECORD, Parsed, parse, record_len, write_record};
pub use sender::Sender;
pub use stream::StreamChecker;

#[cfg(test)]
mod tests;
