//! How many channels a region has, who opens them, and how large their rings are.

use alloc::vec;
use alloc::vec::Vec;

/// One of the two ends of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end outside the VM. It keeps a sidecar.
    Host,
    /// The end inside the VM (or the second process of a link without a VM).
    Guest,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }
}

/// Channels of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class {
    /// The side that opens these channels.
    pub opener: Side,
    /// How many there are.
    pub count: u32,
    /// Bytes of each of the two rings: a power of two, 4 KiB to 1 GiB.
    pub ring_bytes: u64,
}

/// The shape of a region, fixed when it is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    classes: Vec<Class>,
}

/// Why a geometry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// No class, or more than [`Geometry::MAX_CLASSES`].
    #[error("a region has 1 to {max} classes of channels, not {0}", max = Geometry::MAX_CLASSES)]
    Classes(usize),
    /// No channel, or more than [`Geometry::MAX_CHANNELS`].
    #[error("a region has 1 to {max} channels, not {0}", max = Geometry::MAX_CHANNELS)]
    Channels(u64),
    /// A ring that is no power of two, or too small, or too large.
    #[error("a ring has a power of two of bytes from {min} to {max}, not {0}", min = Geometry::MIN_RING, max = Geometry::MAX_RING)]
    Ring(u64),
}

impl Geometry {
    /// The most classes that a header holds.
    pub const MAX_CLASSES: usize = 16;
    /// The most channels of a region.
    pub const MAX_CHANNELS: u64 = 4096;
    /// The smallest ring, in bytes.
    pub const MIN_RING: u64 = 4096;
    /// The largest ring, in bytes.
    pub const MAX_RING: u64 = 1 << 30;

    /// Checks and keeps a list of classes.
    pub fn new(classes: Vec<Class>) -> Result<Self, GeometryError> {
        if classes.is_empty() || classes.len() > Self::MAX_CLASSES {
            return Err(GeometryError::Classes(classes.len()));
        }
        let channels = classes.iter().map(|class| u64::from(class.count)).sum();
        if channels == 0 || channels > Self::MAX_CHANNELS {
            return Err(GeometryError::Channels(channels));
        }
        for class in &classes {
            let bytes = class.ring_bytes;
            if !bytes.is_power_of_two() || !(Self::MIN_RING..=Self::MAX_RING).contains(&bytes) {
                return Err(GeometryError::Ring(bytes));
            }
        }
        Ok(Self { classes })
    }

    /// The classes, in the order of their channels.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.classes.iter().map(|class| class.count as usize).sum()
    }
}

impl Default for Geometry {
    /// 128 channels that the host opens and 64 that the guest opens, of 64 KiB a direction, and
    /// 4 wide ones of 4 MiB that the host opens: beyond L2 and inside L3 is where bulk runs fastest.
    fn default() -> Self {
        let class = |opener, count, ring_bytes| Class { opener, count, ring_bytes };
        Self {
            classes: vec![
                class(Side::Host, 128, 64 << 10),
                class(Side::Guest, 64, 64 << 10),
                class(Side::Host, 4, 4 << 20),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_refuses_what_no_region_can_have() {
        let one = |count, ring_bytes| Geometry::new(vec![Class { opener: Side::Host, count, ring_bytes }]);
        assert_eq!(Geometry::new(vec![]), Err(GeometryError::Classes(0)));
        assert_eq!(one(0, 4096), Err(GeometryError::Channels(0)));
        assert_eq!(one(4097, 4096), Err(GeometryError::Channels(4097)));
        for ring in [0, 1, 2048, 4097, 3 << 20, 1 << 31, u64::MAX] {
            assert_eq!(one(1, ring), Err(GeometryError::Ring(ring)));
        }
        assert!(one(4096, 4096).is_ok());
    }
}
