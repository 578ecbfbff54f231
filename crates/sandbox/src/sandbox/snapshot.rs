//! Taking a snapshot of a running sandbox.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use throughline::Link;

use super::hand_over::{Owed, Turn};
use super::record::now_ms;
use super::{About, Sandbox, Wanted, carried};
use tokio::sync::OwnedMutexGuard;

use crate::SandboxError;
use crate::bundle::{Bundle, BundleError, Carried, Draft, Manifest, RAM, REGION, SIDECAR, STATE, VERSION};
use crate::engine::{Capture, CaptureReport, Vm};
use crate::steps::step;

/// The most that a device state needs, in bytes.
const STATE_ROOM: u64 = 1 << 20;

/// How long a machine may take to show that it has ended, once something went wrong.
const ENDING: Duration = Duration::from_millis(200);

/// What a snapshot came to.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotReport {
    /// Whether the guest was quiet: [`Manifest::quiesced`].
    pub quiesced: bool,
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

type Observer = Box<dyn Fn(Stage) + Send + Sync>;

/// What the critical section of a snapshot came to.
struct Copied {
    draft: Draft,
    quiesced: bool,
    ram: CaptureReport,
    carried: Carried,
    stand_still: Duration,
}

/// How a guest is made quiet.
#[derive(Clone, Copy)]
struct Quiet {
    deadline: Duration,
    /// Go on without.
    optional: bool,
}

impl Quiet {
    /// Asks the guest to be quiet, and freezes the link. Whether the guest is quiet: if it has to be, and is
    /// not, that is the error, and the link is not frozen.
    ///
    /// A guest that was asked owes its secrets: whoever lets it go on hands them over again in this turn.
    async fn ask(self, link: &Link, vm: &dyn Vm, owed: &Owed) -> Result<(bool, Turn), SandboxError> {
        let turn = owed.settled(self.deadline).await?;
        let quiet = tokio::select! {
            biased;
            quiet = link.quiesce(self.deadline) => quiet,
            exit = vm.exited() => return Err(SandboxError::Ended(Box::new(exit))),
        };
        let quiesced = match quiet {
            Ok(()) => true,
            Err(unanswered) if self.optional && owed.is_empty() => {
                tracing::warn!(%unanswered, "the snapshot is not quiesced");
                false
            }
            Err(unanswered) => {
                // It may have become quiet just then.
                owed.again(turn);
                let console = vm.console();
                let why = if self.optional { SandboxError::SecretsNotQuiet } else { SandboxError::NotQuiet };
                return Err(why(unanswered, console));
            }
        };
        link.freeze();
        step("quiet");
        Ok((quiesced, turn))
    }
}

/// The part of a snapshot during which the guest is quiet. It runs as a task of its own: whoever
/// loses interest half-way leaves no guest paused.
struct Section {
    link: Link,
    vm: Arc<dyn Vm>,
    draft: Draft,
    capture: Capture,
    quiet: Quiet,
    owed: Owed,
    observer: Observer,
}

impl Section {
    async fn run(self) -> Result<Copied, SandboxError> {
        let Self { link, vm, draft, capture, quiet, owed, observer } = self;
        (observer)(Stage::Quieting);
        let (quiesced, turn) = quiet.ask(&link, &*vm, &owed).await?;
        let paused = Instant::now();
        let result = copy_paused(&link, &*vm, &draft, capture, &observer).await;
        // The guest goes on, whether that worked or not.
        let resumed = vm.resume().await;
        let stand_still = paused.elapsed();
        link.thaw();
        link.lift_quiesce();
        owed.again(turn);
        (observer)(Stage::Resumed);
        step("resumed");
        let (capture, ram, carried) = result?;
        tokio::task::spawn_blocking(|| drop(capture));
        resumed?;
        Ok(Copied { draft, quiesced, ram, carried, stand_still })
    }
}

async fn copy_paused(
    link: &Link,
    vm: &dyn Vm,
    draft: &Draft,
    mut capture: Capture,
    observer: &Observer,
) -> Result<(Capture, CaptureReport, Carried), SandboxError> {
    vm.pause().await?;
    step("paused");
    observer(Stage::Paused);
    let saved = vm.save(&draft.path(STATE)).await;
    // Asked while everything that fills the place is still there.
    saved.map_err(|error| full(draft).unwrap_or_else(|| error.into()))?;
    step("saved");
    let copying = blocking(move || capture.finish().map(|report| (capture, report)));
    let carried = copy_link(link, draft);
    // Awaited in any case: whoever removes the draft must be the last to write into it.
    let (capture, ram) = copying.await?;
    Ok((capture, ram, carried?))
}

/// How to take a snapshot. Made by [`Sandbox::snapshot_with`].
#[must_use = "nothing is taken before `take` or `take_and_stop`"]
pub struct Snapshot<'a> {
    sandbox: &'a Sandbox,
    place: PathBuf,
    quiet: Quiet,
    observer: Observer,
}

impl Snapshot<'_> {
    /// Takes the snapshot all the same of a guest that does not become quiet in time. Report and manifest then
    /// say that it is not quiesced.
    ///
    /// What is in flight on channels is carried as ever. But the guest stands still in the middle of whatever
    /// it does, and where it is restored, the user's processes run for a moment before the agent stops them
    /// to take on the new identity.
    pub fn allow_unquiesced(mut self) -> Self {
        self.quiet.optional = true;
        self
    }

    /// Tells `observer` where the snapshot is. The observer must not wait.
    pub fn observer(mut self, observer: impl Fn(Stage) + Send + Sync + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Takes the snapshot; the sandbox goes on. Unread bytes of every channel are in it.
    ///
    /// If it fails, the sandbox goes on as well, and nothing is at the place. If the future is dropped, the
    /// sandbox goes on, and what is at the place is complete or nothing.
    pub async fn take(self) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let (sandbox, vm) = (self.sandbox, &*self.sandbox.vm);
        let mut turn = Some(sandbox.snapshots.clone().lock_owned().await);
        let taken = self.taken(&mut turn).await;
        // Complete or vanished: a successor has nothing to remove. Still in this turn, as the next one announces its own.
        if let Err(error) = sandbox.change(|record| record.snapshot = None) {
            tracing::warn!(%error, "a snapshot that is over stays on record as one in the making");
        }
        drop(turn);
        match taken {
            Ok(taken) => Ok(taken),
            Err(error) => Err(explain(error, vm).await),
        }
    }

    /// Leaves the turn with the caller, except for as long as the guest stands still.
    async fn taken(self, turn: &mut Option<OwnedMutexGuard<()>>) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let started = Instant::now();
        let Self { sandbox, place, quiet, observer } = self;
        let draft = sandbox.draft(&place)?;
        let source = sandbox.vm.ram()?;
        step("capture");
        // The bulk of RAM is copied while the guest runs; what it changes meanwhile is corrected later. Should nobody wait
        // for it any more, the draft goes when the last byte is written, and nothing comes after that.
        let begin = move || Capture::begin(source, &draft.path(RAM)).map(|capture| (draft, capture));
        let (draft, capture) = blocking(begin).await?;
        let (link, vm, owed) = (sandbox.link.clone(), sandbox.vm.clone(), sandbox.owed.clone());
        let section = Section { link, vm, draft, capture, quiet, owed, observer };
        // With it goes the turn: should nobody wait for it any more, the next one waits all the same.
        let held = turn.take();
        let section = tokio::spawn(async move { (section.run().await, held) }).await;
        let failed = |error| SandboxError::io("take the snapshot")(std::io::Error::other(error));
        let copied;
        (copied, *turn) = section.map_err(failed)?;
        let Copied { draft, quiesced, ram, carried, stand_still } = copied?;
        let manifest = sandbox.manifest(quiesced, carried, ram);
        let bundle = blocking(move || draft.complete(manifest)).await?;
        let (total, CaptureReport { copied, corrected, .. }) = (started.elapsed(), ram);
        Ok((bundle, SnapshotReport { quiesced, stand_still, total, copied, corrected, carried }))
    }

    /// Takes the snapshot and ends the sandbox: its RAM is not copied, its file becomes the snapshot's
    /// (on the same file system).
    ///
    /// The machine ends only once the bundle is there. If anything fails before, the sandbox goes on; whoever takes it
    /// over after this process died finds either the bundle, and ends the machine, or no bundle, and lets it go on. If
    /// the future is dropped, the machine ends all the same.
    pub async fn take_and_stop(self) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let sandbox = self.sandbox;
        let _turn = sandbox.snapshots.lock().await;
        let ends = Ending { vm: &*sandbox.vm, armed: AtomicBool::new(false) };
        match self.taken_paused(&ends).await {
            Ok(taken) => {
                sandbox.change(|record| {
                    (record.wanted, record.stopping, record.snapshot) = (Wanted::Ended, None, None);
                })?;
                sandbox.vm.kill().await?;
                step("stopped");
                Ok(taken)
            }
            Err(error) => {
                if ends.armed.swap(false, Ordering::Relaxed) {
                    sandbox.go_on().await;
                }
                sandbox.change(|record| (record.stopping, record.snapshot) = (None, None))?;
                Err(explain(error, &*sandbox.vm).await)
            }
        }
    }

    async fn taken_paused(self, ends: &Ending<'_>) -> Result<(Bundle, SnapshotReport), SandboxError> {
        let started = Instant::now();
        let Self { sandbox, place, quiet, observer } = self;
        let draft = sandbox.draft(&place)?;
        let source = sandbox.vm.ram()?;
        ends.armed.store(true, Ordering::Relaxed);
        observer(Stage::Quieting);
        // What has to be copied is, while the guest becomes quiet.
        let begin = move || Capture::begin_last(source, &draft.path(RAM)).map(|capture| (draft, capture));
        let quieting = quiet.ask(&sandbox.link, &*sandbox.vm, &sandbox.owed);
        // Both to their ends: one that fails has the other's work undone.
        let (captured, asked) = tokio::join!(blocking(begin), quieting);
        let ((draft, capture), (quiesced, _turn)) = (captured?, asked?);
        let place = std::path::absolute(&place).map_err(SandboxError::io("find the snapshot's place"))?;
        sandbox.change(|record| record.stopping = Some(place))?;
        let (_, ram, carried) = copy_paused(&sandbox.link, &*sandbox.vm, &draft, capture, &observer).await?;
        let manifest = sandbox.manifest(quiesced, carried, ram);
        let bundle = blocking(move || draft.complete(manifest)).await?;
        let (total, CaptureReport { copied, corrected, .. }) = (started.elapsed(), ram);
        let stand_still = Duration::ZERO;
        Ok((bundle, SnapshotReport { quiesced, stand_still, total, copied, corrected, carried }))
    }
}

/// Ends a machine that must not run again.
struct Ending<'a> {
    vm: &'a dyn Vm,
    armed: AtomicBool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if self.armed.load(Ordering::Relaxed) {
            self.vm.end();
        }
    }
}

impl Sandbox {
    /// Takes a snapshot at `place`, a folder that must not exist yet; the sandbox goes on:
    /// [`Snapshot::take`].
    pub async fn snapshot(&self, place: &Path) -> Result<(Bundle, SnapshotReport), SandboxError> {
        self.snapshot_with(place).take().await
    }

    /// Takes a snapshot and ends the sandbox, whether that worked or not: [`Snapshot::take_and_stop`].
    pub async fn snapshot_and_stop(self, place: &Path) -> Result<(Bundle, SnapshotReport), SandboxError> {
        self.snapshot_with(place).take_and_stop().await
    }

    /// A snapshot at `place`, a folder that must not exist yet, with choices of one's own.
    pub fn snapshot_with(&self, place: &Path) -> Snapshot<'_> {
        let quiet = Quiet { deadline: self.quiet, optional: false };
        Snapshot { sandbox: self, place: place.to_path_buf(), quiet, observer: Box::new(|_| ()) }
    }

    /// After a snapshot that was to end the machine, and came to nothing.
    async fn go_on(&self) {
        let resumed = self.vm.resume().await;
        if let Err(error) = resumed {
            tracing::warn!(%error, "the sandbox does not go on after its snapshot failed");
        }
        self.link.thaw();
        self.link.lift_quiesce();
        self.owed.now();
    }

    /// A draft, which a successor removes if this process dies.
    fn draft(&self, place: &Path) -> Result<Draft, SandboxError> {
        if self.record().wanted == Wanted::Paused {
            return Err(SandboxError::Paused(self.name().to_owned()));
        }
        let place = &std::path::absolute(place).map_err(SandboxError::io("find the snapshot's place"))?;
        Draft::announced(place, |folder| self.change(|record| record.snapshot = Some(folder.to_path_buf())))
    }

    fn manifest(&self, quiesced: bool, carried: Carried, copied: CaptureReport) -> Manifest {
        let About { image, rootfs, kernel, hardware, agent, ram, .. } = self.about.clone();
        // What is known of an image that nobody writes need not be found out again.
        let known = ram.filter(|_| copied.delta).map(|entry| (RAM.to_owned(), entry));
        Manifest {
            version: VERSION,
            created_ms: now_ms(),
            machine: self.vm.record().machine.clone(),
            image,
            rootfs,
            kernel,
            hardware,
            agent,
            timeline: format!("{:032x}", self.link.timeline()),
            quiesced,
            carried,
            files: known.into_iter().collect(),
        }
    }
}

/// What is behind an error: a machine that has ended shows in many ways.
async fn explain(error: SandboxError, vm: &dyn Vm) -> SandboxError {
    if matches!(
        error,
        SandboxError::Ended(_) | SandboxError::Dead(_) | SandboxError::Bundle(_) | SandboxError::NotQuiet(..)
    ) {
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
