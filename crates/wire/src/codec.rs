//! From message to bytes and back.

use serde::{Deserialize, Serialize};

/// A message of the protocol: its name in errors, and how long it may be.
pub trait Message {
    /// What errors call it.
    const NAME: &'static str;
    /// Longest encoding in bytes that is sent or accepted.
    const MAX_LEN: usize;
}

/// A message that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The encoding is longer than the peer would accept.
    #[error("{what} of {len} bytes is too long: at most {max} fit, send less at once")]
    TooLong {
        /// [`Message::NAME`].
        what: &'static str,
        /// Bytes of the encoding.
        len: usize,
        /// [`Message::MAX_LEN`].
        max: usize,
    },
    /// The encoder refused; no message of this crate makes it.
    #[error("{what} cannot be encoded: {source}")]
    Refused {
        /// [`Message::NAME`].
        what: &'static str,
        /// The encoder's reason.
        source: postcard::Error,
    },
}

/// Bytes that are not the expected message. Nothing was acted upon; the channel that carried them
/// should be ended, since the peers no longer agree on what they say.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Longer than any message of this type.
    #[error("{what} of {len} bytes is longer than the allowed {max}; the peer speaks another protocol or is faulty")]
    TooLong {
        /// [`Message::NAME`].
        what: &'static str,
        /// Bytes received.
        len: usize,
        /// [`Message::MAX_LEN`].
        max: usize,
    },
    /// Not an encoding of the type.
    #[error("bytes are not a valid {what}: {source}; the peer speaks another protocol or is faulty")]
    Malformed {
        /// [`Message::NAME`].
        what: &'static str,
        /// Where decoding stopped.
        source: postcard::Error,
    },
    /// A valid message with something behind it.
    #[error("{extra} bytes follow a complete {what}; the peer speaks another protocol or is faulty")]
    Trailing {
        /// [`Message::NAME`].
        what: &'static str,
        /// Bytes behind the message.
        extra: usize,
    },
}

/// Encodes one message.
pub fn encode<M: Message + Serialize>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let bytes = postcard::to_stdvec(message).map_err(|source| EncodeError::Refused { what: M::NAME, source })?;
    if bytes.len() > M::MAX_LEN {
        return Err(EncodeError::TooLong { what: M::NAME, len: bytes.len(), max: M::MAX_LEN });
    }
    Ok(bytes)
}

/// Decodes exactly one message; byte strings in it borrow from `bytes`.
pub fn decode<'a, M: Message + Deserialize<'a>>(bytes: &'a [u8]) -> Result<M, DecodeError> {
    if bytes.len() > M::MAX_LEN {
        return Err(DecodeError::TooLong { what: M::NAME, len: bytes.len(), max: M::MAX_LEN });
    }
    let (message, rest) =
        postcard::take_from_bytes(bytes).map_err(|source| DecodeError::Malformed { what: M::NAME, source })?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing { what: M::NAME, extra: rest.len() });
    }
    Ok(message)
}
