//! Restoring a sandbox from a bundle: a new timeline that goes on where the snapshot was taken.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use throughline::{Hostname, Link, Origin, Region, Sidecar, Timeline};

use super::create::random_name;
use super::snapshot::blocking;
use super::start::{Starting, identity, region_file};
use super::{About, Record, Sandbox, SandboxBuilder, Timings};
use crate::bundle::{Bundle, BundleError, DELTA, MANIFEST, Manifest, RAM, REGION, SIDECAR, STATE};
use crate::engine::{Engine, LoadSpec, Qemu, VmConfig, link};
use crate::image::Images;
use crate::places::{PlaceError, Places};
use crate::steps::step;
use crate::zeros::{PAGE, is_zero};
use crate::{Given, SandboxError, Secrets};

/// In the folder of a timeline: the image under its RAM.
const BASE: &str = "base";

/// How to restore a bundle. Made by [`Sandbox::restore`].
#[must_use = "nothing is restored before `start`"]
pub struct Restore {
    bundle: Bundle,
    name: Option<String>,
    given: Given,
    engine: Option<Arc<dyn Engine>>,
    deadline: Duration,
    origin: Origin,
    index: u64,
    trusted: bool,
    images: Images,
    pub(super) rehearse: bool,
}

impl Sandbox {
    /// A sandbox that goes on where a snapshot was taken.
    pub fn restore(bundle: Bundle) -> Restore {
        Restore {
            bundle,
            name: None,
            given: Given::default(),
            engine: None,
            deadline: SandboxBuilder::DEFAULT_DEADLINE,
            origin: Origin::Restored,
            index: 0,
            trusted: false,
            images: Images::new(),
            rehearse: true,
        }
    }
}

impl Restore {
    /// The name; a random one without this.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The guest's host name, in place before anything of the user's runs: 1 to 63 letters, digits, `-` and `.`. In that
    /// of a child `{index}` stands for its number. One that follows from its machine-id without this.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.given.hostname = Some(hostname.into());
        self
    }

    /// A secret: the file `/run/secrets/NAME` of the guest, which everybody in it may read, of up to 64 KiB; there whenever
    /// something of the user's runs, and in no snapshot. What a process has read lies in its own memory, and is in
    /// snapshots for as long as it is there; and where the sandbox at the root of the lineage was created without secrets,
    /// its kernel does not clear what a process that has ended had read. The name is a file's: letters, digits, `-`, `_` and `.`.
    ///
    /// A restored guest has those that are given to it here, and no others.
    pub fn secret(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.given.secrets.insert(name, value);
        self
    }

    /// Everything that the guest is given.
    pub fn given(mut self, given: Given) -> Self {
        self.given = given;
        self
    }

    /// The engine; QEMU without this.
    pub fn engine(mut self, engine: Arc<dyn Engine>) -> Self {
        self.engine = Some(engine);
        self
    }

    /// How long the guest may take until it is ready.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// As one of several children of that moment, counted from 1: the guest is told its number, and
    /// channels that were opened with [`OnFork::Reset`](throughline::OnFork::Reset) are gone.
    pub fn forked(mut self, index: u64) -> Self {
        (self.origin, self.index) = (Origin::Forked, index);
        self
    }

    /// Without looking for damage: the bundle was written by this host a moment ago, and nobody else can
    /// have changed it.
    pub fn trusted(mut self) -> Self {
        self.trusted = true;
        self
    }

    /// Whether one that [waits](Self::wait) goes through a rehearsal; it does without this. Without one it takes less
    /// memory, and its first command longer.
    pub fn rehearse(mut self, rehearse: bool) -> Self {
        self.rehearse = rehearse;
        self
    }

    /// Where to look for the image with the guest's root file system; the usual images without this.
    pub fn images(mut self, images: Images) -> Self {
        self.images = images;
        self
    }

    /// Restores, and returns when the guest is ready: it has taken on its new identity. Channels that
    /// were open wait to be adopted, with their unread bytes; an [`Event::Restored`] tells of it.
    ///
    /// The bundle is checked first, and its RAM, which is large, at the latest before the guest runs.
    /// It is not changed, and may be deleted or moved once this has returned. Dropping the future ends
    /// what there is of the machine.
    ///
    /// [`Event::Restored`]: throughline::Event::Restored
    pub async fn start(mut self) -> Result<Sandbox, SandboxError> {
        let name = self.name.take().map_or_else(random_name, Ok)?;
        // Each on the heap: callers' futures stay small.
        let loaded = Box::pin(self.load(|| Places::claim(&name))).await?;
        Box::pin(loaded.wake()).await
    }

    /// Everything but letting the guest run.
    pub(super) async fn load(self, claim: impl FnOnce() -> Result<Places, PlaceError>) -> Result<Loaded, SandboxError> {
        self.load_after(claim, None).await
    }

    /// The same, perhaps in place of a machine that has died.
    pub(super) async fn load_after(
        mut self,
        claim: impl FnOnce() -> Result<Places, PlaceError>,
        lost: Option<Lost<'_>>,
    ) -> Result<Loaded, SandboxError> {
        let started = Instant::now();
        if self.origin == Origin::Forked && self.index == 0 {
            return Err(SandboxError::ChildZero);
        }
        let hostname = self.given.check(self.index)?;
        let engine = self.engine.take().unwrap_or_else(|| Arc::new(Qemu::new()));
        self.bundle.check_machine(&engine.capabilities().await?.machine)?;
        self.check_agent()?;
        let rootfs = self.open_rootfs()?;
        let (bundle, trusted, forked) = (self.bundle.clone(), self.trusted, self.origin == Origin::Forked);
        let checking = tokio::task::spawn_blocking(move || if trusted { Ok(()) } else { bundle.check(RAM) });
        let places = claim()?;
        let folder = if lost.is_some() { places.next()? } else { places.current() };
        let (region, sidecar) = self.copy(&folder, lost.as_ref()).await?;
        let secrets = match lost {
            Some(_) => Secrets::read(&places)?,
            None => std::mem::take(&mut self.given.secrets),
        };
        let manifest = self.bundle.manifest();
        let ram = open_ram(&self.bundle)?;
        // With a name of its own it can be that of a snapshot too, whatever becomes of the bundle. Else it is copied then.
        if let Err(error) = link(&ram, &folder.join(BASE)) {
            tracing::debug!(%error, "the RAM's image gets no name of the sandbox's own");
        }
        let spec = LoadSpec {
            config: VmConfig {
                folder: places.runtime().to_path_buf(),
                hardware: manifest.hardware,
                region: region_file(&region)?,
                rootfs,
            },
            machine: manifest.machine.clone(),
            ram,
            delta: self.bundle.has_delta().then(|| self.bundle.file(DELTA)).transpose()?,
            state: self.bundle.file(STATE)?,
        };
        step("copied");
        tracing::debug!(after = ?started.elapsed(), "copied");
        let vm = Arc::from(engine.load(spec).await?);
        let machine = started.elapsed();
        step("loaded");
        tracing::debug!(after = ?machine, "loaded");
        let former = lost.map(|lost| lost.record);
        let starting = Starting { vm, places, deadline: self.deadline, started, former };
        let checked = checking.await.map_err(|error| SandboxError::io("check the RAM")(io::Error::other(error)));
        tracing::debug!(after = ?started.elapsed(), "checked");
        let attached = checked.and_then(|checked| Ok(checked?)).and_then(|()| {
            let timeline = sidecar.timeline();
            let link = starting.attach(region, sidecar)?;
            if forked {
                link.reset_forked();
            }
            Ok((link, timeline))
        });
        match attached {
            Ok((link, timeline)) => {
                Ok(Loaded { starting, link, timeline, hostname, secrets, about: self.about(), machine })
            }
            Err(error) => Err(starting.abandon(error).await),
        }
    }

    fn about(&self) -> About {
        let Manifest { image, rootfs, kernel, hardware, agent, files, .. } = self.bundle.manifest().clone();
        About { image, rootfs, kernel, hardware, agent, ram: files.get(RAM).copied(), timings: Timings::default() }
    }

    pub(super) fn is_quiesced(&self) -> bool {
        self.bundle.manifest().quiesced
    }

    fn check_agent(&self) -> Result<(), SandboxError> {
        let (found, expected) = (self.bundle.manifest().agent, throughline_wire::PROTOCOL);
        if found == expected { Ok(()) } else { Err(SandboxError::Agent { found, expected }) }
    }

    /// The root file system that the guest goes on reading, if it has one of its own.
    fn open_rootfs(&self) -> Result<Option<File>, SandboxError> {
        let Manifest { image, rootfs, .. } = self.bundle.manifest();
        let Some(rootfs) = rootfs else { return Ok(None) };
        match self.images.with_rootfs(image, &rootfs.digest)? {
            Some(image) => Ok(image.open_rootfs()?),
            None => Err(SandboxError::ImageMissing {
                image: image.clone(),
                source_name: rootfs.source.clone(),
                folder: self.images.place().to_path_buf(),
            }),
        }
    }

    /// Copies region and sidecar, and makes them a timeline of their own.
    async fn copy(&self, folder: &Path, lost: Option<&Lost<'_>>) -> Result<(Region, Sidecar), SandboxError> {
        let (bundle, to, trusted) = (self.bundle.clone(), folder.to_path_buf(), self.trusted);
        let (mut origin, mut index) = (self.origin, self.index);
        if let Some(lost) = lost {
            (origin, index) = (Origin::RolledBack, lost.dead.timeline().index);
        }
        let lost_epoch = lost.map(|lost| lost.dead.timeline().epoch);
        let work = move || {
            let delta = bundle.has_delta().then_some(DELTA);
            for file in [STATE, REGION, SIDECAR].into_iter().chain(delta).filter(|_| !trusted) {
                bundle.check(file)?;
            }
            copy_sparse(&bundle.file(REGION)?, &to.join("region"))?;
            copy_sparse(&bundle.file(SIDECAR)?, &to.join("sidecar"))?;
            let region = Region::open(&to.join("region"))?;
            let saved = u128::from_str_radix(&bundle.manifest().timeline, 16).map_err(|_| BundleError::Damaged {
                file: MANIFEST.to_owned(),
                reason: "its timeline is no number".to_owned(),
            })?;
            let parent = lost_epoch.unwrap_or(saved);
            let timeline = Timeline { epoch: Sidecar::new_epoch()?, parent, index, origin };
            let sidecar = Sidecar::rebind(&to.join("sidecar"), &region, timeline)?;
            Ok::<_, SandboxError>((region, sidecar))
        };
        let (region, sidecar) = blocking(work).await?;
        if let Some(lost) = lost {
            sidecar.went_back_from(lost.dead, &region);
        }
        Ok((region, sidecar))
    }
}

/// What is left of a sandbox whose machine has died.
pub(super) struct Lost<'a> {
    /// What is on paper.
    pub(super) record: Record,
    /// What the host kept of its timeline.
    pub(super) dead: &'a Sidecar,
}

/// A machine that was loaded, attached to, and has yet to run. Dropping it ends the machine, as with [`Starting`].
pub(super) struct Loaded {
    pub(super) starting: Starting,
    pub(super) link: Link,
    pub(super) timeline: Timeline,
    pub(super) hostname: Option<Hostname>,
    pub(super) secrets: Secrets,
    about: About,
    machine: Duration,
}

impl Loaded {
    /// Makes it the sandbox's current timeline.
    pub(super) async fn go_over(self) -> Result<Self, SandboxError> {
        match self.starting.places.go_over() {
            Ok(()) => Ok(self),
            Err(error) => Err(self.starting.abandon(error.into()).await),
        }
    }

    /// Gives the guest its identity, lets it run, and waits until it has taken it on. Only then does anything of the
    /// user's run.
    pub(super) async fn wake(mut self) -> Result<Sandbox, SandboxError> {
        let woken = match self.starting.count_try() {
            Ok(()) => self.become_somebody().await,
            refused => refused,
        };
        match woken {
            // On the heap: callers' futures stay small.
            Ok(()) => Box::pin(self.starting.ready(self.link, self.about, self.machine, self.secrets)).await,
            Err(error) => Err(self.starting.abandon(error).await),
        }
    }

    async fn become_somebody(&self) -> Result<(), SandboxError> {
        let Self { starting, link, .. } = self;
        // One that comes back has them there.
        if starting.former.is_none() {
            self.secrets.write(&starting.places)?;
        }
        // The clock last, just before the guest runs.
        link.give_identity(&identity(link.identity_seq() + 1, self.timeline, self.hostname, &self.secrets)?);
        link.lift_quiesce();
        step("identify");
        tracing::debug!(after = ?starting.started.elapsed(), "attached");
        starting.vm.resume().await?;
        step("running");
        tracing::debug!(after = ?starting.started.elapsed(), "running");
        starting.answer(link.identity_taken(starting.deadline)).await?;
        starting.hand_over(link, &self.secrets).await
    }
}

/// The monitor wants to be able to write, and maps it copy-on-write; where the file may not be
/// written, reading has to do.
fn open_ram(bundle: &Bundle) -> Result<File, SandboxError> {
    let path = bundle.folder().join(RAM);
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .or_else(|_| File::open(&path))
        .map_err(SandboxError::io("open the RAM"))
}

/// Copies what is not zero.
fn copy_sparse(from: &File, to: &Path) -> Result<(), SandboxError> {
    use rustix::fs::{SeekFrom, seek};
    let failed = |source: io::Error| SandboxError::io("copy the region")(source);
    let length = from.metadata().map_err(failed)?.len();
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let copy = options.write(true).create_new(true).open(to).map_err(failed)?;
    copy.set_len(length).map_err(failed)?;
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(failed(error.into())),
        };
        let end = seek(from, SeekFrom::Hole(start)).map_err(|error| failed(error.into()))?;
        at = start;
        while at < end {
            let piece = &mut buffer[..(64 << 10).min((end - at) as usize)];
            from.read_exact_at(piece, at).map_err(failed)?;
            // A file system may keep no holes; here they save memory.
            for (page, bytes) in piece.chunks(PAGE).enumerate() {
                if !is_zero(bytes) {
                    copy.write_all_at(bytes, at + (page * PAGE) as u64).map_err(failed)?;
                }
            }
            at += piece.len() as u64;
        }
    }
    Ok(())
}
