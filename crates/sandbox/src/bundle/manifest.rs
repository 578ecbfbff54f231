//! What a bundle says of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::BundleError;
use crate::engine::{Hardware, Machine};
use crate::image::Rootfs;

/// Version of the bundle's form. A newer one is refused; in the first one, RAM is never in two parts.
pub const VERSION: u32 = 2;
const OLDEST: u32 = 1;

/// A bundle's manifest. It is written last: a folder without one is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// When the snapshot was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// The machine that the state belongs to.
    pub machine: Machine,
    /// Digest of the image that the guest booted from.
    pub image: String,
    /// The root file system that the guest goes on reading, if it has one of its own. It is not in the bundle: a
    /// restore takes it from the image of that digest, or another one with the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Rootfs>,
    /// The guest's kernel.
    pub kernel: String,
    /// What the machine has.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// The agent's protocol version.
    pub agent: u32,
    /// The timeline that the snapshot belongs to: 32 hexadecimal digits.
    pub timeline: String,
    /// Whether the guest was quiet: its agent had stopped serving, and the user's processes were frozen. Only who
    /// [allows it](crate::Snapshot::allow_unquiesced) gets another one. Where it is restored, the user's
    /// processes run for a moment before they are stopped for the new identity.
    pub quiesced: bool,
    /// Unread bytes that travel with it.
    pub carried: Carried,
    /// Length and checksum of each file.
    pub files: BTreeMap<String, FileEntry>,
}

/// Unread bytes in the channels of a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Channels in use.
    pub channels: usize,
    /// Bytes on their way to the guest.
    pub to_guest: u64,
    /// Bytes on their way to the host.
    pub to_host: u64,
}

/// One file of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// Its checksum (XXH3 over length and non-zero pages).
    pub checksum: u64,
}

/// The manifest's file: its text, and a checksum of exactly that text.
#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    #[serde(borrow)]
    manifest: &'a RawValue,
    checksum: u64,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Manifest {
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let manifest = serde_json::value::to_raw_value(self)?;
        let checksum = xxh3_64(manifest.get().as_bytes());
        serde_json::to_vec(&Sealed { manifest: &manifest, checksum })
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let damaged = |reason: String| BundleError::Damaged { file: super::MANIFEST.to_owned(), reason };
        let sealed: Sealed = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        let checksum = xxh3_64(sealed.manifest.get().as_bytes());
        if sealed.checksum != checksum {
            return Err(damaged(format!(
                "its checksum is {:016x}, and its text gives {checksum:016x}",
                sealed.checksum
            )));
        }
        // The version before all else: another version may have other fields.
        let Version { version } =
            serde_json::from_str(sealed.manifest.get()).map_err(|error| damaged(error.to_string()))?;
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(BundleError::Version(version));
        }
        serde_json::from_str(sealed.manifest.get()).map_err(|error| damaged(error.to_string()))
    }
}
