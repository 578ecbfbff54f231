//! From a bare kernel to an attached link.

mod boot_id;
mod device;
mod modules;
mod mounts;
mod network;
mod userland;

use std::fs;
use std::io;
use std::path::Path;
use std::rc::Rc;

use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit};
use rustix::system::RebootCommand;
use throughline::{AttachError, Doorbell, Link, Region, RegionError};
use throughline_wire::{PROTOCOL, port};

use crate::agent::{Agent, AgentError, Options};
use crate::cgroup::CgroupError;
use crate::cmdline::{Cmdline, CmdlineError};
use crate::console;
use crate::control::Switches;

pub use device::DeviceError;
pub use modules::ModuleError;
pub use mounts::MountError;
pub use network::NetworkError;
pub use userland::UserlandError;

/// The control group of everything that is the user's.
const USER_GROUP: &str = "/sys/fs/cgroup/user";

/// Open files that the agent may have: three pipes for each command, and more.
const OPEN_FILES: u64 = 1 << 20;

/// Why the guest cannot serve. The text is the last that the console shows.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file system.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The user's file system.
    #[error(transparent)]
    Userland(#[from] UserlandError),
    /// A kernel module.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The doorbell's device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The region.
    #[error("cannot use the region: {0}")]
    Region(#[from] RegionError),
    /// The link.
    #[error("cannot attach to the region: {0}")]
    Attach(#[from] AttachError),
    /// The user's control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// While serving.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Something else of the system.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// Everything that process 1 does: boots, and serves until the host ends it.
pub fn run() -> Result<(), BootError> {
    mounts::mount_all()?;
    let system = |what| move |source| BootError::System { what, source };
    protect().map_err(system("protect the agent from the OOM killer"))?;
    modules::load(Path::new(modules::FOLDER), modules::ALWAYS)?;
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(system("read the kernel command line"))?;
    let cmdline = Cmdline::parse(&cmdline)?;
    if cmdline.network.is_some() {
        modules::load(Path::new(modules::FOLDER), modules::NETWORK)?;
    }
    if let Some(disk) = &cmdline.root {
        userland::enter(disk)?;
        mounts::mount_all()?;
        userland::complete();
    }
    let options = Options { group: Some(Path::new(USER_GROUP)), is_init: true, ..Options::default() };
    boot_id::cover(&options.places.run)?;
    network::configure(cmdline.network.as_ref())?;
    let bell = device::find(Path::new("/sys/class/virtio-ports"), Path::new("/dev"))?;
    let region = Region::open_physical(cmdline.address, cmdline.length)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    let switches = Switches { skip_repair: cmdline.skip_repair, no_quiesce: cmdline.no_quiesce };
    let options = Options { switches, ..options };
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let doorbell = Doorbell::open_port(&bell).map_err(system("open the doorbell"))?;
        let version = PROTOCOL + u32::from(cmdline.other_protocol);
        let builder = Link::guest(region).doorbell(doorbell).agent_version(version);
        let link = port::ALL.into_iter().fold(builder, throughline::LinkBuilder::listen).attach()?;
        let agent = Rc::new(Agent::new(&options)?);
        // A restored guest would otherwise meet a page fault at each page of the agent that it had not used yet.
        rustix::mm::mlockall(MlockAllFlags::CURRENT)
            .map_err(|errno| BootError::System { what: "lock the agent's memory", source: errno.into() })?;
        Ok(agent.run(link).await?)
    })
}

/// Never the OOM killer's choice, and no shortage of descriptors.
fn protect() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")?;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    rustix::process::setrlimit(Resource::Nofile, limit)?;
    Ok(())
}

/// Writes everything to disk and ends the machine. Returns only if the kernel refuses.
pub fn power_off() {
    rustix::fs::sync();
    console::drain();
    if let Err(errno) = rustix::system::reboot(RebootCommand::PowerOff) {
        console::say(&format!("the kernel refuses to power off: {errno}"));
    }
}
