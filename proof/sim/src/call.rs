//! What a process may be asked to do: data, which any driver's process can follow.

use throughline::{Error, Identity, Kind};

/// Ports that processes listen on.
pub const LISTENED: [u32; 2] = [7, 8];
/// A port that nobody listens on.
pub const UNLISTENED: u32 = 99;
/// Bytes of each ring.
pub const RING: u64 = 4096;
/// After so many milliseconds an open that asks for it is closed when nobody adopts it.
pub const UNADOPTED_MS: u64 = 2000;
/// Milliseconds that a tick of the backstop takes.
pub const TICK_MS: u64 = 500;

/// One step of one process. What it names (a channel by its number among those that the process holds)
/// may not be there: then it is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Opens a channel; waits while all are in use.
    Open {
        /// What it carries.
        kind: Kind,
        /// To which port.
        port: u32,
        /// Whether it is closed when nobody adopts it in time.
        expires: bool,
    },
    /// Accepts an open of one of the ports that are listened on.
    Accept {
        /// Which.
        port: u8,
    },
    /// Writes so many bytes, or one message of them.
    Write {
        /// Number of the channel.
        channel: u8,
        /// Bytes.
        len: u16,
        /// What the bytes are made of.
        salt: u32,
        /// Whether to leave them unpublished (messages only).
        feed: bool,
    },
    /// Publishes what was fed.
    Flush {
        /// Number of the channel.
        channel: u8,
    },
    /// Reads at most so many bytes, or one message.
    Read {
        /// Number of the channel.
        channel: u8,
        /// Bytes.
        max: u16,
        /// Whether to leave them there.
        peek: bool,
    },
    /// Consumes what was peeked at: all, or of a stream a part.
    Commit {
        /// Number of the channel.
        channel: u8,
        /// In 255ths.
        part: u8,
    },
    /// Ends the sending direction.
    Shutdown {
        /// Number of the channel.
        channel: u8,
    },
    /// Closes both.
    Close {
        /// Number of the channel.
        channel: u8,
        /// Whether what was sent is to be dropped.
        reset: bool,
    },
    /// Takes over the channels that nobody holds.
    Adopt,
    /// One round of the driver: takes bells, serves, falls asleep.
    Drive,
    /// Time passes, and the backstop looks.
    Tick,
    /// Shuts the gate.
    Freeze,
    /// Opens it.
    Thaw,
    /// Host: gives the guest an identity.
    GiveIdentity,
    /// Host: asks the guest to be quiet.
    AskQuiet,
    /// Host: lets it go on.
    LiftQuiet,
    /// Looks for what the other side asks, or for its acknowledgement.
    Control,
}

/// What a call comes to, given what the process holds and waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The channel it is about: slot, generation, kind.
    pub on: Option<(usize, u32, Kind)>,
    /// What is done.
    pub action: Action,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as the calls that they come from")]
pub enum Action {
    Open { kind: Kind, port: u32, expires: bool },
    Accept { port: u32 },
    Write { payload: Vec<u8>, feed: bool },
    Flush,
    Read { max: usize, peek: bool },
    Commit { bytes: u64, whole: bool },
    Shutdown,
    Close { reset: bool },
    Adopt,
    Drive,
    Tick,
    Freeze,
    Thaw,
    GiveIdentity,
    AskQuiet,
    LiftQuiet,
    Control,
}

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It waits.
    Pending,
    /// It is done.
    Done,
    /// A channel is open: slot, generation.
    Opened(usize, u32),
    /// A channel is accepted: slot, generation, kind.
    Accepted(usize, u32, Kind),
    /// So many bytes were accepted.
    Wrote(usize),
    /// These were handed over, or shown.
    Got(Vec<u8>),
    /// The peer has finished.
    End,
    /// These channels have an owner again.
    Adopted(Vec<(usize, u32, Kind)>),
    /// The backstop found so many things, while its side slept and no bell was on its way.
    Found(usize),
    /// The guest has taken this identity on.
    TookOn(Identity),
    /// The guest has followed a request to be quiet (odd), or to go on (even).
    Followed(u64),
    /// The guest has acknowledged everything that the host asked.
    Acknowledged,
    /// It failed.
    Failed(Error),
}

/// One side's process, behind some driver: what the list of calls is run through.
pub trait End {
    /// What a call comes to now; `None` where it is nothing.
    fn plan(&self, call: &Call) -> Option<Plan>;

    /// Does it.
    fn perform(&mut self, plan: &Plan) -> Outcome;
}

/// Bits that every byte of a payload has: a whole word of them is no cursor, no state, no want.
const CANARY: u64 = 0xc0c0_c0c0_c0c0_c0c0;
const CANARY_MASK: u64 = 0xe0e0_e0e0_e0e0_e0e0;

/// Whether a word can only be payload.
pub(crate) fn is_payload(word: u64) -> bool {
    word & CANARY_MASK == CANARY
}

/// Bytes that tell where they belong.
pub(crate) fn payload(salt: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        bytes.extend_from_slice(&((state ^ state >> 29) & !CANARY_MASK | CANARY).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
