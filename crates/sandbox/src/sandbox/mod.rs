//! A running sandbox: its machine, its link, and the folders that both lie in.

mod bell;
mod checkpoint;
mod create;
mod hand_over;
pub(crate) mod record;
mod restore;
mod roll_back;
mod snapshot;
mod start;
mod take_over;
mod waiting;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use throughline::{ChannelId, Link};

use crate::bundle::FileEntry;
use crate::command::{Child, Command};
use crate::engine::{Exit, Hardware, Vm, VmRecord, end_left};
use crate::files::Files;
use crate::guest::{Guest, Here};
use crate::image::Rootfs;
use crate::places::{PlaceError, Places};
use crate::steps::step;
use crate::{SandboxError, bundle};

pub use create::SandboxBuilder;
pub use record::{Checkpoint, Checkpoints, Record, Wanted};
pub use restore::Restore;
pub use snapshot::{Snapshot, SnapshotReport, Stage};
pub use waiting::Waiting;

/// A running sandbox. The link and the machine's supervision live in this process; [`kill`](Self::kill)
/// or dropping it ends the machine and removes what it used.
pub struct Sandbox {
    // The order of the fields is the order of the ends: channels, machine, folders.
    _bell: bell::Reconnecting,
    link: Link,
    vm: Arc<dyn Vm>,
    places: Places,
    about: About,
    /// As it is on paper. Locked while it changes.
    record: Mutex<Record>,
    /// Whether machine and folders end with this.
    ends: AtomicBool,
    /// How long the guest may take to become quiet for a snapshot.
    quiet: Duration,
    /// Held while a snapshot is taken: one at a time, each in its turn.
    snapshots: Arc<tokio::sync::Mutex<()>>,
    /// Since when this process drives this timeline.
    since: Instant,
    /// Whether another timeline has taken its place.
    went_back: AtomicBool,
    /// What the guest has to be given again each time that it was quiet.
    owed: hand_over::Owed,
}

/// What a snapshot has to say of a sandbox.
#[derive(Clone, Debug)]
struct About {
    image: String,
    rootfs: Option<Rootfs>,
    kernel: String,
    hardware: Hardware,
    agent: u32,
    /// The image under its RAM, if it was loaded from one.
    ram: Option<FileEntry>,
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
        let places = match Places::open(name) {
            Err(PlaceError::Missing(_)) => return Ok(()),
            places => places?,
        };
        if let Ok(crate::Known { record: Some(record), .. }) = crate::Known::find(name) {
            crate::engine::remove_groups(&record.machine.groups);
        }
        Ok(places.clear()?)
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
    pub fn command(&self, program: impl AsRef<[u8]>) -> Command {
        Command::new(self.guest(), program)
    }

    /// The guest's files.
    pub fn files(&self) -> Files<'_> {
        Files::new(self)
    }

    /// Takes over a command whose channel nobody holds, after a restore: its events go on where the
    /// snapshot's reader stopped. Before giving it input, [`query`](crate::ChildInput::query).
    pub fn adopt_command(&self, id: ChannelId) -> Result<Child, SandboxError> {
        Ok(Child::adopt(self.link.adopt(id)?.messages()?, self.guest()))
    }

    /// The way to the guest, for tasks that outlive this borrow.
    pub fn guest(&self) -> Arc<dyn Guest> {
        Arc::new(Here { link: self.link.clone(), vm: self.vm.clone() })
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

    /// What is known of it on paper.
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is on paper, before it becomes true.
    fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), SandboxError> {
        if self.went_back.load(Ordering::Acquire) || self.places.is_replaced() {
            // What is on paper is its successor's, or another's.
            return Err(SandboxError::Dead(self.name().to_owned()));
        }
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = record.clone();
        change(&mut changed);
        changed.write(self.places.runtime())?;
        *record = changed;
        Ok(())
    }

    /// Stops the guest's processors until [`resume`](Self::resume). Who takes the sandbox over finds it paused.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        // A snapshot under way would end the pause with its own.
        let _turn = self.snapshots.lock().await;
        self.change(|record| record.wanted = Wanted::Paused)?;
        Ok(self.vm.pause().await?)
    }

    /// Lets the guest's processors run again.
    pub async fn resume(&self) -> Result<(), SandboxError> {
        let _turn = self.snapshots.lock().await;
        self.change(|record| record.wanted = Wanted::Running)?;
        Ok(self.vm.resume().await?)
    }

    /// Notes on paper that name and logs are to vanish when the machine ends, for whoever sees it end.
    pub fn vanishes_when_it_ends(&self) -> Result<(), SandboxError> {
        self.change(|record| record.rm = true)
    }

    /// When this is dropped, the sandbox goes on: [`take_over`](Self::take_over) finds it by its name.
    pub fn detach(&self) {
        self.ends.store(false, Ordering::Relaxed);
        self.places.keep();
    }

    /// After the machine has ended: notes how, gives its memory back, and keeps name and logs until
    /// [`clear`](Self::clear). How it ended, with the tries to bring it back.
    pub async fn conclude(&self, exit: Exit) -> Result<Exit, SandboxError> {
        // A snapshot that came to nothing removes its draft itself.
        let _turn = self.snapshots.lock().await;
        // What came of going back is only there.
        let paper = Record::read(self.places.runtime()).ok().flatten();
        let exit = paper.map_or(exit.clone(), |paper| paper.in_vain(exit));
        self.change(|record| record.exit = Some(exit.clone()))?;
        self.places.keep();
        step("concluded");
        // Whoever went back may have been broken off.
        end_left(self.places.runtime()).map_err(SandboxError::io("end the machine of the last try"))?;
        self.places.free_memory()?;
        Ok(exit)
    }

    /// Ends the machine at once, without waiting: [`exited`](Self::exited) tells.
    pub fn end(&self) {
        self.ends_here();
        self.vm.end();
    }

    /// Notes that the machine's end is wanted: nobody goes back to a checkpoint then.
    fn ends_here(&self) {
        if let Err(error) = self.change(|record| record.wanted = Wanted::Ended) {
            tracing::warn!(%error, "it is not on paper that this sandbox was ended");
        }
    }

    /// The folder of its sockets and logs.
    pub fn runtime(&self) -> &std::path::Path {
        self.places.runtime()
    }

    /// Ends the machine at once, and removes what the sandbox used.
    pub async fn kill(self) -> Result<Exit, SandboxError> {
        self.ends_here();
        Ok(self.vm.kill().await?)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.owed.stop();
        if self.ends.load(Ordering::Relaxed) {
            self.vm.end();
        }
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("name", &self.name()).field("about", &self.about).finish_non_exhaustive()
    }
}

/// The manifest's words for what was carried.
fn carried(carried: throughline::Carried) -> bundle::Carried {
    bundle::Carried { channels: carried.channels, to_guest: carried.to_guest, to_host: carried.to_host }
}
