//! Guests for tests: a shell script as process 1, and a folder that vanishes with its machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use throughline_sandbox::engine::{BootSpec, Engine, Exit, Hardware, LoadSpec, Net, Qemu, Vm, VmConfig, delta_of};
use throughline_sandbox::image::{Image, ImageBuilder};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;

/// How long anything may take before a test is called hung.
pub const WATCHDOG: Duration = Duration::from_mins(2);
/// Guest memory in MiB.
pub const MEMORY: u32 = 256;
/// What each machine has.
pub const HARDWARE: Hardware = Hardware { memory_mib: MEMORY, cpus: 1, net: Net::None };
/// The region's length in bytes.
pub const REGION: u64 = 64 << 20;

/// Mounts, loads the modules in their order, and opens the doorbell as descriptor 3.
const PRELUDE: &str = r#"#!/bin/sh
mount -t devtmpfs none /dev; mount -t proc none /proc; mount -t sysfs none /sys
for module in $(cat /lib/modules-throughline/modules.list); do insmod /lib/modules-throughline/$module; done
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" = throughline.bell ] && exec 3<>/dev/$(basename $port)
done
"#;

/// A guest that counts, for ever: on the doorbell, on its console, and in the region's second page.
pub const COUNTING: &str = r#"
n=0
while :; do
  n=$((n+1)); devmem 0x140001000 32 $n; echo "tick $n"; echo "$n $(cut -d' ' -f1 /proc/uptime)" >&3; usleep 5000
done
"#;

/// Builds an image whose process 1 is this script.
pub fn image(script: &str) -> Image {
    let builder = ImageBuilder::new().folder(images()).agent(format!("{PRELUDE}{script}"));
    builder.build().expect("an image")
}

/// Where test images are kept between runs.
pub fn images() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")
}

/// QEMU with its probe cached among the build's files.
pub fn qemu() -> Qemu {
    Qemu::new().cache(env!("CARGO_TARGET_TMPDIR"))
}

/// A machine with a folder on tmpfs; both end with the value.
pub struct Guest {
    pub vm: Box<dyn Vm>,
    pub folder: tempfile::TempDir,
    /// How long the engine took to boot or load.
    pub loading: Duration,
    _end: End,
}

/// Ends a process.
struct End(i32);

impl Drop for End {
    fn drop(&mut self) {
        // A test that has failed must not leave its machine behind either. One that has ended was
        // reaped by the watcher, and its pid is not reused within a test.
        if let Some(pid) = Pid::from_raw(self.0)
            && std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"))
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A new folder on tmpfs.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("throughline-test-").tempdir_in("/dev/shm").expect("a folder on tmpfs")
}

fn config(folder: &Path) -> VmConfig {
    let mut options = File::options();
    let region = options.read(true).write(true).create(true).truncate(false).open(folder.join("region"));
    let region = region.expect("a region");
    region.set_len(REGION).expect("a region's length");
    VmConfig { folder: folder.to_path_buf(), hardware: HARDWARE, region, rootfs: None }
}

impl Guest {
    fn new(vm: Box<dyn Vm>, folder: tempfile::TempDir, started: Instant) -> Self {
        let loading = started.elapsed();
        let end = End(vm.record().pid);
        Self { vm, folder, loading, _end: end }
    }

    /// A machine that another process has started, in a folder of its own.
    pub fn adopt(vm: Box<dyn Vm>) -> Self {
        Self::new(vm, folder(), Instant::now())
    }

    /// Boots a guest that runs `script`.
    pub async fn boot(engine: &dyn Engine, script: &str) -> Self {
        let folder = folder();
        let image = image(script);
        let spec = BootSpec {
            config: config(folder.path()),
            image: &image,
            kernel_arguments: Vec::new(),
            ram: folder.path().join("ram"),
        };
        let started = Instant::now();
        let vm = engine.boot(spec).await.expect("a booted machine");
        Self::new(vm, folder, started)
    }

    /// Loads what lies in `saved` as `ram`, `state` and `region`.
    pub async fn load(engine: &dyn Engine, saved: &Path) -> Self {
        let folder = folder();
        std::fs::copy(saved.join("region"), folder.path().join("region")).expect("a copy of the region");
        let machine = engine.capabilities().await.expect("capabilities").machine;
        let spec = LoadSpec {
            config: config(folder.path()),
            machine,
            ram: File::options().read(true).write(true).open(saved.join("ram")).expect("a RAM image"),
            delta: File::open(delta_of(&saved.join("ram"))).ok(),
            state: File::open(saved.join("state")).expect("a device state"),
        };
        let started = Instant::now();
        let vm = engine.load(spec).await.expect("a loaded machine");
        Self::new(vm, folder, started)
    }

    /// What the guest sends through the doorbell, line by line.
    pub fn bell(&self) -> Bell {
        let socket = self.vm.connect_bell().expect("the doorbell");
        socket.set_nonblocking(true).expect("a non-blocking doorbell");
        Bell(BufReader::new(UnixStream::from_std(socket).expect("the doorbell")).lines())
    }

    /// Waits for the machine's end.
    pub async fn ended(&self) -> Exit {
        watched("the machine's end", self.vm.exited()).await
    }
}

/// The doorbell's lines.
pub struct Bell(Lines<BufReader<UnixStream>>);

impl Bell {
    /// The next line.
    pub async fn line(&mut self) -> String {
        let line = watched("a line from the guest", self.0.next_line()).await;
        line.expect("a doorbell that can be read").expect("an open doorbell")
    }

    /// The number in the next whole line. The first line after a restore may have lost its beginning.
    pub async fn count(&mut self) -> u64 {
        loop {
            let line = self.line().await;
            if let Some((count, _)) = line.split_once(' ')
                && let Ok(count) = count.parse()
            {
                return count;
            }
        }
    }
}

/// Waits for something that a hung part would never do.
pub async fn watched<T>(what: &str, work: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(WATCHDOG, work).await;
    result.unwrap_or_else(|_| panic!("{what} did not come within {WATCHDOG:?}"))
}
