//! What a guest is given, on its way to a keeper: a file in memory. Lines are short, and whoever reads one keeps copies.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use throughline_sandbox::{Given, secrets};
use zeroize::Zeroizing;

/// Bytes of the longest: as many secrets as there may be, as long as they may be.
const MOST: u64 = 32 << 20;

/// Puts it into such a file.
pub(super) fn pack(given: &Given) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("throughline-given", MemfdFlags::CLOEXEC)?);
    file.write_all(&secrets::encode(given)?)?;
    Ok(file.into())
}

/// Takes it out of one.
pub(super) fn unpack(file: OwnedFd) -> io::Result<Given> {
    let file = File::from(file);
    let length = file.metadata()?.len();
    if length > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than anything that can be given"));
    }
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).map_err(io::Error::other)?]);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
mod tests {
    use throughline_wire::secrets::{MAX_NAME, MAX_VALUE, MOST};

    use super::*;

    #[test]
    fn the_most_that_can_be_given_arrives_at_a_keeper() {
        let mut given = Given { hostname: Some("web-{index}".to_owned()), ..Given::default() };
        for number in 0..MOST {
            given.secrets.insert(format!("{number:0MAX_NAME$}"), vec![255; MAX_VALUE]);
        }
        let arrived = unpack(pack(&given).unwrap()).unwrap();
        assert_eq!(arrived.hostname, given.hostname);
        assert!(arrived.secrets.iter().eq(given.secrets.iter()) && arrived.secrets.check().is_ok());
        let long = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        long.set_len(super::MOST + 1).unwrap();
        unpack(long.into()).unwrap_err();
    }
}
