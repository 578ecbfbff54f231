//! Taking a snapshot of a running sandbox.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use throughline::Link;

use super::{About, Sandbox, carried};
use crate::SandboxError;
use crate::bundle::{Bundle, BundleError, Carried, Draft, Manifest, RAM, REGION, SIDECAR, STATE, VERSION};
use crate::engine::{Capture, CaptureReport, Vm, save_and_stop};

/// The most that a device state needs, in bytes.
const STATE_ROOM: u64 = 1 << 20;

/// How long a machine may take to show that it has ended, once something went wrong.
const ENDING: Duration = Duration::from_millis(200);

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
    let saved = vm.save(&draft.path(STATE)).await;
    // Asked while everything that fills the place is still there.
    saved.map_err(|error| full(draft).unwrap_or_else(|| error.into()))?;
    let copying = blocking(move || capture.finish());
    let carried = copy_link(link, draft);
    // Awaited in any case: whoever removes the draft must be the last to write into it.
    let ram = copying.await?;
    Ok((ram, carried?))
}

impl Sandbox {
    /// Takes a snapshot at `place`, a folder that must not exist yet; the sandbox goes on. Unread bytes
    /// of every channel are in it.
    ///
    /// If it fails, the sandbox goes on as well, and nothing is at `place`. If the future is dropped, the
    /// sandbox goes on, and what is at `place` is complete or nothing.
    pub async fn snapshot(&self, place: &Path) -> Result<(Bundle, SnapshotReport), SandboxError> {
        self.snapshot_observed(place, |_| ()).await
    }

    /// The same, telling `observer` where it is. The observer must not wait.
    pub async fn snapshot_observed(
        &self,
        place: &Path,
        observer: impl Fn(Stage) + Send + Sync + 'static,
    ) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let taken = self.take(place, observer).await;
        match taken {
            Ok(taken) => Ok(taken),
            Err(error) => Err(explain(error, &*self.vm).await),
        }
    }

    async fn take(
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

/// What is behind an error: a machine that has ended shows in many ways.
async fn explain(error: SandboxError, vm: &dyn Vm) -> SandboxError {
    if matches!(error, SandboxError::Ended(_) | SandboxError::Bundle(_) | SandboxError::Unanswered(..)) {
        return error;
    }
    if let Ok(exit) = tokio::time::timeout(ENDING, vm.exited()).await {
        return SandboxError::Ended(Box::new(exit));
    }
    error
}

/// The error for a place without room for a machine's device state, if it has none. A monitor that
/// could not write does not say why.
fn full(draft: &Draft) -> Option<SandboxError> {
    let folder = draft.path("");
    let space = rustix::fs::statvfs(&folder).ok()?;
    (space.f_bavail.saturating_mul(space.f_frsize) < STATE_ROOM).then(|| BundleError::NoSpace(folder).into())
}

fn copy_link(link: &Link, draft: &Draft) -> Result<Carried, SandboxError> {
    let (region, sidecar) = (draft.create(REGION)?, draft.create(SIDECAR)?);
    let failed = |error| full(draft).unwrap_or_else(|| SandboxError::io("copy the region")(error));
    let copied = link.copy_frozen(&region, &sidecar).map_err(failed)?;
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
