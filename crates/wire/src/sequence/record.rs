//! One record: generating it and taking it apart.

use super::Params;

/// Bytes of a record before its content.
pub const HEADER_LEN: usize = 24;

/// Longest record in bytes. Records of a channel must also fit its rings.
pub const MAX_RECORD: usize = 1 << 20;

const RECORD: u32 = 0x7254_4c01;
const END: u32 = 0x7254_4cff;

/// Which way a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From host to guest.
    ToGuest,
    /// From guest to host.
    ToHost,
}

impl Direction {
    /// Records that this direction carries in all, if that is known beforehand.
    pub fn total(self, params: &Params) -> Option<u64> {
        let records = match self {
            Self::ToGuest => params.host_records,
            Self::ToHost => params.guest_records,
        };
        (records != Params::ENDLESS).then_some(records)
    }

    fn salt(self) -> u64 {
        match self {
            Self::ToGuest => 0x746f_6775_6573_7400,
            Self::ToHost => 0x746f_686f_7374_0000,
        }
    }
}

/// What a record turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Record `number`, exactly as it was made; with its checksum.
    Record {
        /// Its place in the direction.
        number: u64,
        /// Its checksum, for running hashes.
        checksum: u64,
    },
    /// The end of the direction, after `total` records.
    End {
        /// Records before it.
        total: u64,
    },
    /// Not a record of this channel and direction, or changed on its way.
    Damaged,
}

/// The finalizer of splitmix64: every bit of the input moves every bit of the output.
pub(super) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The number from which a record's length and content follow.
fn key(params: &Params, direction: Direction, number: u64) -> u64 {
    mix(mix(params.seed ^ direction.salt()).wrapping_add(number))
}

/// Length in bytes of record `number`, header included.
pub fn record_len(params: &Params, direction: Direction, number: u64) -> usize {
    let span = u64::from(params.max_len.saturating_sub(params.min_len)) + 1;
    params.min_len as usize + (mix(key(params, direction, number)) % span) as usize
}

/// Appends record `number` to `out`, and returns its checksum.
pub fn write_record(params: &Params, direction: Direction, number: u64, out: &mut Vec<u8>) -> u64 {
    let key = key(params, direction, number);
    let start = out.len();
    let len = record_len(params, direction, number);
    header(RECORD, len, number, out);
    let mut sum = Checksum::new(key);
    let words = (len - HEADER_LEN).div_ceil(8);
    for i in 0..words as u64 {
        let word = mix(key.wrapping_add(i.wrapping_mul(0xd1b5_4a32_d192_ed03)));
        sum.add(word);
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.truncate(start + len);
    let checksum = sum.finish(len);
    out[start + 16..start + HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Appends the end record after `total` records.
pub(super) fn write_end(params: &Params, direction: Direction, total: u64, out: &mut Vec<u8>) {
    let start = out.len();
    header(END, HEADER_LEN, total, out);
    let checksum = end_checksum(params, direction, total);
    out[start + 16..start + HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
}

fn end_checksum(params: &Params, direction: Direction, total: u64) -> u64 {
    mix(key(params, direction, total) ^ u64::from(END))
}

fn header(magic: u32, len: usize, number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&magic.to_le_bytes());
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// A header whose magic and length are possible: length of the whole record.
pub(super) fn plausible_len(params: &Params, head: &[u8]) -> Option<usize> {
    let magic = u32::from_le_bytes(*head.first_chunk()?);
    let len = u32::from_le_bytes(*head.get(4..)?.first_chunk()?);
    let fits = match magic {
        RECORD => params.min_len <= len && len <= params.max_len,
        END => len as usize == HEADER_LEN,
        _ => false,
    };
    fits.then_some(len as usize)
}

/// Takes a whole record apart. Its content is compared byte for byte with what it must be; `scratch` is
/// overwritten with that.
pub fn parse(params: &Params, direction: Direction, bytes: &[u8], scratch: &mut Vec<u8>) -> Parsed {
    if bytes.len() < HEADER_LEN || plausible_len(params, bytes) != Some(bytes.len()) {
        return Parsed::Damaged;
    }
    let number = field(bytes, 8);
    scratch.clear();
    if bytes[..4] == END.to_le_bytes() {
        write_end(params, direction, number, scratch);
        return if scratch == bytes { Parsed::End { total: number } } else { Parsed::Damaged };
    }
    if record_len(params, direction, number) != bytes.len() {
        return Parsed::Damaged;
    }
    let checksum = write_record(params, direction, number, scratch);
    if scratch == bytes { Parsed::Record { number, checksum } } else { Parsed::Damaged }
}

/// The eight bytes at `at`, zero beyond the end.
fn field(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
}

/// Checksum of a record over its key (seed, direction, number), content and length.
struct Checksum(u64);

impl Checksum {
    fn new(key: u64) -> Self {
        Self(key ^ 0x5bd1_e995_9d1d_c3a7)
    }

    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29);
    }

    fn finish(self, len: usize) -> u64 {
        mix(self.0 ^ len as u64)
    }
}
