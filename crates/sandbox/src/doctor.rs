//! Whether this host can run sandboxes, and how well: what is wrong, and the command that mends it.

use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::engine::{Accelerator, Confinement, Engine, Measure, Qemu};
use crate::image::Images;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Sandboxes run without it: slower, or less confined, or not all of their uses.
    Warning,
    /// No sandbox runs without it.
    Missing,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at: fixed words, for programs.
    pub name: String,
    /// How it ended.
    pub state: State,
    /// What was found.
    pub detail: String,
    /// The command that mends it, where there is one.
    pub mend: Option<String>,
}

impl Check {
    /// One; the `mend` of what is as it should be is left out.
    pub fn new(name: &str, state: State, detail: impl Into<String>, mend: &str) -> Self {
        let mend = (state != State::Ok && !mend.is_empty()).then(|| mend.to_owned());
        Self { name: name.to_owned(), state, detail: detail.into(), mend }
    }
}

/// Looks at everything. The first call on a host may take some seconds, as KVM is tried.
pub async fn examine() -> Vec<Check> {
    let mut checks = monitor().await;
    checks.extend([kernel(), memory(), runtime(), descriptors(), watches(), locked_memory(), userlands(), zygotes()]);
    let confinement = crate::engine::try_confinement();
    checks.push(tracing_scope(confinement.as_ref().ok()));
    checks.extend(confined(confinement));
    checks
}

/// Whether nothing is missing that every sandbox needs.
pub fn is_fit(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.state != State::Missing)
}

async fn monitor() -> Vec<Check> {
    let capabilities = match Qemu::new().capabilities().await {
        Ok(capabilities) => capabilities,
        Err(error) => {
            let mend = "apt-get install qemu-system-x86";
            return vec![Check::new("qemu", State::Missing, error.to_string(), mend)];
        }
    };
    let machine = capabilities.machine;
    let (state, mend) = match machine.accelerator {
        Accelerator::Kvm => (State::Ok, ""),
        Accelerator::Tcg if Path::new("/dev/kvm").exists() => (State::Warning, "usermod -aG kvm \"$USER\""),
        Accelerator::Tcg => (State::Warning, "modprobe kvm_intel || modprobe kvm_amd"),
    };
    vec![
        Check::new("qemu", State::Ok, format!("QEMU {}, {}", machine.version, machine.machine_type), ""),
        Check::new("kvm", state, capabilities.accelerator_reason, mend),
    ]
}

fn kernel() -> Check {
    let built = Images::new().list().map_or(0, |images| images.len());
    if built > 0 {
        return Check::new("kernel", State::Ok, format!("{built} built images have one"), "");
    }
    if found("apt-get").is_some() && found("dpkg-deb").is_some() {
        let detail = "no image is built yet; the first one takes the distribution's kernel";
        return Check::new("kernel", State::Warning, detail, "throughline image build");
    }
    let detail = "no image is built, and the distribution's kernel cannot be had without apt";
    Check::new("kernel", State::Missing, detail, "throughline image build --kernel FILE --modules FOLDER")
}

fn memory() -> Check {
    const ROOM: u64 = 512 << 20;
    let mend = "mount -t tmpfs -o mode=1777,size=50% tmpfs /dev/shm";
    match rustix::fs::statfs("/dev/shm") {
        Err(error) => Check::new("memory", State::Missing, format!("/dev/shm: {error}"), mend),
        Ok(found) if found.f_type != libc::TMPFS_MAGIC => {
            Check::new("memory", State::Missing, "/dev/shm is not a tmpfs: memory would lie on a disk", mend)
        }
        Ok(found) => {
            let room = found.f_bavail * found.f_bsize.cast_unsigned();
            let state = if room < ROOM { State::Warning } else { State::Ok };
            let detail = format!("/dev/shm has {} MiB of room", room >> 20);
            Check::new("memory", state, detail, "mount -o remount,size=50% /dev/shm")
        }
    }
}

fn runtime() -> Check {
    let mend = "export XDG_RUNTIME_DIR=$(mktemp -d)";
    match crate::places::runtime() {
        Ok(folder) => Check::new("runtime", State::Ok, folder.display().to_string(), ""),
        Err(error) => Check::new("runtime", State::Missing, error.to_string(), mend),
    }
}

fn descriptors() -> Check {
    const ENOUGH: u64 = 256;
    // Shims and keepers raise their own limit to this.
    let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let state = if most < ENOUGH { State::Warning } else { State::Ok };
    let detail = format!("{most} files may be open at once in each sandbox's shim");
    Check::new("descriptors", state, detail, "ulimit -Hn 1024")
}

/// Each sandbox has one, for its console.
fn watches() -> Check {
    const ENOUGH: u64 = 128;
    let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances");
    let Some(most) = most.ok().and_then(|most| most.trim().parse::<u64>().ok()) else {
        let detail = "this kernel has no inotify: consoles are looked at each second";
        return Check::new("watches", State::Ok, detail, "");
    };
    let state = if most < ENOUGH { State::Warning } else { State::Ok };
    let detail =
        format!("{most} sandboxes at most have their consoles watched; those of more are looked at each second");
    Check::new("watches", state, detail, "sysctl fs.inotify.max_user_instances=1024")
}

fn locked_memory() -> Check {
    let most = getrlimit(Resource::Memlock).current;
    let detail = most.map_or_else(|| "no limit".to_owned(), |most| format!("{} KiB may be locked", most >> 10));
    // Nothing of ours locks memory on the host.
    Check::new("locked-memory", State::Ok, detail, "")
}

fn userlands() -> Check {
    let missing: Vec<_> = ["mkfs.erofs", "fakeroot"].into_iter().filter(|program| found(program).is_none()).collect();
    let (state, detail) = match missing.as_slice() {
        [] => (State::Ok, "mkfs.erofs and fakeroot are there".to_owned()),
        missing => (State::Warning, format!("{} not found: no images of userlands can be built", missing.join(", "))),
    };
    Check::new("userlands", state, detail, "apt-get install erofs-utils fakeroot")
}

/// Those of dead processes take memory until somebody looks.
fn zygotes() -> Check {
    let (state, detail) = match crate::zygote::left() {
        Ok((0, _)) => (State::Ok, "none is left of a dead process".to_owned()),
        Ok((count, bytes)) => {
            (State::Warning, format!("{count} left of dead processes take {} MiB of /dev/shm", bytes >> 20))
        }
        Err(error) => (State::Warning, error.to_string()),
    };
    Check::new("zygotes", state, detail, "throughline prune")
}

/// Snapshots of restored machines read the monitor's memory, and restoring those writes it.
fn tracing_scope(confinement: Option<&Confinement>) -> Check {
    let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") else {
        return Check::new("tracing", State::Ok, "this kernel has no Yama", "");
    };
    let scope: u32 = text.trim().parse().unwrap_or(0);
    let owner = confinement.is_some_and(|confinement| confinement.holds(Measure::UserNamespace));
    let allowed = scope == 0 || (scope < 3 && (owner || rustix::process::geteuid().is_root()));
    let state = if allowed { State::Ok } else { State::Warning };
    let detail = format!(
        "Yama's ptrace_scope is {scope}{}",
        if allowed {
            ""
        } else {
            ": restored machines cannot be snapshotted, and snapshots with a delta not be restored"
        }
    );
    Check::new("tracing", state, detail, "sysctl kernel.yama.ptrace_scope=0")
}

fn confined(confinement: std::io::Result<Confinement>) -> Vec<Check> {
    let confinement = match confinement {
        Ok(confinement) => confinement,
        Err(error) => {
            return vec![Check::new("confinement", State::Warning, format!("it could not be tried: {error}"), "")];
        }
    };
    // The filter is the monitor's own, and told of each machine.
    let tried = confinement.measures.into_iter().filter(|outcome| outcome.measure != Measure::SystemCalls);
    tried
        .map(|outcome| {
            let state = if outcome.in_force { State::Ok } else { State::Warning };
            let mend = match outcome.measure {
                Measure::UserNamespace => {
                    "sysctl user.max_user_namespaces=10000 kernel.apparmor_restrict_unprivileged_userns=0"
                }
                Measure::MemoryGroup | Measure::ProcessorGroup if !rustix::process::geteuid().is_root() => {
                    "systemd-run --user --scope -p Delegate=yes \"$SHELL\""
                }
                _ => "",
            };
            Check::new(&format!("confinement: {}", outcome.measure), state, outcome.detail, mend)
        })
        .collect()
}

fn found(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}
