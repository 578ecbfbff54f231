//! Becoming somebody else: what a copy of a guest must change before anything of the user's runs.
//!
//! The kernel's random pool and clock, boot-id, machine-id and host name where asked, and whatever the image's own
//! hooks repair. All of it, or the identity is not acknowledged and the guest stays closed.

mod files;
mod hooks;
mod kernel;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use throughline::Identity;

use crate::reaper::Reaper;
use crate::secrets::SecretError;
use crate::spawn::Spawner;

pub(crate) use files::BOOT_ID;
use files::Files;
pub use files::{FilesError, machine_id};
pub use hooks::HookError;
pub use kernel::KernelError;

/// Where files of the guest lie.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/etc`: machine-id, hostname, and `throughline/restore.d` with the hooks.
    pub etc: PathBuf,
    /// `/run/throughline`: the files `epoch` and `boot_id`.
    pub run: PathBuf,
    /// `/`: the user's root, in which files are copied.
    pub root: PathBuf,
    /// `/run/secrets`: the user's secrets.
    pub secrets: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { etc: "/etc".into(), run: "/run/throughline".into(), root: "/".into(), secrets: "/run/secrets".into() }
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
    /// Secrets of the former one could not be taken away.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// Everything that taking on an identity needs, looked up ahead.
///
/// The first code that a restored guest runs is slow, as it is in no cache: what can be done before the snapshot
/// is. It holds while nothing of the user's runs.
#[derive(Debug)]
pub struct Preparation {
    random: File,
    files: Files,
    hooks: Vec<PathBuf>,
}

impl Preparation {
    /// Looks everything up. To be called once the user's processes are frozen; changes nothing.
    pub fn new(places: &Places) -> Result<Self, IdentityError> {
        Ok(Self {
            random: kernel::random()?,
            files: Files::find(&places.etc, &places.run),
            hooks: hooks::list(&places.etc.join("throughline/restore.d"))?,
        })
    }

    /// Takes on an identity. When this returns without error, everything of the old one is gone.
    pub async fn take_on(&self, identity: &Identity, spawner: &Spawner, reaper: &Reaper) -> Result<(), IdentityError> {
        kernel::reseed(&self.random, &identity.entropy)?;
        kernel::set_clock(identity.clock_ns)?;
        if identity.flags & Identity::RENEW_NAMES != 0 {
            let name = files::hostname(identity);
            self.files.write_names(identity.epoch, &name)?;
            kernel::set_hostname(&name)?;
        }
        // Also where the names stay: after going back to a checkpoint the time since boot begins anew from there.
        self.files.write_boot_id(identity.epoch)?;
        // Hooks may do anything, and do it once.
        if identity.flags & Identity::REHEARSE == 0 {
            hooks::run(&self.hooks, identity, spawner, reaper, HOOKS_LIMIT).await?;
        }
        self.files.write_epoch(identity.epoch)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
