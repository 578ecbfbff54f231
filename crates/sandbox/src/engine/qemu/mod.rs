//! QEMU.
//!
//! ```text
//!   folder/   qmp, bell        sockets on which QEMU listens; whoever connects is served
//!             console.log      what the guest prints, bounded
//!             monitor.log      what QEMU has to say, bounded
//! ```
//!
//! A machine that booted keeps its RAM in a shared file. One that was loaded keeps the pages that
//! it wrote in private memory, over an image that stays as it is. Both are saved alike: the stream
//! holds devices only, no RAM, so its size and time do not depend on the guest's memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::confinement::{Limits, Plan, Started};
use super::{BootSpec, Capabilities, Engine, EngineError, LoadSpec, Machine, RamRecord, Vm, VmConfig, VmRecord};

mod command;
mod console;
mod probe;
mod process;
mod qmp;
mod readiness;
mod vm;

use super::process::note;
use command::{Builder, CONTROL, Mapping};
use process::Process;
use qmp::Qmp;
use vm::{QemuVm, Watched};

/// QEMU as an engine.
#[derive(Debug)]
pub struct Qemu {
    binary: PathBuf,
    cache: PathBuf,
    accelerator: Option<super::Accelerator>,
    capabilities: OnceCell<(PathBuf, Capabilities)>,
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new()
    }
}

impl Qemu {
    /// The QEMU that the search path names. Nothing is run yet.
    pub fn new() -> Self {
        Self {
            binary: PathBuf::from("qemu-system-x86_64"),
            cache: crate::folders::cache(),
            accelerator: None,
            capabilities: OnceCell::new(),
        }
    }

    /// Uses another program.
    #[must_use]
    pub fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = binary.into();
        self
    }

    /// Keeps the answers of probes in another folder.
    #[must_use]
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = folder.into();
        self
    }

    /// Uses this accelerator, whatever the probe says.
    #[must_use]
    pub fn accelerator(mut self, accelerator: super::Accelerator) -> Self {
        self.accelerator = Some(accelerator);
        self
    }

    async fn known(&self) -> Result<&(PathBuf, Capabilities), EngineError> {
        self.capabilities
            .get_or_try_init(|| async {
                let binary = probe::find(&self.binary)?;
                let mut capabilities = probe::capabilities(&binary, &self.cache).await?;
                if let Some(accelerator) = self.accelerator {
                    capabilities.machine = probe::with_accelerator(capabilities.machine, accelerator);
                    capabilities.accelerator_reason = "the caller chose it".into();
                }
                Ok((binary, capabilities))
            })
            .await
    }

    async fn start(&self, builder: Builder, record: Start) -> Result<QemuVm, EngineError> {
        let (binary, _) = self.known().await?;
        let (mut command, shared) = builder.finish()?;
        let region = region_length(&record.config)?;
        let Start { config: VmConfig { folder, hardware, .. }, ram, machine } = record;
        let kvm = machine.accelerator == super::Accelerator::Kvm;
        let paper = note(&folder).map_err(|source| EngineError::io("name the monitor in", &folder, source))?;
        let limits = Limits::of(hardware, region, machine.accelerator);
        let plan = Plan { binary, folder: &folder, shared, kvm, net: hardware.net, limits, paper: Some(paper) };
        let (process, Started { confinement, groups, .. }) = Process::spawn_confined(&mut command, &plan)
            .map_err(|source| EngineError::io("start the monitor", binary, source))?;
        drop(plan);
        // It has the descriptors now; while we held the sockets open, a connection to a dead
        // monitor would wait for ever.
        drop(command);
        let record = VmRecord {
            pid: process.pid(),
            start_time: process.start_time(),
            boot: crate::engine::process::boot(),
            folder,
            hardware,
            ram,
            machine,
            confinement,
            groups,
        };
        let watched = Watched::new(process, &record)?;
        let starting = Starting(Some(watched));
        starting.connect(record).await
    }
}

struct Start {
    config: VmConfig,
    ram: RamRecord,
    machine: Machine,
}

/// Ends a monitor that nobody will ever know of.
struct Starting(Option<Watched>);

impl Starting {
    async fn connect(mut self, mut record: VmRecord) -> Result<QemuVm, EngineError> {
        let connected = match &self.0 {
            Some(watched) => watched.or_ended("start", Qmp::connect(&record.folder, CONTROL)).await,
            None => return Err(EngineError::Gone { pid: record.pid }),
        };
        let qmp = connected?;
        record.confinement.look_for_filter(record.pid);
        match self.0.take() {
            Some(watched) => Ok(QemuVm::new(watched, qmp, record)),
            None => Err(EngineError::Gone { pid: record.pid }),
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(watched) = &self.0 {
            watched.end();
        }
    }
}

#[async_trait]
impl Engine for Qemu {
    async fn capabilities(&self) -> Result<Capabilities, EngineError> {
        Ok(self.known().await?.1.clone())
    }

    async fn boot(&self, spec: BootSpec<'_>) -> Result<Box<dyn Vm>, EngineError> {
        let (binary, Capabilities { machine, .. }) = self.known().await?;
        let BootSpec { config, image, kernel_arguments, ram } = spec;
        config.hardware.check()?;
        let file = create_ram(&ram, config.hardware.memory_mib)?;
        let region = region_length(&config)?;
        let builder = Builder::new(binary, machine, &config, file, Mapping::Shared)?;
        let builder = builder.boot(image, region, config.hardware, &kernel_arguments)?;
        let start = Start { config, ram: RamRecord::Shared(ram), machine: machine.clone() };
        Ok(Box::new(self.start(builder, start).await?))
    }

    async fn load(&self, spec: LoadSpec) -> Result<Box<dyn Vm>, EngineError> {
        let (binary, Capabilities { machine, .. }) = self.known().await?;
        let LoadSpec { config, machine: saved, ram, delta, state } = spec;
        if saved != *machine {
            return Err(EngineError::OtherMachine { saved: Box::new(saved), here: Box::new(machine.clone()) });
        }
        config.hardware.check()?;
        let inode = inspect_image(&ram, config.hardware.memory_mib)?;
        let builder = Builder::new(binary, machine, &config, ram, Mapping::CopyOnWrite)?.load(state, delta.is_some());
        let start = Start { config, ram: RamRecord::CopyOnWrite { inode }, machine: saved };
        let vm = self.start(builder, start).await?;
        // From here on a dropped future would leave the monitor: the guard does not.
        let guard = vm.ended_on_drop();
        if let Some(delta) = delta {
            vm.complete_ram(delta, inode).await?;
        }
        vm.loaded().await?;
        guard.disarm();
        Ok(Box::new(vm))
    }

    async fn reattach(&self, record: &VmRecord) -> Result<Box<dyn Vm>, EngineError> {
        if !record.is_running() {
            return Err(EngineError::Gone { pid: record.pid });
        }
        let found = Process::find(record.pid, record.start_time);
        let process = found.map_err(|source| EngineError::io("find the monitor of", &record.folder, source))?;
        let process = process.ok_or(EngineError::Gone { pid: record.pid })?;
        let watched = Watched::new(process, record)?;
        let qmp = watched.or_ended("answer", Qmp::connect(&record.folder, CONTROL)).await?;
        Ok(Box::new(QemuVm::new(watched, qmp, record.clone())))
    }
}

fn create_ram(path: &Path, mib: u32) -> Result<File, EngineError> {
    let create = || {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(u64::from(mib) << 20)?;
        Ok(file)
    };
    create().map_err(|source| EngineError::io("create the RAM file", path, source))
}

fn region_length(config: &VmConfig) -> Result<u64, EngineError> {
    let data = config.region.metadata();
    data.map(|data| data.len()).map_err(|source| EngineError::io("measure the region for", &config.folder, source))
}

/// Checks an image's size and tells its inode.
fn inspect_image(ram: &File, mib: u32) -> Result<u64, EngineError> {
    use std::os::unix::fs::MetadataExt;
    let data = ram.metadata().map_err(|source| EngineError::io("measure", Path::new("the RAM image"), source))?;
    let expected = u64::from(mib) << 20;
    if data.len() != expected {
        let reason = format!("the RAM image has {} bytes where the machine has {expected}", data.len());
        return Err(EngineError::Refused { doing: "load the machine", reason });
    }
    Ok(data.ino())
}
