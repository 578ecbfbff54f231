//! Who may drive a region: at most one process for each side.

use std::fmt;
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::time::{ClockId, clock_gettime};

use crate::backing;

/// Descriptors from here on are not replaced by those that another program is started with.
const HIGH: i32 = 64;

/// A lock on one byte of a file, held until this is dropped or the process ends.
///
/// It belongs to a file description that this process opened for the purpose, close-on-exec, and
/// never passes on: such locks travel with descriptors, and a lock that travelled could outlive its
/// holder. A child that is forked and never calls `exec` would inherit it.
#[derive(Debug)]
pub struct Lease {
    description: OwnedFd,
    claim: Claim,
}

/// The bytes that stand for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub(crate) enum Claim {
    /// Driving as the host; on the sidecar (where its holder is recorded) and on the region.
    Host = 0,
    /// Driving as the guest, where that is a process; on the region.
    Guest = 1,
}

/// Why a lease was not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Another description holds it.
    Held,
    /// The system refused.
    System(std::io::Error),
}

impl Lease {
    /// Takes the lease or says at once why not. Never waits.
    pub(crate) fn take(file: BorrowedFd<'_>, claim: Claim) -> Result<Self, Refusal> {
        let description = backing::reopen(file).map_err(|errno| Refusal::System(errno.into()))?;
        // A process that is forked to become another program may put that one's descriptors in the place of low ones
        // before it executes it: until then it holds the lease, too, and its starter may be dead.
        let description = rustix::io::fcntl_dupfd_cloexec(description, HIGH);
        let description = description.map_err(|errno| Refusal::System(errno.into()))?;
        match fcntl(&description, FcntlArg::F_OFD_SETLK(&lock(libc::F_WRLCK, claim))) {
            Ok(_) => Ok(Self { description, claim }),
            Err(Errno::EAGAIN | Errno::EACCES) => Err(Refusal::Held),
            Err(errno) => Err(Refusal::System(errno.into())),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Closing is not enough while a child that another thread has just forked, and that has not
        // come to its `exec` yet, holds the descriptor too. Unlocking cannot fail; closing follows.
        let _ = fcntl(&self.description, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, self.claim)));
    }
}

fn lock(kind: libc::c_int, claim: Claim) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: claim as i64,
        l_len: 1,
        l_pid: 0,
    }
}

/// A process, by a name that is never given twice while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id, as the process itself saw it.
    pub pid: u32,
    /// When it started: clock ticks since the machine did (`/proc/PID/stat`, field 22); 0 if unknown.
    pub started: u64,
}

impl Holder {
    /// This process.
    pub(crate) fn this_process() -> Self {
        let pid = std::process::id();
        Self { pid, started: start_of("self").unwrap_or(0) }
    }

    /// Whether this very process is seen to be running from here.
    pub fn is_running(&self) -> bool {
        start_of(&self.pid.to_string()).is_some_and(|started| self.started == 0 || started == self.started)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if !self.is_running() {
            return f.write_str(
                " (which is gone: a child of it may have inherited the lease, or it lives in another pid namespace)",
            );
        }
        match running_for(self.started) {
            Some(age) => write!(f, " (running for {} s)", age.as_secs()),
            None => Ok(()),
        }
    }
}

fn running_for(started: u64) -> Option<Duration> {
    let ticks = rustix::param::clock_ticks_per_second();
    let start = Duration::from_secs(started.checked_div(ticks)?);
    let now = clock_gettime(ClockId::Boottime).tv_sec.try_into().ok()?;
    Duration::from_secs(now).checked_sub(start)
}

/// Field 22 of a process's stat: its start in clock ticks. `None` if there is no such process.
fn start_of(process: &str) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, is the process's own choice and may hold anything; field 3 follows it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}
