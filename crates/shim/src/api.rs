//! What a shim and its clients say to each other: lines of JSON over a Unix socket.
//!
//! The bytes of channels do not pass here: they pass through shared memory that the client owns, and whose
//! descriptors it hands over with [`Call::Link`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use throughline::Began;
use throughline_sandbox::Record;
use throughline_sandbox::engine::Exit;

/// Version of everything here. A client refuses a shim of another one, and says what to do.
pub const VERSION: u32 = 1;

/// The socket's name in a sandbox's runtime folder.
pub const SOCKET: &str = "api";

/// Longest line, in bytes, its end included.
pub const MAX_LINE: usize = 256 << 10;

/// The port to which a client opens channels on its own link.
pub const PORT: u32 = 1;

/// What a client wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// The first call of a connection.
    Hello {
        /// The client's [`VERSION`].
        api: u32,
    },
    /// Hands over the client's link: region, the eventfd that wakes the client, the one that wakes the shim.
    Link,
    /// Opens a channel to the guest, or finds the one that this id was given to before.
    Open(Open),
    /// Carries a channel of the guest to one of the client's link, and back.
    Pair(Pair),
    /// The commands in the guest that somebody started through a shim.
    Commands,
    /// What is on paper.
    Record,
    /// Every channel of the guest's link.
    Channels,
    /// Stops the guest's processors.
    Pause,
    /// Lets them run.
    Resume,
    /// Takes a snapshot.
    Snapshot {
        /// Where; absolute.
        place: PathBuf,
        /// Whether the sandbox ends with it.
        stop: bool,
        /// Whether a guest that does not become quiet is no error.
        unquiesced: bool,
    },
    /// Waits for the machine's end.
    Wait,
    /// Ends the machine.
    Kill,
}

/// A channel to open. May be repeated.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The client's name for it: eight hexadecimal digits that nobody else has.
    pub id: String,
    /// The guest's port.
    pub port: u32,
    /// Whether it carries messages, or a stream.
    pub messages: bool,
    /// The smallest ring that will do.
    pub ring_bytes: u64,
    /// For people.
    pub label: String,
}

/// Where a channel of the guest stands.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The timeline in which its positions mean something.
    #[serde(with = "timeline")]
    pub timeline: u128,
    /// Position at which its bytes go on, from the guest.
    pub received: u64,
    /// And to the guest.
    pub sent: u64,
    /// Bytes of each of its rings; the client's must have as many.
    pub ring_bytes: u64,
    /// Whether it carries messages.
    pub messages: bool,
}

/// Two channels to pair. May be repeated to a shim's successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The guest's channel.
    pub id: String,
    /// Slot of the client's.
    pub slot: usize,
    /// Use of the slot.
    pub generation: u32,
    /// What [`Opened`] said.
    #[serde(with = "timeline")]
    pub timeline: u128,
    /// What [`Opened`] said.
    pub received: u64,
    /// What [`Opened`] said.
    pub sent: u64,
    /// Whether the guest's channel stays when the client closes its own.
    pub keep: bool,
}

impl Pair {
    pub(crate) fn began(&self) -> Began {
        Began { received: self.received, sent: self.sent }
    }
}

/// The machine died, and is back at its last checkpoint: what that means for a channel. Bytes are those of its rings: a
/// message's header, and what fills its last word up, are counted with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Bytes of the guest's that were received, and come again, perhaps different.
    pub received: u64,
    /// Bytes that were sent, and that the guest of now never had.
    pub sent: u64,
    /// Whether the channel is gone: it was opened after the checkpoint.
    pub gone: bool,
}

/// A timeline's id as 32 hexadecimal digits: JSON's numbers have no 128 bits.
mod timeline {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(id: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{id:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(de::Error::custom)
    }
}

/// A command in the guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CommandInfo {
    /// What to attach to.
    pub id: String,
    /// What was run, or the beginning of it.
    pub label: String,
    /// Whether a client follows it.
    pub attached: bool,
    /// Bytes of its events that nobody has read.
    pub unread: u64,
}

/// A channel of the guest's link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelEntry {
    /// Number of the slot.
    pub slot: usize,
    /// Which use of it.
    pub generation: u32,
    /// The port.
    pub port: u32,
    /// `stream` or `messages`.
    pub kind: String,
    /// Its label.
    pub label: String,
    /// Whether somebody has it.
    pub held: bool,
    /// End of the host's bytes.
    pub sent: u64,
    /// Of those, bytes on their way.
    pub sent_unread: u64,
    /// End of the guest's bytes that were read.
    pub received: u64,
    /// The guest's bytes that wait.
    pub unread: u64,
    /// Why it was given up.
    pub corrupt: Option<String>,
}

/// What a snapshot came to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Snapped {
    /// How long the guest stood still, in milliseconds.
    pub stand_still_ms: f64,
    /// How long all of it took, in milliseconds.
    pub total_ms: f64,
    /// Unread bytes carried.
    pub carried_bytes: u64,
    /// Whether the guest was quiet.
    pub quiesced: bool,
}

/// An answer that fits its call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello {
        /// The shim's [`VERSION`].
        api: u32,
        /// Its process id.
        pid: u32,
        /// Its release.
        release: String,
    },
    /// It is done.
    Done,
    /// To [`Call::Open`].
    Opened(Opened),
    /// To [`Call::Commands`].
    Commands {
        /// All of them.
        commands: Vec<CommandInfo>,
    },
    /// To [`Call::Channels`].
    Channels {
        /// All of them.
        channels: Vec<ChannelEntry>,
    },
    /// To [`Call::Record`].
    Record {
        /// It.
        record: Box<Record>,
    },
    /// To [`Call::Snapshot`].
    Snapped(Snapped),
    /// To [`Call::Wait`].
    Exited {
        /// How.
        exit: Exit,
    },
}

/// Why a call failed.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: Kind,
    /// For people.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The two speak different versions.
    Version,
    /// There is no such thing.
    Missing,
    /// Another client has it.
    Taken,
    /// A process that is no shim has the sandbox.
    Held,
    /// The call broke the rules.
    Misuse,
    /// The sandbox has ended.
    Ended,
    /// Its machine has died, and it does not come back from its last checkpoint.
    Lost,
    /// What was asked for belongs to a timeline that was lost.
    RolledBack,
    /// Anything else.
    Failed,
}

/// From client to shim, or to a keeper: a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request<C = Call> {
    /// The client's number for it.
    pub number: u64,
    /// What it wants.
    #[serde(flatten)]
    pub call: C,
}

/// From shim to client: a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// A request was carried out.
    Answer(u64, Answer),
    /// A request failed.
    Failure(u64, Failure),
    /// The pair of this id, with this slot and use of it, is no more: its bytes have arrived, or nobody wants them.
    Unpaired(String, usize, u32),
    /// The pair of this id cannot go on: the machine died, and its timeline with it.
    RolledBack(String, RolledBack),
    /// The machine has ended, and nothing of the sandbox need be left to learn it from. The connection ends once there is
    /// no more to read.
    Ended(Exit),
}
