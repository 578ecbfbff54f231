//! Becoming somebody else: what a copy of a guest must change before anything of the user's runs.
//!
//! The kernel's random pool and clock, machine-id and host name where asked, and whatever the image's own
//! hooks repair. All of it, or the identity is not acknowledged and the guest stays closed.

mod files;
mod hooks;
mod kernel;

use std::path::PathBuf;
use std::time::Duration;

use throughline::Identity;

use crate::reaper::Reaper;
use crate::spawn::Spawner;

pub use files::{FilesError, machine_id};
pub use hooks::HookError;
pub use kernel::KernelError;

/// Where the identity leaves its traces.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/etc`: machine-id, hostname, and `throughline/restore.d` with the hooks.
    pub etc: PathBuf,
    /// `/run/throughline`: the file `epoch`.
    pub run: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { etc: "/etc".into(), run: "/run/throughline".into() }
    }
}

/// Longest time that all hooks of one identity may take together.
pub const HOOKS_LIMIT: Duration = Duration::from_secs(20);

/// An identity that could not be taken on.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel did not cooperate.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A file could not be written.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// Takes on an identity. When this returns without error, everything of the old one is gone.
pub async fn take_on(
    identity: &Identity,
    places: &Places,
    spawner: &Spawner,
    reaper: &Reaper,
) -> Result<(), IdentityError> {
    kernel::reseed(&identity.entropy)?;
    kernel::set_clock(identity.clock_ns)?;
    take_on_names(identity, places)?;
    hooks::run(&places.etc.join("throughline/restore.d"), identity, spawner, reaper, HOOKS_LIMIT).await?;
    files::write_epoch(&places.run, identity.epoch)?;
    Ok(())
}

fn take_on_names(identity: &Identity, places: &Places) -> Result<(), IdentityError> {
    if identity.flags & Identity::RENEW_NAMES == 0 {
        return Ok(());
    }
    let name = files::write_names(&places.etc, identity.epoch)?;
    Ok(kernel::set_hostname(&name)?)
}

#[cfg(test)]
mod tests;
