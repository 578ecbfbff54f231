//! A look into a bundle's copy of the region: is there anything in it that somebody has read already?

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use throughline::{Region, Side};
use throughline_ring::{Layout, RecordWord};

const WORD: u64 = 8;

/// The rings of a bundle.
pub struct Rings {
    region: File,
    rings: Vec<Ring>,
}

/// One ring, and what of it is unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Number of its channel.
    pub channel: usize,
    /// Which way it goes: the side that writes it.
    pub from: Side,
    /// Where it begins in the file.
    pub at: u64,
    /// Its length.
    pub bytes: u64,
    /// Position from which bytes are unread.
    freed: u64,
    /// Position up to which bytes are unread.
    produced: u64,
}

impl Rings {
    /// Reads the cursors: the host's from the sidecar, which is where it keeps them, the guest's from the region.
    pub fn open(region: &Path, sidecar: &Path) -> Result<Self> {
        let layout = Layout::new(&Region::open(region)?.header().geometry);
        let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
        let (region, sidecar) = (open(region)?, open(sidecar)?);
        let mut rings = Vec::new();
        for (channel, slot) in layout.slots().iter().enumerate() {
            let word = |side: Side, word: RecordWord| {
                let at = (layout.record(side, channel) + word as usize) as u64 * WORD;
                load(if side == Side::Host { &sidecar } else { &region }, at)
            };
            for (from, to) in [(Side::Host, Side::Guest), (Side::Guest, Side::Host)] {
                rings.push(Ring {
                    channel,
                    from,
                    at: slot.ring_at(from) as u64 * WORD,
                    bytes: slot.ring_bytes,
                    freed: word(to, RecordWord::Freed)?,
                    produced: word(from, RecordWord::Produced)?,
                });
            }
        }
        Ok(Self { region, rings })
    }

    /// Both rings of every channel.
    pub fn all(&self) -> &[Ring] {
        &self.rings
    }

    /// Bytes that are not zero though nothing unread lies there.
    pub fn leaked(&self) -> Result<u64> {
        let mut leaked = 0;
        let mut content = Vec::new();
        for ring in &self.rings {
            if ring.produced.wrapping_sub(ring.freed) > ring.bytes {
                bail!("a ring of channel {} holds more than fits: {ring:?}", ring.channel);
            }
            content.resize(ring.bytes as usize, 0);
            self.region.read_exact_at(&mut content, ring.at)?;
            leaked += ring.leaked(&content);
        }
        Ok(leaked)
    }
}

impl Ring {
    /// A word is the smallest thing that is scrubbed: the reader's partial word counts as unread.
    fn leaked(&self, content: &[u8]) -> u64 {
        let from = self.freed / WORD * WORD;
        let unread = self.produced.next_multiple_of(WORD) - from;
        let stale = (unread..self.bytes).map(|offset| content[((from + offset) % self.bytes) as usize]);
        stale.filter(|byte| *byte != 0).count() as u64
    }
}

fn load(file: &File, at: u64) -> Result<u64> {
    let mut word = [0; WORD as usize];
    file.read_exact_at(&mut word, at)?;
    Ok(u64::from_le_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_the_unread_part_is_counted_around_the_rings_end() {
        let ring = Ring { channel: 0, from: Side::Guest, at: 0, bytes: 32, freed: 32 + 24, produced: 64 + 7 };
        let mut content = [0; 32];
        content[24..].fill(1);
        content[..8].fill(1);
        assert_eq!(ring.leaked(&content), 0);
        content[8] = 1;
        content[23] = 1;
        assert_eq!(ring.leaked(&content), 2);
    }
}
