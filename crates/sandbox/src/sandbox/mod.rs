//! A running sandbox: its machine, its link, and the folders that both lie in.

mod bell;
mod create;
mod restore;
mod snapshot;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use throughline::{ChannelId, Link};

use crate::command::{Child, Command};
use crate::engine::{Exit, Vm, VmRecord};
use crate::files::Files;
use crate::image::Rootfs;
use crate::places::Places;
use crate::{SandboxError, bundle};

pub use create::SandboxBuilder;
pub use restore::Restore;
pub use snapshot::{Snapshot, SnapshotReport, Stage};

/// Version of `sandbox.json`.
const RECORD_VERSION: u32 = 1;

/// A running sandbox. The link and the machine's supervision live in this process; [`kill`](Self::kill)
/// or dropping it ends the machine and removes what it used.
pub struct Sandbox {
    // The order of the fields is the order of the ends: channels, machine, folders.
    _bell: bell::Reconnecting,
    link: Link,
    vm: Arc<dyn Vm>,
    places: Places,
    about: About,
    /// How long the guest may take to become quiet for a snapshot.
    quiet: Duration,
}

/// What a snapshot has to say of a sandbox.
#[derive(Clone, Debug)]
struct About {
    image: String,
    rootfs: Option<Rootfs>,
    kernel: String,
    memory_mib: u32,
    agent: u32,
    timings: Timings,
}

/// How long the start took, from the call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Until the monitor ran, or had loaded.
    pub machine: Duration,
    /// Until the guest had acknowledged its identity: ready.
    pub ready: Duration,
}

/// `sandbox.json`: which machine may run, for whoever takes over.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    name: String,
    timeline: String,
    machine: VmRecord,
}

impl Sandbox {
    /// How long a guest may take to become quiet for a snapshot, unless told otherwise.
    pub const DEFAULT_QUIET: Duration = Duration::from_secs(10);

    /// The name.
    pub fn name(&self) -> &str {
        self.places.name()
    }

    /// The folder of its memory: region, sidecar and, unless it is a bundle's, RAM.
    pub fn memory(&self) -> PathBuf {
        self.places.current()
    }

    /// Removes the folders of a sandbox whose process was killed, and so could not. Its machine must have
    /// ended. Nothing happens when there are none.
    pub fn clear(name: &str) -> Result<(), SandboxError> {
        Ok(Places::clear(name)?)
    }

    /// The connection to the guest. Its doorbell, should it hang up, is connected anew by the sandbox.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The monitor's process.
    pub fn machine(&self) -> &VmRecord {
        self.vm.record()
    }

    /// How long the start took.
    pub fn timings(&self) -> Timings {
        self.about.timings
    }

    /// A command to run in the guest.
    pub fn command(&self, program: impl AsRef<[u8]>) -> Command<'_> {
        Command::new(self, program.as_ref())
    }

    /// The guest's files.
    pub fn files(&self) -> Files<'_> {
        Files::new(self)
    }

    /// Takes over a command whose channel nobody holds, after a restore: its events go on where the
    /// snapshot's reader stopped. Before giving it input, [`query`](crate::ChildInput::query).
    pub fn adopt_command(&self, id: ChannelId) -> Result<Child, SandboxError> {
        Ok(Child::new(self.link.adopt(id)?.messages()?, Some(self.vm())))
    }

    pub(crate) fn vm(&self) -> Arc<dyn Vm> {
        self.vm.clone()
    }

    /// How long the guest may take to become quiet before a snapshot fails, or is not quiesced;
    /// [`DEFAULT_QUIET`](Self::DEFAULT_QUIET) without this.
    pub fn quiet_deadline(&mut self, deadline: Duration) {
        self.quiet = deadline;
    }

    /// Waits until the machine has ended, for whatever reason. Cancel-safe.
    pub async fn exited(&self) -> Exit {
        self.vm.exited().await
    }

    /// Does something with the guest; if the machine ends first, says so at once, with the end of
    /// the guest's console.
    pub async fn alive<T>(&self, doing: impl Future<Output = T>) -> Result<T, SandboxError> {
        tokio::select! {
            biased;
            done = doing => Ok(done),
            exit = self.exited() => Err(SandboxError::Ended(Box::new(exit))),
        }
    }

    /// Ends the machine at once, and removes what the sandbox used.
    pub async fn kill(self) -> Result<Exit, SandboxError> {
        Ok(self.vm.kill().await?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.vm.end();
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("name", &self.name()).field("about", &self.about).finish_non_exhaustive()
    }
}

/// Names the machine that may run; renamed into place before it does.
fn write_record(places: &Places, link: &Link, vm: &dyn Vm) -> Result<(), SandboxError> {
    let record = Record {
        version: RECORD_VERSION,
        name: places.name().to_owned(),
        timeline: format!("{:032x}", link.timeline()),
        machine: vm.record().clone(),
    };
    let failed = SandboxError::io("write sandbox.json");
    let write = || {
        let encoded = serde_json::to_vec(&record)?;
        let file = tempfile::NamedTempFile::new_in(places.runtime())?;
        std::io::Write::write_all(&mut file.as_file(), &encoded)?;
        file.persist(places.runtime().join("sandbox.json"))?;
        Ok(())
    };
    write().map_err(failed)
}

/// The manifest's words for what was carried.
fn carried(carried: throughline::Carried) -> bundle::Carried {
    bundle::Carried { channels: carried.channels, to_guest: carried.to_guest, to_host: carried.to_host }
}
