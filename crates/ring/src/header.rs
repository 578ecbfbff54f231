//! Page 0: what the creator says of the region, once.

use alloc::vec::Vec;

use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

use crate::{Class, Geometry, GeometryError, Layout, Side};

/// Major version of the words' layout and of the order of stores. Another major is refused.
pub const MAJOR: u32 = 1;
/// Minor version. A host serves every minor of its major.
pub const MINOR: u32 = 0;

const MAGIC: u64 = u64::from_le_bytes(*b"thruline");
const CLASSES_AT: usize = 8;
const CHECK_AT: usize = 511;

/// Version of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Changes when an old peer could misread the region.
    pub major: u32,
    /// Changes when words are added that an old peer may ignore.
    pub minor: u32,
}

/// The header, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version that the creator chose, from what the image's agent supports.
    pub version: Version,
    /// Optional features, one bit each; none is defined yet.
    pub features: u64,
    /// Random id of the region.
    pub region: u128,
    /// Shape of the region.
    pub geometry: Geometry,
}

/// Why a header was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The memory is smaller than a header.
    #[error("{0} words are too few for a region's header")]
    Short(usize),
    /// The first word is another.
    #[error("not a Throughline region: the first word is {0:#018x}")]
    Magic(u64),
    /// Another major version.
    #[error("the region has layout version {}.{}, and this program reads {MAJOR}.x; use a release that matches the image", .0.major, .0.minor)]
    Version(Version),
    /// A feature that this program does not know.
    #[error("the region needs features that this program lacks (bits {0:#x}); use a newer release")]
    Features(u64),
    /// The words of the header do not go together.
    #[error("the region's header is damaged: its check word is {found:#018x}, and its words give {expected:#018x}")]
    Check {
        /// The stored check word.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// A class names no side.
    #[error("the region's header is damaged: class {0} names no opener")]
    Opener(usize),
    /// The geometry is impossible.
    #[error("the region's geometry is impossible: {0}")]
    Geometry(#[from] GeometryError),
    /// The memory has another size than the geometry asks for.
    #[error("the region has {found} bytes, and its geometry asks for {expected}: it was cut or damaged")]
    Size {
        /// Bytes of the memory.
        found: u64,
        /// Bytes that the geometry gives.
        expected: u64,
    },
}

impl Header {
    /// A header of this version for a new region.
    pub fn new(geometry: Geometry, region: u128) -> Self {
        Self { version: Version { major: MAJOR, minor: MINOR }, features: 0, region, geometry }
    }

    /// Writes the header; the magic word goes last, so that a half-made region is not a region.
    pub fn write(&self, memory: &impl Words) {
        for (at, word) in self.words().into_iter().enumerate().rev() {
            memory.store(at, word, Ordering::Release);
        }
    }

    /// Reads each word once and validates the copy.
    pub fn read(memory: &impl Words) -> Result<Self, HeaderError> {
        if memory.len() <= CHECK_AT {
            return Err(HeaderError::Short(memory.len()));
        }
        let words: Vec<u64> = (0..=CHECK_AT).map(|at| memory.load(at, Ordering::Acquire)).collect();
        if words[0] != MAGIC {
            return Err(HeaderError::Magic(words[0]));
        }
        let version = Version { major: (words[1] >> 32) as u32, minor: words[1] as u32 };
        if version.major != MAJOR {
            return Err(HeaderError::Version(version));
        }
        let expected = check(&words[..CHECK_AT]);
        if words[CHECK_AT] != expected {
            return Err(HeaderError::Check { found: words[CHECK_AT], expected });
        }
        if words[2] != 0 {
            return Err(HeaderError::Features(words[2]));
        }
        let geometry = read_geometry(&words)?;
        let header =
            Self { version, features: words[2], region: u128::from(words[4]) | u128::from(words[5]) << 64, geometry };
        let expected = Layout::new(&header.geometry).region_bytes();
        let found = (memory.len() * 8) as u64;
        if found != expected || words[3] != expected {
            return Err(HeaderError::Size { found, expected });
        }
        Ok(header)
    }

    fn words(&self) -> Vec<u64> {
        let mut words = alloc::vec![0; CHECK_AT + 1];
        words[0] = MAGIC;
        words[1] = u64::from(self.version.major) << 32 | u64::from(self.version.minor);
        words[2] = self.features;
        words[3] = Layout::new(&self.geometry).region_bytes();
        words[4] = self.region as u64;
        words[5] = (self.region >> 64) as u64;
        words[6] = self.geometry.classes().len() as u64;
        for (class, at) in self.geometry.classes().iter().zip((CLASSES_AT..).step_by(2)) {
            words[at] = (class.opener as u64) << 32 | u64::from(class.count);
            words[at + 1] = class.ring_bytes;
        }
        words[CHECK_AT] = check(&words[..CHECK_AT]);
        words
    }
}

fn read_geometry(words: &[u64]) -> Result<Geometry, HeaderError> {
    let count = usize::try_from(words[6]).unwrap_or(usize::MAX);
    if count > Geometry::MAX_CLASSES {
        return Err(GeometryError::Classes(count).into());
    }
    let mut classes = Vec::with_capacity(count);
    for class in 0..count {
        let at = CLASSES_AT + 2 * class;
        let opener = match words[at] >> 32 {
            0 => Side::Host,
            1 => Side::Guest,
            _ => return Err(HeaderError::Opener(class)),
        };
        classes.push(Class { opener, count: words[at] as u32, ring_bytes: words[at + 1] });
    }
    Ok(Geometry::new(classes)?)
}

/// FNV-1a, a word at a time: finds damage, not tampering.
fn check(words: &[u64]) -> u64 {
    words.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use throughline_shmem::HeapWords;

    fn region() -> (HeapWords, Header) {
        let geometry = Geometry::new(alloc::vec![Class { opener: Side::Guest, count: 3, ring_bytes: 8192 }]).unwrap();
        let memory = HeapWords::new(Layout::new(&geometry).region_words());
        let header = Header::new(geometry, 0x1234_5678_9abc_def0_0fed_cba9_8765_4321);
        header.write(&memory);
        (memory, header)
    }

    #[test]
    fn header_comes_back_as_written() {
        let (memory, header) = region();
        assert_eq!(Header::read(&memory), Ok(header));
    }

    #[test]
    fn header_refuses_each_damaged_word_with_its_reason() {
        let (memory, _) = region();
        for at in 0..=CHECK_AT {
            let good = memory.load(at, Ordering::Relaxed);
            for bit in 0..64 {
                memory.store(at, good ^ 1 << bit, Ordering::Relaxed);
                assert!(Header::read(&memory).is_err(), "word {at} bit {bit}");
            }
            memory.store(at, good, Ordering::Relaxed);
        }
    }

    #[test]
    fn header_says_what_is_wrong() {
        let (memory, _) = region();
        memory.store(1, 9 << 32, Ordering::Relaxed);
        assert!(alloc::format!("{}", Header::read(&memory).unwrap_err()).contains("version 9.0"));
        let small = HeapWords::new(512);
        region().1.write(&small);
        assert!(matches!(Header::read(&small), Err(HeaderError::Size { found: 4096, .. })));
        assert_eq!(Header::read(&HeapWords::new(512)), Err(HeaderError::Magic(0)));
        assert_eq!(Header::read(&HeapWords::new(3)), Err(HeaderError::Short(3)));
    }
}
