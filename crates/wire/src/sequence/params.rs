//! What a channel was opened for.

use serde::{Deserialize, Serialize};

use super::record::{HEADER_LEN, MAX_RECORD};

/// Bytes of encoded [`Params`].
pub const PARAMS_LEN: usize = 48;

const MAGIC: [u8; 8] = *b"TLSEQv1\0";

/// The parameters of a sequence channel. The host sends them first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Determines all content; also the channel's name in reports.
    pub seed: u64,
    /// Records that the guest sends; [`Params::ENDLESS`] = until the host's end record arrives.
    pub guest_records: u64,
    /// Records that the host sends; [`Params::ENDLESS`] = until it says so with its end record.
    pub host_records: u64,
    /// Microseconds that the guest waits after each record that it sends.
    pub guest_pace_us: u32,
    /// Microseconds that the guest waits after each record that it reads: makes the host's rings fill.
    pub read_pace_us: u32,
    /// Shortest record in bytes, header included; at least [`HEADER_LEN`].
    pub min_len: u32,
    /// Longest record in bytes, header included; at most [`MAX_RECORD`].
    pub max_len: u32,
}

/// Parameters that the service does not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// Too few or too many bytes.
    #[error("sequence parameters have {0} bytes instead of {PARAMS_LEN}; is the peer a sequence client?")]
    Length(usize),
    /// Something else.
    #[error("these bytes are not sequence parameters; is the peer a sequence client of this version?")]
    Magic,
    /// Lengths out of range.
    #[error("records of {min} to {max} bytes are impossible; choose from {HEADER_LEN} to {MAX_RECORD}")]
    Range {
        /// The shortest asked for.
        min: u32,
        /// The longest asked for.
        max: u32,
    },
}

impl Params {
    /// No limit on the number of records.
    pub const ENDLESS: u64 = u64::MAX;

    /// Both sides send without limit and without pause, records of up to 1 KiB.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            guest_records: Self::ENDLESS,
            host_records: Self::ENDLESS,
            guest_pace_us: 0,
            read_pace_us: 0,
            min_len: HEADER_LEN as u32,
            max_len: 1024,
        }
    }

    /// As the first message, or the first bytes of the stream.
    pub fn to_bytes(&self) -> [u8; PARAMS_LEN] {
        let mut out = [0; PARAMS_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.seed.to_le_bytes());
        out[16..24].copy_from_slice(&self.guest_records.to_le_bytes());
        out[24..32].copy_from_slice(&self.host_records.to_le_bytes());
        out[32..36].copy_from_slice(&self.guest_pace_us.to_le_bytes());
        out[36..40].copy_from_slice(&self.read_pace_us.to_le_bytes());
        out[40..44].copy_from_slice(&self.min_len.to_le_bytes());
        out[44..].copy_from_slice(&self.max_len.to_le_bytes());
        out
    }

    /// The inverse, checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParamsError> {
        let bytes: &[u8; PARAMS_LEN] = bytes.try_into().map_err(|_| ParamsError::Length(bytes.len()))?;
        if bytes[..8] != MAGIC {
            return Err(ParamsError::Magic);
        }
        let params = Self {
            seed: word(bytes, 8),
            guest_records: word(bytes, 16),
            host_records: word(bytes, 24),
            guest_pace_us: half(bytes, 32),
            read_pace_us: half(bytes, 36),
            min_len: half(bytes, 40),
            max_len: half(bytes, 44),
        };
        params.check()?;
        Ok(params)
    }

    /// Whether the lengths are possible.
    pub fn check(&self) -> Result<(), ParamsError> {
        let possible =
            HEADER_LEN as u32 <= self.min_len && self.min_len <= self.max_len && self.max_len <= MAX_RECORD as u32;
        if possible { Ok(()) } else { Err(ParamsError::Range { min: self.min_len, max: self.max_len }) }
    }
}

fn word(bytes: &[u8; PARAMS_LEN], at: usize) -> u64 {
    (0..8).fold(0, |word, i| word | u64::from(bytes[at + i]) << (8 * i))
}

fn half(bytes: &[u8; PARAMS_LEN], at: usize) -> u32 {
    (0..4).fold(0, |half, i| half | u32::from(bytes[at + i]) << (8 * i))
}
