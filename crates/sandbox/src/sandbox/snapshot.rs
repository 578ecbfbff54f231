//! Taking a snapshot of a running sandbox.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use throughline::Link;

use super::{About, Sandbox, carried};
use crate::SandboxError;
use crate::bundle::{Bundle, Carried, Draft, Manifest, RAM, REGION, SIDECAR, STATE, VERSION};
use crate::engine::{Capture, CaptureReport, Vm, save_and_stop};

/// What a snapshot came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct SnapshotReport {
    /// How long the guest's processors stood still. Zero where the sandbox was stopped.
    pub stand_still: Duration,
    /// How long all of it took.
    pub total: Duration,
    /// Bytes of RAM that were copied before the pause.
    pub copied: u64,
    /// Bytes of RAM that were corrected in the pause.
    pub corrected: u64,
    /// Unread bytes that the snapshot carries.
    pub carried: Carried,
}

/// A point in the course of a snapshot, told to an observer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The guest is asked to be quiet: it stops serving.
    Quieting,
    /// The guest stands still.
    Paused,
    /// The guest runs again.
    Resumed,
}

/// What the critical section of a snapshot came to.
struct Copied {
    draft: Draft,
    ram: CaptureReport,
    carried: Carried,
    stand_still: Duration,
}

/// The part of a snapshot during which the guest is quiet. It runs as a task of its own: whoever
/// loses interest half-way leaves no guest paused.
struct Section<O> {
    link: Link,
    vm: Arc<dyn Vm>,
    draft: Draft,
    capture: Capture,
    quiet: Duration,
    observer: O,
}

impl<O: Fn(Stage) + Send + Sync + 'static> Section<O> {
    async fn run(self) -> Result<Copied, SandboxError> {
        let Self { link, vm, draft, capture, quiet, observer } = self;
        (observer)(Stage::Quieting);
        be_quiet(&link, &*vm, quiet).await?;
        let paused = Instant::now();
        let result = copy_paused(&link, &*vm, &draft, capture, &observer).await;
        // The guest goes on, whether that worked or not.
        let resumed = vm.resume().await;
        let stand_still = paused.elapsed();
        link.thaw();
        link.lift_quiesce();
        (observer)(Stage::Resumed);
        let (ram, carried) = result?;
        resumed?;
        Ok(Copied { draft, ram, carried, stand_still })
    }
}

/// Asks the guest to be quiet, and freezes the link.
async fn be_quiet(link: &Link, vm: &dyn Vm, deadline: Duration) -> Result<(), SandboxError> {
    let quiet = tokio::select! {
        biased;
        quiet = link.quiesce(deadline) => quiet,
        exit = vm.exited() => return Err(SandboxError::Ended(Box::new(exit))),
    };
    quiet.map_err(|unanswered| SandboxError::Unanswered(unanswered, vm.console()))?;
    link.freeze();
    Ok(())
}

async fn copy_paused(
    link: &Link,
    vm: &dyn Vm,
    draft: &Draft,
    capture: Capture,
    observer: &impl Fn(Stage),
) -> Result<(CaptureReport, Carried), SandboxError> {
    vm.pause().await?;
    observer(Stage::Paused);
    vm.save(&draft.path(STATE)).await?;
    let copying = blocking(move || capture.finish());
    let carried = copy_link(link, draft)?;
    Ok((copying.await?, carried))
}

impl Sandbox {
    /// Takes a snapshot at `place`, a folder that must not exist yet; the sandbox goes on. Unread bytes
    /// of every channel are in it.
    ///
    /// If it fails, or the future is dropped, the sandbox goes on as well, and nothing is at `place`.
    pub async fn snapshot(&self, place: &Path) -> Result<(Bundle, SnapshotReport), SandboxError> {
        self.snapshot_observed(place, |_| ()).await
    }

    /// The same, telling `observer` where it is. The observer must not wait.
    pub async fn snapshot_observed(
        &self,
        place: &Path,
        observer: impl Fn(Stage) + Send + Sync + 'static,
    ) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let started = Instant::now();
        let draft = Draft::new(place)?;
        let (source, image) = (self.vm.ram()?, draft.path(RAM));
        // The bulk of RAM is copied while the guest runs; what it changes meanwhile is corrected later.
        let capture = blocking(move || Capture::begin(source, &image)).await?;
        let section =
            Section { link: self.link.clone(), vm: self.vm.clone(), draft, capture, quiet: self.quiet, observer };
        let section = tokio::spawn(section.run()).await;
        let copied = section.map_err(|error| SandboxError::io("take the snapshot")(std::io::Error::other(error)))??;
        let Copied { draft, ram, carried, stand_still } = copied;
        let manifest = self.manifest(carried);
        let bundle = blocking(move || draft.complete(manifest)).await?;
        let report = SnapshotReport {
            stand_still,
            total: started.elapsed(),
            copied: ram.copied,
            corrected: ram.corrected,
            carried,
        };
        Ok((bundle, report))
    }

    /// Takes a snapshot and ends the sandbox: its RAM is not copied, its file becomes the snapshot's
    /// (on the same file system).
    ///
    /// If it fails, the sandbox ends nevertheless.
    pub async fn snapshot_and_stop(self, place: &Path) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let started = Instant::now();
        let draft = Draft::new(place)?;
        be_quiet(&self.link, &*self.vm, self.quiet).await?;
        self.vm.pause().await?;
        let carried = copy_link(&self.link, &draft)?;
        let ram = save_and_stop(&*self.vm, &draft.path(STATE), &draft.path(RAM)).await?;
        let manifest = self.manifest(carried);
        let bundle = blocking(move || draft.complete(manifest)).await?;
        let report = SnapshotReport {
            stand_still: Duration::ZERO,
            total: started.elapsed(),
            copied: ram.copied,
            corrected: ram.corrected,
            carried,
        };
        Ok((bundle, report))
    }

    fn manifest(&self, carried: Carried) -> Manifest {
        let About { image, kernel, memory_mib, agent, .. } = self.about.clone();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Manifest {
            version: VERSION,
            created_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            machine: self.vm.record().machine.clone(),
            image,
            kernel,
            memory_mib,
            agent,
            timeline: format!("{:032x}", self.link.timeline()),
            carried,
            files: std::collections::BTreeMap::new(),
        }
    }
}

fn copy_link(link: &Link, draft: &Draft) -> Result<Carried, SandboxError> {
    let (region, sidecar) = (draft.create(REGION)?, draft.create(SIDECAR)?);
    let copied = link.copy_frozen(&region, &sidecar).map_err(SandboxError::io("copy the region"))?;
    Ok(carried(copied))
}

/// Runs file work off the reactor.
pub(super) async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, SandboxError>
where
    SandboxError: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(SandboxError::io("do file work")(std::io::Error::other(error))),
    }
}
