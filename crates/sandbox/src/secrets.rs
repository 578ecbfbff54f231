//! Secrets that are given to a guest: files of its `/run/secrets` that are in no snapshot.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use throughline_wire::secrets::{MAX_NAME, MAX_VALUE, MOST, is_name};
use zeroize::{Zeroize, Zeroizing};

use crate::SandboxError;
use crate::places::Places;

/// Beside the timelines of a sandbox's memory: in no bundle, and gone with the sandbox.
const FOLDER: &str = "secrets";
const FILE: &str = "values";

/// Secrets, by their names.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(BTreeMap<String, Value>);

/// One value, overwritten when it is dropped.
#[derive(Clone, Serialize)]
#[serde(transparent)]
struct Value(#[serde(with = "serde_bytes")] Vec<u8>);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Bytes)
    }
}

/// Reads a value into memory that grows for none that a guest can have: what grows leaves copies behind.
struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a list of bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut value = Value(Vec::with_capacity(MAX_VALUE));
        while let Some(byte) = sequence.next_element()? {
            value.0.push(byte);
        }
        Ok(value)
    }
}

/// Something that has secrets, as JSON, in memory that is overwritten when it is dropped. It did not grow, and has room for the end
/// of a line.
///
/// # Errors
/// It cannot be JSON.
pub fn encode(value: &impl Serialize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0 + 1));
    serde_json::to_writer(&mut *bytes, value)?;
    Ok(bytes)
}

/// Counts what is written.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Why something is no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Not a name.
    #[error(
        "{0:?} is no name for a secret: use 1 to {MAX_NAME} letters, digits, '-', '_' or '.', not beginning with '.'"
    )]
    Name(String),
    /// Too long.
    #[error("the secret {name:?} has {length} bytes; {MAX_VALUE} is the most")]
    Long {
        /// Its name.
        name: String,
        /// Its length.
        length: usize,
    },
    /// The guest would not have them.
    #[error("the guest could not put its secrets in place: {0}")]
    Refused(String),
    /// Too many.
    #[error("{0} secrets; {MOST} are the most")]
    Many(usize),
}

impl Secrets {
    /// Adds one, or gives it another value. Checked by [`check`](Self::check).
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), Value(value.into()));
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(|value| value.0.as_slice())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.0.as_slice()))
    }

    /// Whether a guest can have them.
    ///
    /// # Errors
    /// A name or a value is none, or there are too many.
    pub fn check(&self) -> Result<(), SecretError> {
        if self.0.len() > MOST {
            return Err(SecretError::Many(self.0.len()));
        }
        self.iter().try_for_each(|(name, value)| {
            if !is_name(name) {
                return Err(SecretError::Name(name.to_owned()));
            }
            if value.len() > MAX_VALUE {
                return Err(SecretError::Long { name: name.to_owned(), length: value.len() });
            }
            Ok(())
        })
    }

    /// Those of the sandbox of this name, to be handed on.
    ///
    /// # Errors
    /// There is no such sandbox, or its folder cannot be read.
    pub fn of(name: &str) -> Result<Self, SandboxError> {
        Self::read(&Places::open(name)?)
    }

    /// Puts them where whoever takes the sandbox over finds them.
    pub(crate) fn write(&self, places: &Places) -> Result<(), SandboxError> {
        if self.is_empty() {
            return Ok(());
        }
        let write = |folder: &Path| {
            let encoded = encode(self)?;
            DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
            let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(folder.join(FILE));
            file?.write_all(&encoded)
        };
        write(&places.beside(FOLDER)).map_err(SandboxError::io("keep the secrets"))
    }

    /// What was put there.
    pub(crate) fn read(places: &Places) -> Result<Self, SandboxError> {
        let bytes = match fs::read(places.beside(FOLDER).join(FILE)) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(SandboxError::io("read the secrets")(error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| SandboxError::io("read the secrets")(error.into()))
    }
}

impl std::fmt::Debug for Secrets {
    /// The names alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_have_rules_and_are_not_told() {
        let one = |name: &str, value: &[u8]| {
            let mut secrets = Secrets::default();
            secrets.insert(name, value);
            secrets
        };
        for good in ["a", "API_KEY", "x.pem", &"a".repeat(64)] {
            one(good, b"").check().unwrap();
        }
        for bad in ["", ".a", "..", "a/b", "a b", "ä", &"a".repeat(65)] {
            assert_eq!(one(bad, b"").check(), Err(SecretError::Name(bad.to_owned())));
        }
        one("a", &vec![0; MAX_VALUE]).check().unwrap();
        one("a", &vec![0; MAX_VALUE + 1]).check().unwrap_err();
        let mut many = Secrets::default();
        (0..=MOST).for_each(|number| many.insert(format!("s{number}"), b"x"));
        assert_eq!(many.check(), Err(SecretError::Many(MOST + 1)));
        assert_eq!(format!("{:?}", one("key", b"hush")), "{\"key\"}");
        let told = serde_json::to_string(&one("key", &[0, 255])).unwrap();
        let heard: Secrets = serde_json::from_str(&told).unwrap();
        assert_eq!(heard.get("key"), Some(&[0, 255][..]));
    }
}
