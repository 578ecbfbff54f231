//! The guest's network: its own loopback, and one interface where the host gave it one.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::userland::provide;
use crate::cmdline::Network;
use crate::console::say;
use crate::sys;

/// The loopback.
const LOOPBACK: &str = "lo";
/// The name of the first network card.
const CARD: &str = "eth0";
const RESOLVER: &str = "/etc/resolv.conf";

/// How long the card may take to appear.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// The network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// It did not appear.
    #[error(
        "no network card {CARD} appeared within {} s; has the image the kernel's virtio_net? Build it anew (`throughline image build`), or go without a network",
        .0.as_secs()
    )]
    Missing(Duration),
    /// The kernel refused.
    #[error("cannot {what}: {source}; does the guest's kernel have IPv4?")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Brings the loopback up; and the card, with its address, its way out, and a resolver where the userland has none.
pub(super) fn configure(network: Option<&Network>) -> Result<(), NetworkError> {
    let refused = |what| move |source| NetworkError::Refused { what, source };
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| refused("open a socket")(errno.into()))?;
    sys::bring_up(&socket, LOOPBACK).map_err(refused("bring the loopback up"))?;
    let Some(network) = network else { return Ok(()) };
    wait_for(&Path::new("/sys/class/net").join(CARD))?;
    sys::set_address(&socket, CARD, network.address, network.mask()).map_err(refused("give the card an address"))?;
    sys::bring_up(&socket, CARD).map_err(refused("bring the card up"))?;
    sys::add_default_route(&socket, network.gateway).map_err(refused("set the default route"))?;
    // One that cannot take it works all the same, by addresses.
    if let Err(error) = provide(Path::new(RESOLVER), &format!("nameserver {}\n", network.resolver)) {
        say(&format!("cannot write {RESOLVER}: {error}"));
    }
    Ok(())
}

fn wait_for(card: &Path) -> Result<(), NetworkError> {
    let deadline = Instant::now() + LIMIT;
    while !card.exists() {
        if Instant::now() >= deadline {
            return Err(NetworkError::Missing(LIMIT));
        }
        // Nothing else runs yet, so blocking is fine.
        sleep(PAUSE);
    }
    Ok(())
}
