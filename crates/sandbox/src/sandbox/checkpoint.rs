//! Checkpoints: moments of a sandbox, held in memory beside it, to which it goes back when its machine dies.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::record::{Checkpoint, Record, STEADY, now_ms};
use super::{Sandbox, SnapshotReport};
use crate::SandboxError;

/// How the folder of a checkpoint begins.
pub(super) const PREFIX: &str = "checkpoint-";

/// How long after a try that found the sandbox paused the next one is made, at most.
const PAUSED: Duration = Duration::from_secs(1);
/// The same after one that failed otherwise.
const AGAIN: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Takes a checkpoint, which takes the place of the one before: the moment that [`roll_back`](Self::roll_back)
    /// goes back to. It lies in memory, and takes as much of it as the guest has touched (for a moment twice).
    ///
    /// # Errors
    /// Those of a snapshot; the checkpoint before then stays, and the sandbox goes on.
    pub async fn checkpoint(&self) -> Result<SnapshotReport, SandboxError> {
        let folder = format!("{PREFIX}{:016x}", u64::from_ne_bytes(random()?));
        let (_, report) = self.snapshot_with(&self.places.beside(&folder)).take().await?;
        let taken = Checkpoint { folder: folder.clone(), taken_ms: now_ms() };
        let age = self.since.elapsed();
        self.change(|record| record.checkpoints.taken(taken, age))?;
        // From here on nobody goes back to an older one.
        self.places.remove_beside(|name| name.starts_with(PREFIX) && name != folder)?;
        Ok(report)
    }

    /// Notes how often checkpoints are to be taken, for whoever drives the sandbox: see
    /// [`keep_checkpoints`](Self::keep_checkpoints).
    pub fn checkpoint_every(&self, every: Option<Duration>) -> Result<(), SandboxError> {
        let every_ms = every.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1));
        self.change(|record| record.checkpoints.every_ms = every_ms)
    }

    /// Takes checkpoints for as long as it is polled, the first at once, as often as was
    /// [noted](Self::checkpoint_every). One that fails is told to the log, and tried again after
    /// ten seconds at most. After half a minute it is noted that this timeline has lived for so long. Cancel-safe.
    pub async fn keep_checkpoints(&self) -> Infallible {
        let Some(every) = self.record().checkpoints.every_ms else {
            return std::future::pending().await;
        };
        let every = Duration::from_millis(every.max(1));
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut steady, mut is_noted) = (pin!(sleep(STEADY.saturating_sub(self.since.elapsed()))), false);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut steady, if !is_noted => {
                    match self.lives_on() {
                        Ok(()) => is_noted = true,
                        Err(error) => {
                            tracing::warn!(%error, "it is not on paper that this sandbox has lived for a while");
                            steady.as_mut().reset(Instant::now() + AGAIN);
                        }
                    }
                    continue;
                }
            }
            match self.checkpoint().await {
                Ok(report) => tracing::debug!(?report, "a checkpoint"),
                // Soon after it runs again.
                Err(SandboxError::Paused(_)) => ticks.reset_after(every.min(PAUSED)),
                Err(error) => {
                    tracing::warn!(%error, "a checkpoint was not taken");
                    ticks.reset_after(every.min(AGAIN));
                }
            }
        }
    }
}

impl Sandbox {
    /// Notes that this timeline is steady.
    fn lives_on(&self) -> Result<(), SandboxError> {
        if self.record().checkpoints.short_lives == 0 {
            return Ok(());
        }
        self.change(|record| record.checkpoints.short_lives = 0)
    }

    /// What is on paper, and what of it nobody has noted yet, where nobody keeps checkpoints: that this timeline is steady.
    pub(super) fn aged(&self, mut record: Record) -> Record {
        if self.since.elapsed() >= STEADY {
            record.checkpoints.short_lives = 0;
        }
        record
    }
}

fn random() -> Result<[u8; 8], SandboxError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| SandboxError::io("choose a name")(error.into()))?;
    Ok(bytes)
}
