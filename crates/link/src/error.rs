//! What can go wrong on a channel. Would-block is no error here: the polling functions pend, and
//! the `try_` functions say so in their own types.

use throughline_ring::Corrupt;
use throughline_shmem::AllocateError;

use crate::core::RolledBack;

/// Why an operation on a channel failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer has closed; what is written now would never be read.
    #[error("the peer has closed the channel")]
    Closed,
    /// The peer gave the channel up; what it had sent is dropped.
    #[error("the peer has reset the channel")]
    Reset,
    /// Nobody listens on the port.
    #[error("the peer refuses the channel: nobody listens on its port")]
    Refused,
    /// The peer broke the protocol. The channel is lost for ever; others go on.
    #[error("the channel is corrupt and was given up: {0}")]
    Corrupt(#[from] Corrupt),
    /// A message that can never fit.
    #[error(
        "a message of {len} bytes is longer than the {max} that the channel's ring holds; open a wide channel, or split it"
    )]
    TooLong {
        /// Bytes of the message.
        len: usize,
        /// The most that fit.
        max: usize,
    },
    /// The handle's use of the channel is over.
    #[error("the channel has been closed on this side")]
    Ended,
    /// This side has ended its direction before.
    #[error("this side has already ended its direction of the channel")]
    Shut,
    /// Every channel of the wanted shape is in use.
    #[error("every channel is in use; close one, or wait for one with a deadline")]
    Busy,
    /// The region has no channel that this side opens, of that shape.
    #[error("the region has no such channel for this side to open")]
    NoSuchSlot,
    /// The deadline passed.
    #[error("the peer did not answer before the deadline")]
    TimedOut,
    /// There is no memory for the channel's rings.
    #[error("the channel has no memory for its rings: {0}")]
    Memory(#[from] AllocateError),
    /// Somebody listens on the port already.
    #[error("port {0} has a listener already")]
    PortTaken(u32),
    /// Nobody listens on the port here.
    #[error("nobody listens on port {0} here: give it to the builder, or listen first")]
    NoListener(u32),
    /// More was committed than was peeked at.
    #[error("{asked} bytes were to be committed, and {peeked} had been peeked at")]
    NotPeeked {
        /// Bytes peeked at and not yet committed.
        peeked: u64,
        /// Bytes to be committed.
        asked: u64,
    },
    /// A position that lies before what was consumed.
    #[error("position {asked} was asked for, and everything before {taken} has been consumed")]
    Consumed {
        /// The position.
        asked: u64,
        /// End of what was consumed.
        taken: u64,
    },
    /// The channel's kind is another than the one asked for.
    #[error("the channel carries {0:?}s")]
    Kind(throughline_ring::Kind),
}

/// Why a channel could not be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The id names another timeline's bytes.
    #[error("the channel belongs to timeline {asked:032x}, and {running:032x} runs; list the channels of this one")]
    OtherTimeline {
        /// The timeline of the id.
        asked: u128,
        /// The one that runs.
        running: u128,
    },
    /// The id names bytes of a timeline that was lost: the VM went back to a checkpoint of it.
    #[error(
        "timeline {from:032x} was lost, and {to:032x} runs, from its checkpoint on; {}",
        undone(how_far.as_ref())
    )]
    RolledBack {
        /// The timeline of the id.
        from: u128,
        /// The one that runs.
        to: u128,
        /// How far the channel went back; `None` where it was opened after the checkpoint and is gone, and where its
        /// owner was told before.
        how_far: Option<RolledBack>,
    },
    /// The id names the parent's bytes, and this is a child of it.
    #[error("the channel belongs to the parent {from:032x}, and its child {index}, {to:032x}, runs; list its channels")]
    Forked {
        /// The timeline of the id.
        from: u128,
        /// The one that runs.
        to: u128,
        /// Which child it is.
        index: u64,
    },
    /// That use of the channel is over.
    #[error("the channel has been closed since")]
    Ended,
    /// Somebody in this process has it.
    #[error("the channel has an owner already")]
    Held,
    /// It was given up.
    #[error("the channel is corrupt and was given up: {0}")]
    Corrupt(Corrupt),
}

fn undone(how_far: Option<&RolledBack>) -> String {
    match how_far {
        Some(RolledBack { sent, received, .. }) => format!(
            "of the channel's bytes, {} that were sent are undone, and {} that were received come again; list the channels of this timeline",
            sent.bytes(),
            received.bytes()
        ),
        None => "the channel was opened after the checkpoint, and is gone, or its owner was told before".to_owned(),
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            Error::Closed | Error::Shut => ErrorKind::BrokenPipe,
            Error::Reset => ErrorKind::ConnectionReset,
            Error::Refused => ErrorKind::ConnectionRefused,
            Error::Corrupt(_) => ErrorKind::InvalidData,
            Error::TooLong { .. }
            | Error::Kind(_)
            | Error::NoSuchSlot
            | Error::NotPeeked { .. }
            | Error::Consumed { .. }
            | Error::NoListener(_) => ErrorKind::InvalidInput,
            Error::Ended => ErrorKind::NotConnected,
            Error::Busy => ErrorKind::ResourceBusy,
            Error::TimedOut => ErrorKind::TimedOut,
            Error::Memory(_) => ErrorKind::StorageFull,
            Error::PortTaken(_) => ErrorKind::AddrInUse,
        };
        Self::new(kind, error)
    }
}
