//! One running QEMU.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use procfs::process::{MMapPath, Process as Proc};
use qapi::qmp::ShutdownCause;
use tokio::sync::watch;

use super::command::{BELL, CONTROL, STATE_FD};
use super::console::{self, Watch};
use super::process::{Process, Status, proc_error};
use super::qmp::{Qmp, Seen};
use crate::engine::{EngineError, Exit, ExitReason, RamRecord, RamSource, Vm, VmRecord, capture};
use crate::sockets;

/// What the kernel prints when it panics.
const PANIC: &str = "Kernel panic - not syncing";

/// How long a process may take to end once it was told to.
const ENDING: Duration = Duration::from_secs(5);

/// A process whose end is noticed, and whose console stays small, while the runtime lives.
#[derive(Clone)]
pub(super) struct Watched {
    process: Arc<Process>,
    folder: PathBuf,
    groups: Vec<PathBuf>,
    status: watch::Receiver<Option<Status>>,
}

/// Removes a process's control groups once it has ended, when this is dropped: soon, as it was told to end.
struct Ending {
    process: Arc<Process>,
    groups: Vec<PathBuf>,
}

impl Ending {
    /// Does so without keeping a runtime waiting, where there is one. It waits for that itself before it goes.
    fn soon(self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(self));
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.process.wait(ENDING);
        crate::engine::remove_groups(&self.groups);
    }
}

impl Watched {
    /// Starts watching.
    pub(super) fn new(process: Process, record: &VmRecord) -> Result<Self, EngineError> {
        let (folder, groups) = (record.folder.as_path(), record.groups.clone());
        let console = Watch::new(folder).map_err(|source| EngineError::io("watch the console in", folder, source));
        let console = console.inspect_err(|_| {
            // Nobody would know of it. Its groups are removed when others are made.
            let _ = process.kill();
        })?;
        let process = Arc::new(process);
        let (sender, status) = watch::channel(None);
        tokio::spawn(attend(Arc::clone(&process), console, groups.clone(), sender));
        Ok(Self { process, folder: folder.to_path_buf(), groups, status })
    }

    /// Ends the process without waiting for it.
    pub(super) fn end(&self) {
        if let Err(error) = self.process.kill() {
            tracing::warn!(pid = self.process.pid(), %error, "the monitor could not be ended");
        }
        if !self.groups.is_empty() {
            Ending { process: Arc::clone(&self.process), groups: self.groups.clone() }.soon();
        }
    }

    /// Waits for the end. Cancel-safe.
    async fn ended(&self) -> Status {
        let mut status = self.status.clone();
        let ended = status.wait_for(Option::is_some).await;
        ended.ok().and_then(|status| *status).unwrap_or(Status::Unknown)
    }

    fn exit(&self, status: Status, seen: &Seen) -> Exit {
        let console = console::console_tail(&self.folder);
        let reason = reason(status, seen, &console);
        Exit { reason, console, messages: console::messages_tail(&self.folder), vain_tries: 0, vain_error: None }
    }

    /// Does `work`, unless the process ends first: then that is the error.
    pub(super) async fn or_ended<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        let result = tokio::select! {
            biased;
            result = work => result,
            status = self.ended() => Err(self.ended_error(doing, status, &Seen::default())),
        };
        match result {
            // A closed socket is the first sign of a death that is noticed a moment later.
            Err(EngineError::Refused { .. } | EngineError::Io { .. }) if self.is_ending().await => {
                let status = self.ended().await;
                Err(self.ended_error(doing, status, &Seen::default()))
            }
            result => result,
        }
    }

    /// Whether the process is on its way out; gives it a moment to show.
    async fn is_ending(&self) -> bool {
        tokio::time::timeout(std::time::Duration::from_millis(200), self.ended()).await.is_ok()
    }

    fn ended_error(&self, doing: &'static str, status: Status, seen: &Seen) -> EngineError {
        EngineError::Ended { doing, exit: Box::new(self.exit(status, seen)) }
    }
}

async fn attend(process: Arc<Process>, console: Watch, groups: Vec<PathBuf>, status: watch::Sender<Option<Status>>) {
    let mut watching = true;
    loop {
        tokio::select! {
            biased;
            ended = process.ended() => {
                if let Err(error) = ended {
                    tracing::warn!(pid = process.pid(), %error, "the monitor cannot be watched");
                }
                break;
            }
            turned = console.turned(), if watching => {
                if let Err(error) = turned {
                    // The monitor's file size limit still holds.
                    tracing::warn!(pid = process.pid(), %error, "the console's log is not turned over any more");
                    watching = false;
                }
            }
        }
    }
    let ended = process.reap();
    // What counts as its end has ended with it.
    let _ = tokio::task::spawn_blocking(move || crate::engine::remove_groups(&groups)).await;
    status.send_replace(Some(ended));
}

fn reason(status: Status, seen: &Seen, console: &str) -> ExitReason {
    // With panic=-1 a panic is a restart; its message is what tells them apart.
    let panicked = seen.panicked || console.contains(PANIC);
    match (status, seen.shutdown) {
        (Status::Signal(signal), _) => ExitReason::Signal(signal),
        (Status::Code(code), _) if code != 0 => ExitReason::Failed(code),
        (_, Some(ShutdownCause::guest_shutdown)) => ExitReason::PoweredOff,
        (_, Some(ShutdownCause::guest_panic)) => ExitReason::Panicked,
        (_, Some(ShutdownCause::guest_reset) | None) if panicked => ExitReason::Panicked,
        (_, Some(ShutdownCause::guest_reset)) => ExitReason::Restarted,
        (_, Some(_)) => ExitReason::Quit,
        (_, None) => ExitReason::Unknown,
    }
}

/// A machine that QEMU runs.
pub(super) struct QemuVm {
    watched: Watched,
    qmp: Qmp,
    record: VmRecord,
}

/// Ends the monitor unless told otherwise.
pub(super) struct EndOnDrop {
    watched: Watched,
    armed: AtomicBool,
}

impl EndOnDrop {
    /// Lets the monitor live.
    pub(super) fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if self.armed.load(Ordering::Relaxed) {
            self.watched.end();
        }
    }
}

impl QemuVm {
    pub(super) fn new(watched: Watched, qmp: Qmp, record: VmRecord) -> Self {
        Self { watched, qmp, record }
    }

    pub(super) fn ended_on_drop(&self) -> EndOnDrop {
        EndOnDrop { watched: self.watched.clone(), armed: AtomicBool::new(true) }
    }

    pub(super) async fn loaded(&self) -> Result<(), EngineError> {
        self.or_ended("load its devices", self.qmp.loaded()).await
    }

    /// Lays pages over the image of this inode, and has the devices loaded then, which look at RAM.
    pub(super) async fn complete_ram(&self, delta: File, inode: u64) -> Result<(), EngineError> {
        let failed = |source| EngineError::io("complete the RAM of the machine in", &self.record.folder, source);
        let (pid, length) = (self.record.pid, u64::from(self.record.hardware.memory_mib) << 20);
        let work = async {
            let address = self.address(inode).map_err(failed)?;
            // Opened now: this is the monitor's memory for ever, whoever may have its process id later.
            let memory = File::options().write(true).open(format!("/proc/{pid}/mem")).map_err(failed)?;
            let laying = tokio::task::spawn_blocking(move || capture::lay(&delta, length, &memory, address));
            laying.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(failed)?;
            self.qmp.load_devices(STATE_FD).await
        };
        self.or_ended("load its devices", work).await
    }

    async fn or_ended<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        match self.watched.or_ended(doing, work).await {
            Err(EngineError::Ended { doing, .. }) => {
                Err(EngineError::Ended { doing, exit: Box::new(self.exited().await) })
            }
            result => result,
        }
    }

    /// Opens what the monitor has mapped as RAM: the path may have vanished, its descriptor has not.
    fn open_image(&self, inode: u64) -> io::Result<File> {
        let process = Proc::new(self.record.pid).map_err(proc_error)?;
        let size = u64::from(self.record.hardware.memory_mib) << 20;
        for entry in process.fd().map_err(proc_error)? {
            let fd = entry.map_err(proc_error)?.fd;
            let path = format!("/proc/{}/fd/{fd}", self.record.pid);
            let fits = std::fs::metadata(&path).is_ok_and(|data| data.ino() == inode && data.len() == size);
            if fits {
                return File::open(path);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// Where the monitor has mapped its RAM.
    fn address(&self, inode: u64) -> io::Result<u64> {
        let maps = Proc::new(self.record.pid).and_then(|process| process.maps()).map_err(proc_error)?;
        let size = u64::from(self.record.hardware.memory_mib) << 20;
        let ram = maps.iter().find(|map| {
            map.inode == inode
                && map.offset == 0
                && map.address.1 - map.address.0 == size
                && matches!(map.pathname, MMapPath::Path(_) | MMapPath::Other(_))
        });
        ram.map(|map| map.address.0).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn record(&self) -> &VmRecord {
        &self.record
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.or_ended("pause", self.qmp.stop()).await
    }

    async fn resume(&self) -> Result<(), EngineError> {
        self.or_ended("resume", self.qmp.cont()).await
    }

    async fn running(&self) -> Result<bool, EngineError> {
        self.or_ended("tell its state", self.qmp.status()).await.map(|status| status.running)
    }

    async fn save(&self, state: &Path) -> Result<(), EngineError> {
        let failed = |source| EngineError::io("save the devices to", state, source);
        let mut partial = state.as_os_str().to_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(failed)?;
        let saved = self.or_ended("save its devices", self.qmp.save_devices(file)).await;
        let renamed = saved.and_then(|()| std::fs::rename(&partial, state).map_err(failed));
        renamed.inspect_err(|_| {
            let _ = std::fs::remove_file(&partial);
        })
    }

    fn ram(&self) -> Result<RamSource, EngineError> {
        let failed = |source| EngineError::io("find the RAM of the machine in", &self.record.folder, source);
        match &self.record.ram {
            RamRecord::Shared(path) => {
                let file = capture::open(path).map_err(|source| EngineError::io("open the RAM", path, source))?;
                Ok(RamSource::Shared(file))
            }
            RamRecord::CopyOnWrite { inode } => Ok(RamSource::CopyOnWrite {
                image: self.open_image(*inode).map_err(failed)?,
                pid: self.record.pid,
                address: self.address(*inode).map_err(failed)?,
            }),
        }
    }

    fn connect_bell(&self) -> io::Result<UnixStream> {
        sockets::connect(&self.record.folder, BELL)
    }

    async fn kill(&self) -> Result<Exit, EngineError> {
        let killed = self.watched.process.kill();
        killed.map_err(|source| EngineError::io("end the monitor of", &self.record.folder, source))?;
        let exit = self.exited().await;
        for name in [CONTROL, BELL] {
            // A socket without a listener is of no use, and no harm either.
            let _ = std::fs::remove_file(self.record.folder.join(name));
        }
        Ok(exit)
    }

    fn end(&self) {
        self.watched.end();
    }

    fn console(&self) -> String {
        console::console_tail(&self.record.folder)
    }

    async fn exited(&self) -> Exit {
        let status = self.watched.ended().await;
        let seen = self.qmp.last_words().await;
        self.watched.exit(status, &seen)
    }
}
