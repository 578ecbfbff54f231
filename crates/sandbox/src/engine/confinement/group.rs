//! Control groups: how much memory and processor time a monitor gets, whatever its guest makes it do.
//!
//! Each monitor has a group of its own, in each hierarchy that limits something: the two of version 1, or the one of
//! version 2. The starter makes it, the new process enters it before it does anything else, and whoever sees the
//! process end removes it. A group whose maker has died half-way is empty, and is removed when the next one is made.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use procfs::process::{MountInfo, Process};

use super::{Measure, refused};
use crate::engine::process::start_time;
use crate::engine::{Accelerator, Hardware};

/// How the folder of a group begins.
const PREFIX: &str = "throughline";
/// What a monitor itself needs, beside the memory of its guest, in bytes: program, libraries, devices, stacks.
const OWN_MEMORY: u64 = 192 << 20;
/// Processors' worth of time for what a monitor does beside running its guest.
const OWN_CPUS: u32 = 1;
/// The period over which time is counted, in microseconds.
const PERIOD: u32 = 100_000;
/// How long a group may take to be empty after the end of its process was told.
const EMPTY_WITHIN: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// How much a monitor gets.
#[derive(Clone, Copy)]
pub(in crate::engine) struct Limits {
    memory: u64,
    cpus: u32,
}

impl Limits {
    /// What a machine needs at the most, with a region of so many bytes.
    pub(in crate::engine) fn of(hardware: Hardware, region: u64, accelerator: Accelerator) -> Self {
        let code = match accelerator {
            Accelerator::Kvm => 0,
            Accelerator::Tcg => u64::from(Accelerator::TRANSLATED_MIB) << 20,
        };
        let memory = (u64::from(hardware.memory_mib) << 20) + region + code + OWN_MEMORY;
        Self { memory, cpus: hardware.cpus + OWN_CPUS }
    }
}

/// One thing that is limited.
#[derive(Clone, Copy)]
enum Controller {
    Memory,
    Processors,
}

impl Controller {
    const ALL: [Self; 2] = [Self::Memory, Self::Processors];

    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Processors => "cpu",
        }
    }

    fn measure(self) -> Measure {
        match self {
            Self::Memory => Measure::MemoryGroup,
            Self::Processors => Measure::ProcessorGroup,
        }
    }

    /// Files and what to write into them.
    fn settings(self, limits: Limits, version: Version) -> Vec<(&'static str, String)> {
        let quota = u64::from(limits.cpus) * u64::from(PERIOD);
        match (self, version) {
            (Self::Memory, Version::One) => vec![("memory.limit_in_bytes", limits.memory.to_string())],
            (Self::Memory, Version::Two) => vec![("memory.max", limits.memory.to_string())],
            (Self::Processors, Version::One) => {
                vec![("cpu.cfs_period_us", PERIOD.to_string()), ("cpu.cfs_quota_us", quota.to_string())]
            }
            (Self::Processors, Version::Two) => vec![("cpu.max", format!("{quota} {PERIOD}"))],
        }
    }

    fn detail(self, limits: Limits, folder: &Path) -> String {
        let folder = folder.display();
        match self {
            Self::Memory => format!("at most {} MiB, by {folder}", limits.memory >> 20),
            Self::Processors => format!("at most {} processors' worth, by {folder}", limits.cpus),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group that was made, for one controller.
pub(super) struct Group {
    pub(super) measure: Measure,
    /// What holds for whoever is in it.
    pub(super) detail: String,
    /// Where a process enters.
    pub(super) entrance: OwnedFd,
    pub(super) folder: PathBuf,
}

/// The groups of a process that is to be started; removed unless it is.
#[derive(Default)]
pub(super) struct Groups(pub(super) Vec<Group>);

impl Groups {
    /// Makes what this host allows; what it does not is told.
    pub(super) fn make(limits: Limits, mut refuse: impl FnMut(Measure, String)) -> Self {
        let mut groups = Self::default();
        let name = match name() {
            Ok(name) => name,
            Err(error) => {
                let why = refused("the process cannot be named", &error);
                for controller in Controller::ALL {
                    refuse(controller.measure(), why.clone());
                }
                return groups;
            }
        };
        for controller in Controller::ALL {
            match make(controller, limits, &name) {
                Ok(group) => groups.0.push(group),
                Err(why) => refuse(controller.measure(), why),
            }
        }
        groups
    }

    /// Their folders. From now on they stay.
    pub(super) fn keep(mut self) -> Vec<PathBuf> {
        let mut folders: Vec<_> = std::mem::take(&mut self.0).into_iter().map(|group| group.folder).collect();
        folders.dedup();
        folders
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.0.iter().for_each(|group| drop(fs::remove_dir(&group.folder)));
    }
}

/// Removes groups whose process has ended. Blocks, for a second at the most: a group may take a moment to be empty.
pub(crate) fn remove(folders: &[PathBuf]) {
    let deadline = Instant::now() + EMPTY_WITHIN;
    for folder in folders.iter().filter(|folder| is_ours(folder)) {
        loop {
            match fs::remove_dir(folder) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => sleep(LOOK),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %folder.display(), %error, "a control group was left behind");
                    break;
                }
                _ => break,
            }
        }
    }
}

/// Whether a folder is one that [`name`] named: nothing else is removed, whatever a record says.
fn is_ours(folder: &Path) -> bool {
    maker(folder.file_name().unwrap_or_default()).is_some()
}

/// A name that no other process gives: its maker's pid, when that was started, and a number.
fn name() -> io::Result<String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let stat = Process::myself().and_then(|own| own.stat()).map_err(io::Error::other)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{PREFIX}-{}-{}-{number}", stat.pid, stat.starttime))
}

/// Pid and start of a group's maker, by its name.
fn maker(name: &OsStr) -> Option<(i32, u64)> {
    let mut parts = name.to_str()?.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-');
    let maker = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let number: Result<u32, _> = parts.next()?.parse();
    (number.is_ok() && parts.next().is_none()).then_some(maker)
}

fn make(controller: Controller, limits: Limits, name: &str) -> Result<Group, String> {
    let (parent, version) = parent(controller)?;
    sweep(&parent);
    let folder = parent.join(name);
    let failed = |error: io::Error| refused(&folder.display().to_string(), &error);
    match fs::create_dir(&folder) {
        // In version 2 it is the same for both.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    let set = || {
        for (file, value) in controller.settings(limits, version) {
            fs::write(folder.join(file), value)?;
        }
        let entrance = File::options().write(true).open(folder.join("cgroup.procs"))?;
        crate::engine::high(entrance)
    };
    match set() {
        Ok(entrance) => {
            let (measure, detail) = (controller.measure(), controller.detail(limits, &folder));
            Ok(Group { measure, detail, entrance, folder })
        }
        Err(error) => {
            // Of version 2 the other controller may have it still.
            let _ = fs::remove_dir(&folder);
            Err(failed(error))
        }
    }
}

/// Removes what dead processes left: groups without any process, which nobody enters any more.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let Some((pid, started)) = maker(&entry.file_name()) else { continue };
        // One that has ended, and that nobody has taken notice of, has ended.
        if start_time(pid) != Some(started) {
            // One with processes in it stays by itself.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The folder in which to make groups for a controller: this process's own in version 1; in version 2 the nearest
/// above it that hands the controller on, as a group with processes in it may not.
fn parent(controller: Controller) -> Result<(PathBuf, Version), String> {
    let failed = |error: procfs::ProcError| format!("the control groups cannot be found: {error}");
    let own = Process::myself().map_err(failed)?;
    let mounts = own.mountinfo().map_err(failed)?;
    let groups = own.cgroups().map_err(failed)?;
    let name = controller.name();
    let path = |wanted: &dyn Fn(&[String]) -> bool| {
        groups.0.iter().find(|group| wanted(&group.controllers)).map(|group| group.pathname.as_str())
    };
    let one = mounts.0.iter().find(|mount| mount.fs_type == "cgroup" && mount.super_options.contains_key(name));
    if let (Some(mount), Some(path)) = (one, path(&|names| names.iter().any(|known| known == name))) {
        return Ok((folder_of(mount, path), Version::One));
    }
    let two = mounts.0.iter().find(|mount| mount.fs_type == "cgroup2");
    let (Some(mount), Some(path)) = (two, path(&|names| names.iter().all(String::is_empty))) else {
        return Err(format!("this host has no control groups for {name}"));
    };
    let own = folder_of(mount, path);
    let inside = own.ancestors().take_while(|folder| folder.starts_with(&mount.mount_point));
    let hands_on = |folder: &&Path| {
        let handed = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
        handed.split_whitespace().any(|known| known == name)
    };
    let found = { inside }.find(hands_on).ok_or_else(|| {
        format!("no control group above {} hands {name} on (systemd: Delegate={name})", own.display())
    })?;
    Ok((found.to_path_buf(), Version::Two))
}

/// Where a group of a hierarchy lies, as far as this mount shows it.
fn folder_of(mount: &MountInfo, path: &str) -> PathBuf {
    let below = Path::new(path).strip_prefix(&mount.root).unwrap_or(Path::new(""));
    mount.mount_point.join(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_known_by_their_names_and_nothing_else_is_removed() {
        let name = name().unwrap();
        let (pid, _) = maker(OsStr::new(&name)).unwrap();
        assert_eq!(pid.cast_unsigned(), std::process::id());
        for other in ["", "throughline", "throughline-1", "throughline-1-2", "throughline-1-2-3-4", "throughline-a-2-3"]
        {
            assert_eq!(maker(OsStr::new(other)), None, "{other}");
        }
        let folder = tempfile::tempdir().unwrap();
        remove(&[folder.path().to_path_buf()]);
        assert!(folder.path().exists());
    }

    #[test]
    fn what_dead_processes_left_is_swept_and_what_living_ones_make_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let [left, new] = ["throughline-1-1-0".to_owned(), name().unwrap()].map(|name| parent.path().join(name));
        for folder in [&left, &new] {
            fs::create_dir(folder).unwrap();
        }
        sweep(parent.path());
        assert!(!left.exists() && new.exists());
    }
}
