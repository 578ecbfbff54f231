//! Copying files into a guest and out of it: one message channel a transfer.
//!
//! ```text
//!   host                                  guest
//!   Put ────────────────────────────────►
//!   data … ─────────────────────────────►            an archive, or the bytes of one file
//!   End ────────────────────────────────►
//!         ◄────────────────────────────── Done, or Failed: at any moment, and the transfer ends there
//!
//!   Get ────────────────────────────────►
//!         ◄────────────────────────────── Found, or Failed
//!         ◄────────────────────────────── data …
//!         ◄────────────────────────────── Done, or Failed
//!
//!   Stat ───────────────────────────────►
//!         ◄────────────────────────────── Found, or Failed
//! ```
//!
//! *Frames.* A message is a [`Frame`]: [`HEADER`] zero bytes and data, or a byte 1 and a [`Request`] or [`Reply`].
//!
//! *Archives* are tar, as GNU tar writes them: files, folders, symbolic links and hard links. Paths in them are
//! relative and contain no `..`; whoever unpacks refuses others, and goes through no symbolic link.
//!
//! *Ends.* A sender whose channel closes before `End` or `Done` has not sent everything: nobody takes a part for the
//! whole. What was copied before a failure stays, and is told.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{DecodeError, EncodeError, Message, decode, encode};

/// Bytes before the data of a data frame. They keep data on words' boundaries.
pub const HEADER: usize = 8;

/// Data in one message, at most. Rings of at least four times this size keep both sides busy.
pub const MAX_DATA: usize = 512 * 1024;

/// First byte of a frame that holds a request or reply.
const CONTROL: u8 = 1;

/// What one message of the channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A piece of the archive or file.
    Data(&'a [u8]),
    /// The encoding of a [`Request`] or [`Reply`].
    Control(&'a [u8]),
}

impl<'a> Frame<'a> {
    /// Tells them apart; `None` for what is neither.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        match message.split_first()? {
            (0, _) => message.get(HEADER..).filter(|data| data.len() <= MAX_DATA).map(Self::Data),
            (&CONTROL, rest) => Some(Self::Control(rest)),
            _ => None,
        }
    }

    /// The request or reply in a message that is not data.
    pub fn control<M: Message + Deserialize<'a>>(message: &'a [u8]) -> Result<M, DecodeError> {
        // A data frame decodes as nothing sensible, and its first byte is refused here.
        match Self::parse(message) {
            Some(Self::Control(rest)) => decode(rest),
            _ => Err(DecodeError::TooLong { what: M::NAME, len: message.len(), max: M::MAX_LEN }),
        }
    }

    /// The message for a request or reply.
    pub fn of<M: Message + Serialize>(message: &M) -> Result<Vec<u8>, EncodeError> {
        let mut frame = vec![CONTROL];
        frame.extend(encode(message)?);
        Ok(frame)
    }
}

/// From host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Copy what follows into the guest.
    Put(Put),
    /// Everything was sent.
    End,
    /// Copy out of the guest.
    Get(Get),
    /// What is there?
    Stat {
        /// Path in the guest's root.
        path: ByteBuf,
        /// Whether to look at what a symbolic link names, and not at the link.
        follow: bool,
    },
}

impl Message for Request {
    const NAME: &'static str = "files request";
    const MAX_LEN: usize = 16 * 1024;
}

/// What to copy into the guest, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// Path in the guest's root, as `cp -r` reads it: see [`Content`].
    pub dest: ByteBuf,
    /// What follows.
    pub content: Content,
    /// Whom everything shall belong to, as in [`Start::user`](crate::exec::Start::user); root without one.
    pub owner: Option<String>,
}

/// What a transfer carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// An archive of one thing: every path begins with `name`. It goes into a folder that exists at the destination;
    /// else it is called what the destination says, and replaces a file there.
    Tree {
        /// The thing's name in the archive.
        name: ByteBuf,
        /// Whether it is a folder, which replaces no file.
        is_folder: bool,
    },
    /// An archive whose entries go into the folder at the destination, which is made if only it is missing.
    Contents,
    /// The bytes of one file. In a folder that exists at the destination it is called `name`; without one a folder
    /// there is an error.
    Bytes {
        /// Name in a folder.
        name: Option<ByteBuf>,
        /// Permissions.
        mode: u32,
        /// Seconds since 1970; the moment of copying without.
        mtime: Option<u64>,
    },
}

/// What to copy out of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Path in the guest's root.
    pub source: ByteBuf,
    /// What to send.
    pub form: Form,
    /// Whether to send what a symbolic link at `source` names, and not the link.
    pub follow: bool,
}

/// How something is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// As an archive in which it has this name.
    Tree(ByteBuf),
    /// A folder's contents, as an archive.
    Contents,
    /// A file's bytes.
    Bytes,
}

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// What there is.
    Found(Found),
    /// Everything was copied.
    Done(Summary),
    /// The transfer has ended.
    Failed {
        /// Why.
        failure: Failure,
        /// What was copied before.
        before: Summary,
    },
}

impl Message for Reply {
    const NAME: &'static str = "files reply";
    const MAX_LEN: usize = 16 * 1024;
}

/// Something in a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u32,
    /// Length in bytes.
    pub size: u64,
    /// Seconds since 1970 when it was changed.
    pub mtime: i64,
}

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A file with bytes.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, socket or pipe, which is not copied.
    Special,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
}

/// Why something was not copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Failure {
    /// The kind.
    pub kind: FailureKind,
    /// Which path; bytes that are no text are replaced.
    pub path: String,
    /// What was wrong, in words.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such path.
    NotFound,
    /// Something that must be a folder is none.
    NotAFolder,
    /// Something that must not be a folder is one.
    IsAFolder,
    /// No space is left.
    NoSpace,
    /// The file system is read-only.
    ReadOnly,
    /// Permissions forbid it.
    Denied,
    /// The path would leave its root.
    Refused,
    /// A device, socket or pipe.
    Special,
    /// It changed while it was read.
    Changed,
    /// The archive is none, or ends too early.
    Malformed,
    /// The owner is unknown.
    NoSuchUser,
    /// The request broke the protocol.
    Protocol,
    /// Anything else.
    Other,
}
