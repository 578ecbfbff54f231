//! Virtual machine monitors behind one trait.
//!
//! An [`Engine`] boots a machine from an image or loads a saved one; the [`Vm`] that it gives is
//! paused, resumed, saved and ended. Nothing above these traits knows which monitor it is.
//!
//! A machine is four things, and a snapshot is a copy of them at one moment:
//!
//! | Part | Lives in | Captured by |
//! |---|---|---|
//! | device state | the monitor | [`Vm::save`], while paused |
//! | RAM | a file (`share=on`), or private pages over an immutable file | [`Capture`] |
//! | region | a file that belongs to the caller | the caller |
//! | root file system, if any | a file that nobody writes | – |
//! | processor time spent | nowhere | – |
//!
//! A monitor outlives the process that started it and blocks on nothing when that process dies;
//! [`Engine::reattach`] takes it over.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::image::Image;

mod capture;
mod confinement;
mod error;
mod hardware;
mod process;
pub mod qemu;

pub(crate) use capture::link;
pub use capture::{Capture, CaptureReport, RamSource, delta_of};
pub use confinement::{Confinement, Measure, Outcome};
pub(crate) use confinement::{remove_groups, try_confinement};
pub use error::{EngineError, Exit, ExitReason};
pub use hardware::{Hardware, Net};
#[cfg(test)]
pub(crate) use process::HIGH;
pub(crate) use process::{end_left, high};
pub use qemu::Qemu;

/// The name of the doorbell's virtio-serial port, as the guest finds it under
/// `/sys/class/virtio-ports/*/name`.
pub const BELL_NAME: &str = "throughline.bell";

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// Emulation: runs everywhere, some ten times slower.
    Tcg,
}

impl Accelerator {
    /// The most memory for translated guest code under emulation, in MiB.
    const TRANSLATED_MIB: u32 = 256;
}

/// What a saved state is tied to: it loads only into an equal machine. Recorded in manifests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The engine's name, such as `qemu`.
    pub engine: String,
    /// The monitor's version, such as `7.2.22`.
    pub version: String,
    /// The versioned machine type, such as `pc-q35-7.2`; never an alias.
    pub machine_type: String,
    /// The processor model, such as `max`.
    pub cpu_model: String,
    /// The accelerator.
    pub accelerator: Accelerator,
}

/// What an engine can do here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The machine that it boots.
    pub machine: Machine,
    /// Why this accelerator: a sentence for people.
    pub accelerator_reason: String,
}

/// What booting and loading have in common.
#[derive(Debug)]
pub struct VmConfig {
    /// An existing folder for the machine's sockets and logs. Paths of any length will do.
    pub folder: PathBuf,
    /// What the machine has. A saved machine loads only with what it had.
    pub hardware: Hardware,
    /// The region's file; the guest sees it at [`Hardware::region_address`]. Its length is a multiple of
    /// 2 MiB and part of the machine: a saved machine loads only with a region as long.
    pub region: File,
    /// The image's root file system, open for reading: the guest's first disk. A saved machine loads only with the
    /// same file, or with none if it had none.
    pub rootfs: Option<File>,
}

/// A machine to boot.
#[derive(Debug)]
pub struct BootSpec<'a> {
    /// Folder, memory, region.
    pub config: VmConfig,
    /// Kernel and initramfs.
    pub image: &'a Image,
    /// Words to add to the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// The file to keep RAM in, preferably on tmpfs; created, and must not exist.
    pub ram: PathBuf,
}

/// A saved machine to load.
#[derive(Debug)]
pub struct LoadSpec {
    /// Folder, memory, region.
    pub config: VmConfig,
    /// The machine it was saved from; anything else is refused.
    pub machine: Machine,
    /// The RAM image, open for reading and writing. It is mapped copy-on-write and never written;
    /// nobody else may write it while the machine lives, but its path may vanish.
    pub ram: File,
    /// Pages that lie over it, if there are any: [`delta_of`]. They are the machine's own.
    pub delta: Option<File>,
    /// What [`Vm::save`] wrote.
    pub state: File,
}

/// Enough to find a machine again from another process. Serializable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// The monitor's process id.
    pub pid: i32,
    /// When that process started, in clock ticks since the host booted: pids are reused.
    pub start_time: u64,
    /// Which boot of the host that was, by the kernel's random id; unknown in records of former releases.
    #[serde(default)]
    pub boot: Option<String>,
    /// The folder with its sockets and logs.
    pub folder: PathBuf,
    /// What the machine has.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// Where the RAM lies.
    pub ram: RamRecord,
    /// What the machine is.
    pub machine: Machine,
    /// What the monitor is kept from.
    #[serde(default)]
    pub confinement: Confinement,
    /// The control groups that are its own, which end with it.
    #[serde(default)]
    pub groups: Vec<PathBuf>,
}

impl VmRecord {
    /// Whether the monitor runs: this very process, in this boot of the host.
    pub fn is_running(&self) -> bool {
        let same_boot = self.boot.is_none() || self.boot == process::boot();
        same_boot && process::start_time(self.pid) == Some(self.start_time)
    }
}

/// Where a machine's RAM lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RamRecord {
    /// In this file, which is the RAM: it may become an image without a copy.
    Shared(PathBuf),
    /// In private pages of the monitor, over an immutable image: the file of this device and inode.
    CopyOnWrite {
        /// The image's inode.
        inode: u64,
    },
}

/// A virtual machine monitor.
#[async_trait]
pub trait Engine: Send + Sync {
    /// What it can do here. The first call may probe for some seconds; later ones are answered
    /// from memory.
    async fn capabilities(&self) -> Result<Capabilities, EngineError>;

    /// Boots a machine. Returns when the monitor runs; the guest is then starting up.
    ///
    /// Dropping the future ends the monitor.
    async fn boot(&self, spec: BootSpec<'_>) -> Result<Box<dyn Vm>, EngineError>;

    /// Loads a saved machine. Returns when it is complete and paused.
    ///
    /// Dropping the future ends the monitor.
    async fn load(&self, spec: LoadSpec) -> Result<Box<dyn Vm>, EngineError>;

    /// Takes over a machine that another process started.
    async fn reattach(&self, record: &VmRecord) -> Result<Box<dyn Vm>, EngineError>;
}

/// A machine. Dropping it leaves the monitor running.
#[async_trait]
pub trait Vm: Send + Sync {
    /// What another process needs to take it over.
    fn record(&self) -> &VmRecord;

    /// Stops the guest's processors. Repeating it is harmless.
    async fn pause(&self) -> Result<(), EngineError>;

    /// Lets the guest's processors run. Returns when they do. Repeating it is harmless.
    async fn resume(&self) -> Result<(), EngineError>;

    /// Whether the guest's processors run.
    async fn running(&self) -> Result<bool, EngineError>;

    /// Writes the device state of a paused machine to a new file, which appears only when it is
    /// complete.
    async fn save(&self, state: &Path) -> Result<(), EngineError>;

    /// Where the RAM is to be read for a [`Capture`].
    fn ram(&self) -> Result<RamSource, EngineError>;

    /// Connects to the guest's doorbell. One connection at a time: a second one waits until the
    /// first is closed.
    fn connect_bell(&self) -> io::Result<UnixStream>;

    /// Ends the monitor at once and waits until it is gone.
    async fn kill(&self) -> Result<Exit, EngineError>;

    /// Ends the monitor at once, without waiting.
    fn end(&self);

    /// The end of the guest's console, at most 4 KiB. The guest wrote it: show it, trust nothing.
    fn console(&self) -> String;

    /// Waits until the machine has ended, for whatever reason. Cancel-safe.
    async fn exited(&self) -> Exit;
}
