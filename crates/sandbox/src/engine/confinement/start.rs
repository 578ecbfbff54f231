//! Starting a monitor under confinement, and learning what became of each measure.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{getegid, geteuid};
use rustix::thread::{Gid, Uid};

use super::child::{Become, PID, Steps};
use super::files::{self, Shared};
use super::group::{self, Groups, Limits};
use super::{Confinement, Measure, refused};
use crate::engine::{Accelerator, Hardware, Net, high};

/// The first of the users, and the group, that monitors run as when root starts them. Nobody's: above the ranges that
/// distributions, containers and service managers give away.
const FIRST_USER: u32 = 0x7000_0000;
/// How many users there are: two machines share one rarely, which costs them nothing but one of many walls.
const USERS: u64 = 0x1_0000;
const NETWORK_ASKED_FOR: &str = "the host's, as a network was asked for: it connects wherever its user may, to this host's loopback too, and listens for no TCP";

/// What a monitor needs, and with it all that it gets.
pub(in crate::engine) struct Plan<'a> {
    /// The program.
    pub(in crate::engine) binary: &'a Path,
    /// The machine's folder: which user it is depends on that.
    pub(in crate::engine) folder: &'a Path,
    /// Files that it opens by their descriptors.
    pub(in crate::engine) shared: Vec<Shared>,
    /// The network that its guest is given.
    pub(in crate::engine) net: Net,
    /// How much memory and time it gets.
    pub(in crate::engine) limits: Limits,
    /// Whether it opens /dev/kvm.
    pub(in crate::engine) kvm: bool,
    /// Where it is to write down which process it is, before it is anything else.
    pub(in crate::engine) paper: Option<File>,
}

/// A monitor that was started.
pub(in crate::engine) struct Started {
    /// Its process id, as this process sees it. It is our child.
    pub(in crate::engine) pid: i32,
    /// What became of each measure.
    pub(in crate::engine) confinement: Confinement,
    /// The control groups that it is in: to be removed when it has ended.
    pub(in crate::engine) groups: Vec<PathBuf>,
}

impl Plan<'_> {
    /// Starts `command`.
    pub(in crate::engine) fn spawn(&self, command: &mut Command) -> io::Result<Started> {
        let mut confinement = Confinement::default();
        for measure in Measure::ALL {
            confinement.record(measure, Err("the monitor did not say".into()));
        }
        let user = self.user();
        let rules = files::rules(self.binary, &self.shared, self.net)
            .and_then(|rules| high(&rules).map_err(|error| refused("the rules could not be kept", &error)));
        let (report, low) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let sender = high(&low)?;
        // The report ends when nobody can write to it any more.
        drop(low);
        let paper = self.paper.as_ref().map(high).transpose()?;
        let groups = Groups::make(self.limits, |measure, why| confinement.record(measure, Err(why)));
        let network = self.net == Net::User;
        let mut steps = steps(user.as_ref().ok().copied().flatten(), rules.as_ref().ok(), &sender, network);
        steps.groups = groups.0.iter().map(|group| (group.measure, group.entrance.as_raw_fd())).collect();
        steps.paper = paper.as_ref().map(AsRawFd::as_raw_fd);
        confine(command, steps);
        let mut child = command.spawn()?;
        drop(sender);
        let lines = read(report)?;
        let pid = match lines.iter().find(|line| line[0] == PID) {
            Some([_, pid]) => {
                // It has ended, or is about to.
                child.wait()?;
                *pid
            }
            None => child.id().cast_signed(),
        };
        for line in &lines {
            let measure = usize::try_from(line[0]).ok().and_then(|place| Measure::ALL.get(place));
            if let Some(measure) = measure {
                let group = groups.0.iter().find(|group| group.measure == *measure);
                let good = group.map_or_else(|| held(*measure).to_owned(), |group| group.detail.clone());
                confinement.record(*measure, outcome(*measure, line[1]).map(|()| good));
            }
        }
        if network {
            confinement.waive(Measure::NetworkNamespace, NETWORK_ASKED_FOR);
        }
        if let Err(why) = rules {
            confinement.record(Measure::Files, Err(why));
        }
        match user {
            Ok(Some(_)) => {}
            Ok(None) => confinement.record(Measure::User, Ok("the user who started it, who is not root".into())),
            Err(why) => confinement.record(Measure::User, Err(why)),
        }
        Ok(Started { pid, confinement, groups: groups.keep() })
    }

    /// Whom the monitor shall become, if anybody.
    fn user(&self) -> Result<Option<Become>, String> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let keep = if self.kvm { Some(kvm_group()?) } else { None };
        let of_folder = std::fs::metadata(self.folder).map_or(0, |data| data.ino());
        let user = FIRST_USER + u32::try_from(of_folder % USERS).unwrap_or(0);
        for shared in &self.shared {
            shared
                .open_to(FIRST_USER)
                .map_err(|error| refused("a file could not be shared with another user", &error))?;
        }
        Ok(Some(Become { user: Uid::from_raw(user), group: Gid::from_raw(FIRST_USER), keep: keep.flatten() }))
    }
}

/// The group that may use KVM; none where everybody may.
fn kvm_group() -> Result<Option<Gid>, String> {
    let found = std::fs::metadata("/dev/kvm").map_err(|error| refused("/dev/kvm", &error))?;
    match (found.mode() & 0o006, found.mode() & 0o060) {
        (0o006, _) => Ok(None),
        (_, 0o060) => Ok(Some(Gid::from_raw(found.gid()))),
        _ => Err("only root may use KVM here; run: chgrp kvm /dev/kvm && chmod 660 /dev/kvm".into()),
    }
}

fn steps(user: Option<Become>, rules: Option<&OwnedFd>, report: &OwnedFd, network: bool) -> Steps {
    let (uid, gid) = user.map_or((geteuid(), getegid()), |user| (user.user, user.group));
    let map = |id: u32| format!("{id} {id} 1\n").into_bytes();
    Steps {
        user,
        user_map: map(uid.as_raw()),
        group_map: map(gid.as_raw()),
        rules: rules.map(AsRawFd::as_raw_fd),
        report: report.as_raw_fd(),
        paper: None,
        groups: Vec::new(),
        network,
        counts_by_namespace: release() >= (5, 14),
    }
}

/// The kernel's version.
fn release() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn read(report: OwnedFd) -> io::Result<Vec<[i32; 2]>> {
    let mut bytes = Vec::new();
    // Ends when the monitor is executed, or has failed: what comes before are a few system calls.
    File::from(report).read_to_end(&mut bytes)?;
    let (lines, _) = bytes.as_chunks::<8>();
    Ok(lines
        .iter()
        .map(|[a, b, c, d, rest @ ..]| [i32::from_ne_bytes([*a, *b, *c, *d]), i32::from_ne_bytes(*rest)])
        .collect())
}

fn outcome(measure: Measure, error: i32) -> Result<(), String> {
    if error != 0 {
        let error = io::Error::from_raw_os_error(error);
        let mend = match measure {
            Measure::UserNamespace => {
                " (see /proc/sys/user/max_user_namespaces and /proc/sys/kernel/apparmor_restrict_unprivileged_userns)"
            }
            _ => "",
        };
        return Err(format!("{error}{mend}"));
    }
    Ok(())
}

/// What it means that a measure holds.
fn held(measure: Measure) -> &'static str {
    match measure {
        Measure::User => "a user of its own, who owns nothing",
        Measure::Files => "opens its program's files and its machine's; creates none",
        Measure::Capabilities => "none, and none to be gained",
        Measure::Limits => "few descriptors and threads, no memory images",
        Measure::NoNewPrivileges => "set",
        _ => "its own",
    }
}

#[expect(unsafe_code, reason = "a process can only confine itself, between fork and exec")]
fn confine(command: &mut Command, steps: Steps) {
    // SAFETY: the closure makes system calls only: it neither allocates nor takes a lock that another thread may have held.
    unsafe { command.pre_exec(move || steps.take()) };
}

/// Confines a harmless process in a monitor's place, and tells what this host allows.
pub(crate) fn try_confinement() -> io::Result<Confinement> {
    let folder = std::env::temp_dir();
    let binary = Path::new("/bin/true");
    let mut command = Command::new(binary);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let limits = Limits::of(Hardware::default(), 0, Accelerator::Kvm);
    let plan = Plan { binary, folder: &folder, shared: Vec::new(), kvm: false, paper: None, net: Net::None, limits };
    let started = plan.spawn(&mut command)?;
    if let Some(pid) = rustix::process::Pid::from_raw(started.pid) {
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    }
    group::remove(&started.groups);
    Ok(started.confinement)
}
