//! A child in waiting: loaded, rehearsed and paused, so that taking it costs no more than letting it run.

use std::time::Instant;

use throughline::Identity;

use super::create::random_name;
use super::restore::{Loaded, Restore};
use super::start::identity;
use super::{Sandbox, SandboxError};
use crate::engine::{Exit, VmRecord};
use crate::places::Places;
use crate::{Given, Secrets};

/// What a guest does after the first acknowledgement, and when it runs on after a pause, is rehearsed by the second.
const REHEARSALS: u32 = 2;

/// A loaded machine that waits, paused and without a name, to be [taken](Self::take). It is no sandbox yet: nobody
/// lists it, dropping it ends it, and whoever comes next ends one whose process has died.
pub struct Waiting(Loaded);

impl Restore {
    /// Restores as far as that can be without being anybody: nothing of the user's has run yet. A name that
    /// was given does not matter.
    ///
    /// The guest's agent goes through a [rehearsal](Identity::REHEARSE), unless the snapshot was not quiesced: then
    /// the user's processes would run in it.
    pub async fn wait(self) -> Result<Waiting, SandboxError> {
        let rehearse = self.rehearse && self.is_quiesced();
        let loaded = Box::pin(self.load(Places::waiting)).await?;
        if rehearse && let Err(error) = loaded.rehearse().await {
            return Err(loaded.starting.abandon(error).await);
        }
        Ok(Waiting(loaded))
    }
}

impl Waiting {
    /// What its guest is given, in place of what its [`Restore`] said; nothing has reached it yet.
    ///
    /// # Errors
    /// It cannot be given that; the machine ends.
    pub fn given(mut self, given: Given) -> Result<Self, SandboxError> {
        self.0.hostname = given.check(self.0.timeline.index)?;
        self.0.secrets = given.secrets;
        Ok(self)
    }

    /// Makes a sandbox of it, under a name or a random one, and returns when its guest is ready.
    ///
    /// # Errors
    /// Those of [`Restore::start`]; the machine has ended then.
    pub async fn take(mut self, name: Option<&str>) -> Result<Sandbox, SandboxError> {
        self.0.starting.started = Instant::now();
        let named = match name {
            Some(name) => self.0.starting.places.rename(name),
            None => self.0.starting.places.rename(&random_name()?),
        };
        match named {
            Ok(()) => Box::pin(self.0.wake()).await,
            Err(error) => Err(self.0.starting.abandon(error.into()).await),
        }
    }

    /// Waits until its machine has ended, though nobody has taken it.
    pub fn ended(&self) -> impl Future<Output = Exit> + Send + use<> {
        let vm = self.0.starting.vm.clone();
        async move { vm.exited().await }
    }

    /// Its monitor's process.
    pub fn machine(&self) -> &VmRecord {
        self.0.starting.vm.record()
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waiting").field(&self.machine().pid).finish()
    }
}

impl Loaded {
    /// Has the agent take on its identity and run a program, while it is held, and pauses it again. An emulator
    /// translates code when it is first executed: here, and not when the child is taken.
    async fn rehearse(&self) -> Result<(), SandboxError> {
        let Self { starting, link, .. } = self;
        // Whether any secrets follow is said by the identity itself. Until then the files of former ones stay, without
        // their bytes: who has one open finds it again, should the child be given one of that name.
        let flags = Identity::REHEARSE | Identity::SECRETS_FOLLOW;
        for _ in 0..REHEARSALS {
            let identity = identity(link.identity_seq() + 1, self.timeline, self.hostname, &Secrets::default())?;
            link.give_identity(&Identity { flags: identity.flags | flags, ..identity });
            starting.vm.resume().await?;
            starting.answer(link.identity_taken(starting.deadline)).await?;
            starting.vm.pause().await?;
        }
        tracing::debug!(after = ?starting.started.elapsed(), "rehearsed");
        Ok(())
    }
}
