//! The kernel's part of an identity.

use std::fs::File;
use std::io;

use rustix::time::{ClockId, Timespec, clock_settime};

/// The kernel refused to become somebody else.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}; the agent needs all rights of process 1")]
pub struct KernelError {
    what: &'static str,
    source: io::Error,
}

/// The kernel's random pool.
pub(super) fn random() -> Result<File, KernelError> {
    File::open("/dev/urandom").map_err(|source| KernelError { what: "open the kernel's random pool", source })
}

/// Mixes secret randomness into the pool: siblings share everything else.
pub(super) fn reseed(random: &File, entropy: &[u8; 64]) -> Result<(), KernelError> {
    crate::sys::add_entropy(random, entropy)
        .map_err(|source| KernelError { what: "mix the identity's entropy into the kernel's random pool", source })
}

/// Steps the wall clock, which stood still with the guest. Zero leaves it.
pub(super) fn set_clock(nanoseconds: u64) -> Result<(), KernelError> {
    if nanoseconds == 0 {
        return Ok(());
    }
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let now = Timespec { tv_sec: seconds.cast_signed(), tv_nsec: rest.cast_signed() };
    clock_settime(ClockId::Realtime, now).map_err(|errno| KernelError { what: "step the clock", source: errno.into() })
}

/// Sets the kernel's host name.
pub(super) fn set_hostname(name: &str) -> Result<(), KernelError> {
    rustix::system::sethostname(name.as_bytes())
        .map_err(|errno| KernelError { what: "set the host name", source: errno.into() })
}
