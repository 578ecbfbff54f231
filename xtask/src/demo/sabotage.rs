//! The test switches: one part of the product is switched off, and the demo must fail.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use throughline_sandbox::bundle::{Bundle, Draft, RAM, REGION, SIDECAR, STATE};

use super::rings::Rings;

/// What is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Break {
    /// The host frees what it has read without scrubbing it (a switch in the ring, compiled in for this demo only)
    Scrub,
    /// The bundle gets the sidecar as it was half a second before the snapshot
    Sidecar,
    /// The bundle's rings are empty: no unread byte is carried over
    Carry,
}

impl Break {
    /// Alters a bundle in a way that its checksums do not tell: a faulty program would have written it so.
    pub fn alter(self, place: &Path, old_sidecar: &Path) -> Result<()> {
        let bundle = Bundle::open(place)?;
        let aside = place.with_extension("whole");
        fs::rename(place, &aside)?;
        let draft = Draft::new(place)?;
        for name in [STATE, RAM, REGION, SIDECAR] {
            fs::rename(aside.join(name), draft.path(name)).with_context(|| format!("cannot move {name}"))?;
        }
        match self {
            Self::Scrub => {}
            Self::Sidecar => {
                fs::copy(old_sidecar, draft.path(SIDECAR))?;
            }
            Self::Carry => empty_rings(&draft.path(REGION), &draft.path(SIDECAR))?,
        }
        draft.complete(bundle.manifest().clone())?;
        Ok(fs::remove_dir_all(aside)?)
    }
}

fn empty_rings(region: &Path, sidecar: &Path) -> Result<()> {
    let rings = Rings::open(region, sidecar)?;
    let file = File::options().write(true).open(region)?;
    for ring in rings.all() {
        file.write_all_at(&vec![0; ring.bytes as usize], ring.at)?;
    }
    Ok(())
}
