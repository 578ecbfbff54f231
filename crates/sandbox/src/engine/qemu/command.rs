//! The monitor's command line.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};

use super::console::{CONSOLE, MESSAGES};
use crate::engine::confinement::{Shared, Wanted};
use crate::engine::{Accelerator, BELL_NAME, EngineError, Hardware, Machine, Net, VmConfig};
use crate::image::Image;
use crate::sockets;

/// The control socket's name in a machine's folder.
pub(super) const CONTROL: &str = "qmp";
/// The doorbell's name in a machine's folder.
pub(super) const BELL: &str = "bell";

// Descriptors as the monitor sees them. Files and sockets are handed over open, so that no path
// has to be short, free of commas, or there at all when the monitor looks.
const RAM_FD: i32 = 10;
const REGION_FD: i32 = 11;
const CONTROL_FD: i32 = 12;
const BELL_FD: i32 = 13;
/// The device state to load.
pub(super) const STATE_FD: i32 = 14;
/// The root file system.
const ROOTFS_FD: i32 = 15;
/// The console's log.
const CONSOLE_FD: i32 = 16;
const KERNEL_FD: i32 = 17;
const INITRAMFS_FD: i32 = 18;

/// What makes the kernel start faster, take shorter ways afterwards (no pressure accounting, no watchdogs, of the
/// security modules those only that programs use themselves), keep no 64 MiB for bounce buffers, which none of these
/// devices needs, wake up less while nothing is to be done (memory is compacted when somebody needs it, and counters are
/// folded once a minute: 3.3 instead of 4.6 ms of a processor each second), and end the machine when it panics.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 reboot=t panic=-1 tsc=reliable quiet mitigations=off nokaslr \
     no_timer_check cryptomgr.notests 8250.nr_uarts=1 psi=0 nowatchdog audit=0 lsm=landlock,yama \
     swiotlb=noforce sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=60";

/// Where the guest is in QEMU's network: its address, the way out, the resolver.
const NETWORK_ARGUMENT: &str = " throughline.net=10.0.2.15/24,10.0.2.2,10.0.2.3";

/// How the RAM's file is mapped.
#[derive(Clone, Copy)]
pub(super) enum Mapping {
    /// The file is the RAM.
    Shared,
    /// The file is an image, which is never written.
    CopyOnWrite,
}

/// A command line being put together.
pub(super) struct Builder {
    command: Command,
    descriptors: Vec<FdMapping>,
    /// Files that the monitor opens again.
    shared: Vec<Shared>,
}

impl Builder {
    /// Everything that a booted and a loaded machine have in common.
    pub(super) fn new(
        binary: &Path,
        machine: &Machine,
        config: &VmConfig,
        ram: File,
        mapping: Mapping,
    ) -> Result<Self, EngineError> {
        let folder = &config.folder;
        let control = listen(folder, CONTROL)?;
        let bell = listen(folder, BELL)?;
        let region = config.region.try_clone().map_err(|e| EngineError::io("share the region for", folder, e))?;
        let length = region.metadata().map_err(|e| EngineError::io("measure the region for", folder, e))?.len();
        let console = create(folder, CONSOLE)?;
        let messages = create(folder, MESSAGES)?;

        let mut command = Command::new(binary);
        // What is in this process's environment is not for a process that a guest may have got hold of.
        command.env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages);
        let mut builder = Self { command, descriptors: Vec::new(), shared: Vec::new() };
        builder
            .share(ram, RAM_FD, Wanted::Write)
            .and_then(|builder| builder.share(region, REGION_FD, Wanted::Write))
            .map_err(|e| EngineError::io("share memory for", folder, e))?;
        builder.inherit(control, CONTROL_FD).inherit(bell, BELL_FD).inherit(console, CONSOLE_FD);
        builder.board(machine, config.hardware.cpus);
        builder.memory(config.hardware, length, mapping);
        builder.channels();
        // Last, so that all other devices have the same addresses in every machine.
        if let Some(rootfs) = &config.rootfs {
            let rootfs =
                rootfs.try_clone().map_err(|e| EngineError::io("share the root file system for", folder, e))?;
            builder.disk(rootfs);
        }
        builder.network(config.hardware.net);
        Ok(builder)
    }

    /// Adds what a booting machine needs.
    pub(super) fn boot(
        mut self,
        image: &Image,
        region: u64,
        hardware: Hardware,
        extra: &[String],
    ) -> Result<Self, EngineError> {
        let address = hardware.region_address();
        let mut append = format!("{KERNEL_ARGUMENTS} throughline.region={address:#x},{region}");
        if image.rootfs().is_some() {
            append.push_str(" throughline.root=/dev/vda");
        }
        if hardware.net == Net::User {
            append.push_str(NETWORK_ARGUMENT);
        }
        for word in extra {
            append.push(' ');
            append.push_str(word);
        }
        for (option, path, fd) in [("-kernel", image.kernel(), KERNEL_FD), ("-initrd", image.initramfs(), INITRAMFS_FD)]
        {
            let shared = File::open(&path).and_then(|file| self.share(file, fd, Wanted::Read).map(drop));
            shared.map_err(|source| EngineError::io("open", &path, source))?;
            self.command.args([option, &format!("/proc/self/fd/{fd}")]);
        }
        self.command.args(["-append", &append]);
        Ok(self)
    }

    /// Adds what a loading machine needs: it loads its state at once, or where its RAM is to be completed first, when it is
    /// told to; and it waits to be resumed.
    pub(super) fn load(mut self, state: File, completed_first: bool) -> Self {
        self.inherit(state, STATE_FD);
        let from = if completed_first { "defer".to_owned() } else { format!("fd:{STATE_FD}") };
        self.command.args(["-S", "-incoming", &from, "-global", "migration.x-events=on"]);
        self
    }

    /// The finished command, and the files that the monitor opens again by their descriptors.
    pub(super) fn finish(mut self) -> Result<(Command, Vec<Shared>), EngineError> {
        self.command
            .fd_mappings(self.descriptors)
            .map_err(|error| EngineError::Refused { doing: "inherit descriptors", reason: error.to_string() })?;
        Ok((self.command, self.shared))
    }

    fn inherit(&mut self, from: impl Into<OwnedFd>, child_fd: i32) -> &mut Self {
        self.descriptors.push(FdMapping { parent_fd: from.into(), child_fd });
        self
    }

    /// Hands a file over that is opened again, by its descriptor.
    fn share(&mut self, file: File, child_fd: i32, wanted: Wanted) -> io::Result<&mut Self> {
        self.shared.push(Shared { file: file.try_clone()?, wanted });
        Ok(self.inherit(file, child_fd))
    }

    fn board(&mut self, machine: &Machine, cpus: u32) {
        let accelerator = match machine.accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            Accelerator::Tcg => format!("tcg,tb-size={}", Accelerator::TRANSLATED_MIB),
        };
        // The saved stream is the devices' sections alone: no configuration, no description.
        let board = format!("{},{},mem-merge=off,memory-backend=ram0", machine.machine_type, super::probe::BOARD);
        let processor = machine.cpu_model.split(':').next().unwrap_or_default();
        self.command
            .args(["-M", &board, "-accel", &accelerator, "-cpu", processor])
            .args(["-smp", &format!("{cpus},sockets=1,cores={cpus},threads=1")])
            .args(["-global", "migration.send-configuration=off"])
            .args(["-display", "none", "-no-user-config", "-nodefaults", "-no-reboot"])
            .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    }

    fn memory(&mut self, hardware: Hardware, region: u64, mapping: Mapping) {
        let (mib, address) = (hardware.memory_mib, hardware.region_address());
        let share = match mapping {
            Mapping::Shared => "on",
            Mapping::CopyOnWrite => "off",
        };
        let ram = format!("memory-backend-file,id=ram0,size={mib}M,mem-path=/proc/self/fd/{RAM_FD},share={share}");
        let shared = format!("memory-backend-file,id=region,size={region},mem-path=/proc/self/fd/{REGION_FD},share=on");
        // Beyond RAM, the region needs a slot and address space.
        let size = format!("{mib}M,slots=2,maxmem={}M", u64::from(mib) + 1024 + (region >> 20));
        self.command
            .args(["-m", &size, "-object", &ram, "-object", &shared])
            .args(["-device", &format!("virtio-pmem-pci,memdev=region,id=pmem0,memaddr={address:#x}")]);
    }

    /// A disk that nobody writes. The file's lock is ours to keep: it says that the image is in use.
    fn disk(&mut self, rootfs: File) {
        self.inherit(rootfs, ROOTFS_FD);
        self.command
            .args(["-add-fd", &format!("fd={ROOTFS_FD},set=1")])
            .args(["-blockdev", "driver=file,node-name=rootfs,filename=/dev/fdset/1,read-only=on,locking=off"])
            .args(["-device", "virtio-blk-pci,drive=rootfs,id=disk0"]);
    }

    /// A card on a network that QEMU itself makes: address translation, without any way in. IPv4 only.
    fn network(&mut self, net: Net) {
        if net == Net::User {
            self.command
                .args(["-netdev", "user,id=net0,ipv6=off"])
                .args(["-device", "virtio-net-pci,netdev=net0,id=card0,romfile="]);
        }
    }

    fn channels(&mut self) {
        self.command
            .args(["-device", "virtio-serial-pci,id=serial0,max_ports=2"])
            .args(["-chardev", &format!("socket,id=bell,fd={BELL_FD},server=on,wait=off")])
            .args(["-device", &format!("virtserialport,chardev=bell,name={BELL_NAME},id=bell0")])
            .args(["-chardev", &format!("socket,id=control,fd={CONTROL_FD},server=on,wait=off")])
            .args(["-mon", "chardev=control,mode=control"])
            .args(["-add-fd", &format!("fd={CONSOLE_FD},set=2")])
            .args(["-chardev", "file,id=console,path=/dev/fdset/2,append=on"])
            .args(["-serial", "chardev:console"]);
    }
}

fn listen(folder: &Path, name: &str) -> Result<UnixListener, EngineError> {
    sockets::listen(folder, name).map_err(|source| EngineError::io("listen on", &folder.join(name), source))
}

fn create(folder: &Path, name: &str) -> Result<File, EngineError> {
    let path = folder.join(name);
    let mut options = File::options();
    options.create(true).append(true);
    options.open(&path).map_err(|source| EngineError::io("create the log", &path, source))
}
