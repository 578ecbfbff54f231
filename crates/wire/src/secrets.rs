//! Secrets of the user's, which the agent puts in place before anything of the user's runs.
//!
//! One channel hands over all of them: for each, its first [`Request::Piece`] and as many more as it takes; then
//! [`Request::End`], and the answer. The agent takes them away again before it says that it is quiet: then
//! they are owed, and have to be handed over once more.

use serde::{Deserialize, Serialize};

use crate::Message;

/// Most secrets of one guest.
pub const MOST: usize = 64;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 64 << 10;
/// Most bytes in one piece.
pub const MAX_DATA: usize = 16 << 10;

/// Whether this may be a secret's name: 1 to [`MAX_NAME`] letters, digits, `.`, `_` or `-`, not beginning with `.`.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A step of handing secrets over.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// The next bytes of a secret, all pieces of which come one after another.
    Piece {
        /// The secret's name.
        name: &'a str,
        /// At most [`MAX_DATA`] bytes.
        #[serde(with = "serde_bytes")]
        data: &'a [u8],
    },
    /// Those were all.
    End,
}

impl Message for Request<'_> {
    const NAME: &'static str = "secret";
    const MAX_LEN: usize = MAX_DATA + MAX_NAME + 16;
}

impl std::fmt::Debug for Request<'_> {
    /// Leaves the value out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Piece { name, data } => {
                f.debug_struct("Piece").field("name", name).field("len", &data.len()).finish()
            }
            Self::End => f.write_str("End"),
        }
    }
}

/// The answer, once all were handed over, or one could not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// They are in place.
    InPlace,
    /// They are not, and the guest waits for them.
    Failed(String),
}

impl Message for Reply {
    const NAME: &'static str = "answer to secrets";
    const MAX_LEN: usize = 4096;
}
