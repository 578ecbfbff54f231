//! What the new process does to itself between fork and exec: system calls, and nothing else.

use std::io;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};

use super::Measure;
use crate::engine::process::line;

/// The most descriptors, in a monitor that needs some thirty.
const DESCRIPTORS: u64 = 1024;
/// The most threads: processors, and up to 64 that wait for files.
const THREADS: u64 = 256;

/// Becoming another user.
#[derive(Clone, Copy)]
pub(super) struct Become {
    pub(super) user: Uid,
    pub(super) group: Gid,
    /// A group that is kept: the one that may use KVM.
    pub(super) keep: Option<Gid>,
}

/// Everything that the child needs to know, made before it exists.
pub(super) struct Steps {
    pub(super) user: Option<Become>,
    pub(super) user_map: Vec<u8>,
    pub(super) group_map: Vec<u8>,
    /// Rules about files.
    pub(super) rules: Option<RawFd>,
    /// Where the child says what became of it.
    pub(super) report: RawFd,
    /// Where it writes down which process it is.
    pub(super) paper: Option<RawFd>,
    /// Where it enters its control groups, and which measures those are.
    pub(super) groups: Vec<(Measure, RawFd)>,
    /// Whether it stays in the starter's network.
    pub(super) network: bool,
    /// Whether threads are counted by user namespace, as Linux 5.14 and later do.
    pub(super) counts_by_namespace: bool,
}

/// One line of the child's report: a measure's place in [`Measure::ALL`], and an error number, or 0. Or, as [`PID`], a pid.
pub(super) type Line = [i32; 2];
/// The line that tells the monitor's pid.
pub(super) const PID: i32 = -1;

const NAMESPACES: [(UnshareFlags, Measure); 5] = [
    (UnshareFlags::NEWNS, Measure::MountNamespace),
    (UnshareFlags::NEWNET, Measure::NetworkNamespace),
    (UnshareFlags::NEWIPC, Measure::IpcNamespace),
    (UnshareFlags::NEWUTS, Measure::UtsNamespace),
    (UnshareFlags::NEWPID, Measure::PidNamespace),
];

impl Steps {
    /// Takes all measures. Refused ones are reported, and left out.
    pub(super) fn take(&self) -> io::Result<()> {
        // First, so that all memory counts; and with the starter's rights.
        for (measure, entrance) in &self.groups {
            self.say(*measure, &enter(*entrance));
        }
        let mut alone = false;
        if let Some(user) = self.user {
            // Root's rights make namespaces where ordinary users may not have any.
            alone = self.namespaces();
            let _ = bounds();
            self.say(Measure::User, &become_user(user));
        }
        let owner = self.user_namespace();
        self.say(Measure::UserNamespace, &owner);
        if self.user.is_none() {
            alone = self.namespaces();
        }
        self.say(Measure::Capabilities, &bounds());
        if alone {
            self.second_process()?;
        } else {
            self.note(rustix::process::getpid().as_raw_nonzero().get())?;
        }
        self.say(Measure::Limits, &limits(self.counts_by_namespace && owner.is_ok()));
        let privileges = rustix::thread::set_no_new_privs(true).map_err(Into::into);
        self.say(Measure::NoNewPrivileges, &privileges);
        if let Some(rules) = self.rules {
            self.say(Measure::Files, &restrict(rules));
        }
        Ok(())
    }

    fn say(&self, measure: Measure, outcome: &io::Result<()>) {
        let error = outcome.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        self.line([measure as i32, error]);
    }

    #[expect(unsafe_code, reason = "the starter owns the descriptor, and keeps it open until after the exec")]
    fn line(&self, line: Line) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&line[0].to_ne_bytes());
        bytes[4..].copy_from_slice(&line[1].to_ne_bytes());
        // SAFETY: the descriptor is open in this process until it executes the monitor.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        // What is not said counts as not in force.
        let _ = rustix::io::write(report, &bytes);
    }

    #[expect(unsafe_code, reason = "the starter owns the descriptor, and keeps it open until after the exec")]
    fn note(&self, pid: i32) -> io::Result<()> {
        let Some(paper) = self.paper else { return Ok(()) };
        // SAFETY: the descriptor is open in this process until it executes the monitor.
        let paper = unsafe { BorrowedFd::borrow_raw(paper) };
        rustix::io::write(paper, &line(pid)).map(drop).map_err(Into::into)
    }

    /// Takes namespaces; returns whether the next child will be alone in one of its own.
    fn namespaces(&self) -> bool {
        let mut last = false;
        for (flag, measure) in NAMESPACES {
            if self.network && measure == Measure::NetworkNamespace {
                continue;
            }
            let taken = unshare(flag);
            last = taken.is_ok();
            self.say(measure, &taken);
        }
        last
    }

    fn user_namespace(&self) -> io::Result<()> {
        unshare(UnshareFlags::NEWUSER)?;
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/gid_map", &self.group_map)?;
        write(c"/proc/self/uid_map", &self.user_map)
    }

    /// A namespace of processes holds the children of the one who made it. So a second process goes on, as a child of the
    /// starter's own; this one tells of it, and ends.
    #[expect(unsafe_code, reason = "no wrapper starts a sibling")]
    fn second_process(&self) -> io::Result<()> {
        let flags = libc::CLONE_PARENT | libc::SIGCHLD;
        // SAFETY: without CLONE_VM this is a fork: the child goes on with a copy of this thread, which makes system
        // calls only until it executes the monitor.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(()),
            pid => {
                // The starter may have died: whoever has its claim next waits for this process, which still holds it.
                let _ = self.note(i32::try_from(pid).unwrap_or(0));
                self.line([PID, i32::try_from(pid).unwrap_or(0)]);
                // SAFETY: ends the process at once; nothing of the starter's is run.
                unsafe { libc::_exit(0) }
            }
        }
    }
}

#[expect(unsafe_code, reason = "unsharing descriptors would be unsafe in a program with threads")]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no caller unshares descriptors, and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

#[expect(unsafe_code, reason = "the starter owns the descriptor, and keeps it open until after the exec")]
fn enter(entrance: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open in this process until it executes the monitor.
    rustix::io::write(unsafe { BorrowedFd::borrow_raw(entrance) }, b"0")?;
    Ok(())
}

fn write(path: &std::ffi::CStr, bytes: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?;
    rustix::io::write(file, bytes)?;
    Ok(())
}

fn become_user(user: Become) -> io::Result<()> {
    let kept = user.keep;
    rustix::thread::set_thread_groups(kept.as_slice())?;
    rustix::thread::set_thread_res_gid(user.group, user.group, user.group)?;
    rustix::thread::set_thread_res_uid(user.user, user.user, user.user)?;
    // Else its own files under /proc belong to root until the exec.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    Ok(())
}

/// Empties the set of capabilities that an exec may grant.
fn bounds() -> io::Result<()> {
    for capability in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // This kernel does not know it.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn limits(threads: bool) -> io::Result<()> {
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, DESCRIPTORS)?;
    if threads {
        limit(Resource::Nproc, THREADS)?;
    }
    Ok(())
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = Some(getrlimit(resource).maximum.map_or(most, |known| known.min(most)));
    setrlimit(resource, Rlimit { current: most, maximum: most })?;
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "the crate that makes the rules takes them by allocating, which a forked process may not"
)]
fn restrict(rules: RawFd) -> io::Result<()> {
    // SAFETY: two integers; the kernel checks that the descriptor is a set of rules.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
