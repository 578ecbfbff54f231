//! The name that a host gives its guest.

use alloc::borrow::ToOwned;
use alloc::string::String;

/// Bytes that it has in the identity block.
pub(crate) const BYTES: usize = 64;

/// A guest's host name: 1 to 63 letters, digits, `-` and `.`, with a letter or a digit at both ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hostname([u8; BYTES]);

/// Not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no host name: use 1 to 63 letters, digits, '-' or '.', beginning and ending with a letter or digit")]
pub struct HostnameError(String);

impl Hostname {
    /// Checks a name.
    ///
    /// # Errors
    /// It is none.
    pub fn new(name: &str) -> Result<Self, HostnameError> {
        let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = name.as_bytes();
        let good = end(bytes.first())
            && end(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(byte));
        let mut padded = [0; BYTES];
        match padded[..BYTES - 1].get_mut(..bytes.len()) {
            Some(place) if good => place.copy_from_slice(bytes),
            _ => return Err(HostnameError(name.to_owned())),
        }
        Ok(Self(padded))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(BYTES);
        core::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }

    /// As it lies in the block.
    pub(crate) fn padded(name: Option<Self>) -> [u8; BYTES] {
        name.map_or([0; BYTES], |name| name.0)
    }

    /// Of a block: none where there is none, and where there is no good one.
    pub(crate) fn of_padded(bytes: [u8; BYTES]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Self::new(core::str::from_utf8(&bytes[..end]).ok()?).ok()
    }
}

impl core::fmt::Debug for Hostname {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn host_names_have_rules_and_come_back() {
        let longest = "a".repeat(63);
        for good in ["a", "web-1", "Web.example", "0", &longest] {
            let name = Hostname::new(good).unwrap();
            assert_eq!(name.as_str(), good);
            assert_eq!(Hostname::of_padded(Hostname::padded(Some(name))), Some(name));
        }
        for bad in ["", "-a", "a-", ".a", "a.", "a b", "a_b", "ä", "{index}", "a\0", &"a".repeat(64)] {
            let error = Hostname::new(bad).unwrap_err().to_string();
            assert!(error.contains("1 to 63 letters"), "{error}");
        }
        assert_eq!(Hostname::of_padded(Hostname::padded(None)), None);
        assert_eq!(Hostname::of_padded([b'a'; BYTES]), None, "a block without an end");
        assert_eq!(Hostname::of_padded([0xff; BYTES]), None);
    }
}
