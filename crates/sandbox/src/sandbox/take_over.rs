//! Going on with a sandbox whose process has died, or has let go of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use throughline::{Link, Region, Sidecar, SidecarError};

use super::hand_over::Owed;
use super::record::{Record, Wanted};
use super::roll_back::go_back;
use super::{Sandbox, bell};
use crate::bundle::Draft;
use crate::engine::{Engine, Exit, ExitReason, Qemu, end_left};
use crate::places::Places;
use crate::{SandboxError, Secrets};

impl Sandbox {
    /// Takes over the sandbox of a name, of which no process has the lease. The guest notices nothing: its channels
    /// wait to be adopted, at the byte where their last reader stopped.
    ///
    /// What the last process left half-done is ended: a pause that nobody wants, a snapshot's draft. If its machine
    /// has died, and it has a checkpoint, it [goes back](Self::roll_back) to that.
    ///
    /// # Errors
    /// There is no such sandbox; another process has it ([`Sidecar`](SandboxError::Sidecar), which names the process);
    /// its machine has ended.
    pub async fn take_over(name: &str) -> Result<Self, SandboxError> {
        let places = Places::open(name)?;
        let read = || Record::read(places.runtime())?.ok_or_else(|| SandboxError::Unfinished(name.to_owned()));
        if let Some(exit) = read()?.exit {
            return Err(SandboxError::Ended(Box::new(exit)));
        }
        let (region, sidecar) = lease(&places.current())?;
        // Whoever held it last may have written since.
        let mut record = read()?;
        if record.has_stopped() {
            (record.wanted, record.snapshot, record.stopping) = (Wanted::Ended, None, None);
            record.write(places.runtime())?;
        }
        let is_gone = record.checkpoints.going_back || !record.machine.is_running();
        if is_gone && record.may_go_back() {
            return go_back(places, record, &sidecar).await;
        }
        if record.checkpoints.going_back {
            return Err(given_up(&places, record)?);
        }
        let vm = Arc::from(Qemu::new().reattach(&record.machine).await?);
        let this = Self::attach(places, record, region, sidecar, vm)?;
        this.finish_what_was_begun().await?;
        this.places.end();
        this.ends.store(true, Ordering::Relaxed);
        Ok(this)
    }

    /// Ends a sandbox that no process has, and that perhaps none can take over: a machine that runs is killed, and one that
    /// has died does not go back to its last checkpoint. Nothing happens where the end is on paper already. Blocks until
    /// the machine has ended, seconds at most.
    ///
    /// # Errors
    /// There is no such sandbox; another process has it ([`Sidecar`](SandboxError::Sidecar)).
    pub fn give_up(name: &str) -> Result<(), SandboxError> {
        let places = Places::open(name)?;
        let _lease = match lease(&places.current()) {
            Err(SandboxError::Sidecar(held @ (SidecarError::Held { .. } | SidecarError::RegionHeld { .. }))) => {
                return Err(held.into());
            }
            // One that is damaged is nobody's.
            lease => lease.ok(),
        };
        match Record::read(places.runtime())? {
            Some(record) if record.exit.is_none() => given_up(&places, record).map(drop),
            _ => Ok(()),
        }
    }

    fn attach(
        places: Places,
        record: Record,
        region: Region,
        sidecar: Sidecar,
        vm: Arc<dyn crate::engine::Vm>,
    ) -> Result<Self, SandboxError> {
        let doorbell = bell::connect(&*vm).map_err(SandboxError::io("connect to the machine's doorbell"))?;
        let link = Link::host(region, sidecar).doorbell(doorbell).attach()?;
        let bell = bell::Reconnecting::start(link.clone(), vm.clone());
        let about = record.about();
        Ok(Self {
            _bell: bell,
            owed: Owed::new(link.clone(), vm.clone(), Secrets::read(&places)?),
            link,
            vm,
            places,
            about,
            record: record.into(),
            // Not before all of it is in order: who fails leaves it to the next one.
            ends: false.into(),
            quiet: Self::DEFAULT_QUIET,
            snapshots: Arc::default(),
            since: Instant::now(),
            went_back: false.into(),
        })
    }

    async fn finish_what_was_begun(&self) -> Result<(), SandboxError> {
        let record = self.record();
        if let Some(draft) = &record.snapshot {
            Draft::remove_left(draft);
        }
        if record.snapshot.is_some() || record.stopping.is_some() {
            self.change(|record| (record.snapshot, record.stopping) = (None, None))?;
        }
        match record.wanted {
            Wanted::Running => self.vm.resume().await?,
            Wanted::Paused => self.vm.pause().await?,
            Wanted::Ended => {
                self.vm.kill().await?;
            }
        }
        self.link.lift_quiesce();
        // It may have been quiet, and nobody knows whether they are in place again.
        self.owed.now();
        Ok(())
    }
}

/// The lease of a sandbox: from here on nobody else drives it.
fn lease(current: &Path) -> Result<(Region, Sidecar), SandboxError> {
    let inode = || Ok(fs::metadata(current)?.ino());
    loop {
        let before = inode().map_err(SandboxError::io("find the sandbox's memory"))?;
        let region = Region::open(&current.join("region"));
        let sidecar = region.map_err(SandboxError::from).and_then(|region| {
            let sidecar = Sidecar::open(&current.join("sidecar"), &region)?;
            Ok((region, sidecar))
        });
        // Whoever held it may have gone over to another timeline just then; where the lease is had, nobody can.
        if inode().map_err(SandboxError::io("find the sandbox's memory"))? == before {
            return sidecar;
        }
    }
}

/// Ends the machine, or what the last try to go back to a checkpoint left of one; how the sandbox ended.
fn given_up(places: &Places, mut record: Record) -> Result<SandboxError, SandboxError> {
    let runtime = places.runtime();
    end_left(runtime).map_err(SandboxError::io("end the machine"))?;
    let (console, messages) = (String::new(), String::new());
    let nobody_saw = || Exit { reason: ExitReason::Unknown, console, messages, vain_tries: 0, vain_error: None };
    let exit = record.in_vain(record.checkpoints.lost.clone().unwrap_or_else(nobody_saw));
    (record.exit, record.checkpoints.going_back) = (Some(exit.clone()), false);
    record.write(runtime)?;
    places.free_memory()?;
    Ok(SandboxError::Ended(Box::new(exit)))
}
