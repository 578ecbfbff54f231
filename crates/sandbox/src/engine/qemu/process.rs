//! The monitor's process: started so that it outlives us, watched so that its end is noticed.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use procfs::process::Process as Stat;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, setrlimit, setsid,
    waitid,
};
use rustix::thread::disable_transparent_huge_pages;
use tokio::io::unix::AsyncFd;

use crate::engine::confinement::{Plan, Started};

/// The largest file that a monitor may write, in bytes. Logs that the guest can fill stop here;
/// the device state, some 70 KB, is far below. RAM and region are mapped, not written.
pub(super) const FILE_LIMIT: u64 = 8 * 1024 * 1024;

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It called exit with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It was not our child, so nobody told us.
    Unknown,
}

/// A monitor's process, by a descriptor that cannot come to mean another one.
pub(super) struct Process {
    pid: i32,
    start_time: u64,
    descriptor: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts `command` in a session of its own, so that neither our end nor our terminal's ends it.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        detach(command, HugePages::Allowed);
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        // Nobody reaps the child before us, so its pid is still its own.
        Self::open(pid)
    }

    /// Does the same under confinement.
    pub(super) fn spawn_confined(command: &mut Command, plan: &Plan<'_>) -> io::Result<(Self, Started)> {
        // An emulator asks for them for the code that it translates, far more than a short life fills. Measured: 2.5 MB
        // less for a child that was just forked, and no difference in the speed of code that runs for long.
        detach(command, if plan.kvm { HugePages::Allowed } else { HugePages::Never });
        let started = plan.spawn(command)?;
        Ok((Self::open(started.pid)?, started))
    }

    /// Finds a running process; None when it is gone, or when its pid means another one now.
    pub(super) fn find(pid: i32, start_time: u64) -> io::Result<Option<Self>> {
        match Self::open(pid) {
            Ok(process) if process.start_time == start_time => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let descriptor = pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let stat = Stat::new(pid).and_then(|process| process.stat()).map_err(proc_error)?;
        Ok(Self { pid, start_time: stat.starttime, descriptor: super::readiness::watch(descriptor)? })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Ends the process. Harmless when it has ended.
    pub(super) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.descriptor.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end. Reaps the process where it is our child. Cancel-safe.
    pub(super) async fn ended(&self) -> io::Result<()> {
        self.descriptor.readable().await.map(|_| ())
    }

    /// Waits for the end, for so long at the most; blocks.
    pub(super) fn wait(&self, longest: Duration) {
        let longest = Timespec { tv_sec: longest.as_secs().cast_signed(), tv_nsec: longest.subsec_nanos().into() };
        let mut files = [PollFd::new(self.descriptor.get_ref(), PollFlags::IN)];
        // An early return costs whoever waits a look too early.
        let _ = poll(&mut files, Some(&longest));
    }

    /// Reaps the process, which has ended. The second call knows nothing.
    pub(super) fn reap(&self) -> Status {
        use std::os::fd::AsFd;
        let id = WaitId::PidFd(self.descriptor.get_ref().as_fd());
        match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Status::Code(code),
                (_, Some(signal)) => Status::Signal(signal),
                _ => Status::Unknown,
            },
            Ok(None) | Err(_) => Status::Unknown,
        }
    }
}

/// Translates an error about `/proc`.
pub(super) fn proc_error(error: procfs::ProcError) -> io::Error {
    match error {
        procfs::ProcError::NotFound(_) => io::ErrorKind::NotFound.into(),
        procfs::ProcError::PermissionDenied(_) => io::ErrorKind::PermissionDenied.into(),
        procfs::ProcError::Io(error, _) => error,
        other => io::Error::other(other),
    }
}

/// Whether the system may give a process huge pages of memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HugePages {
    Allowed,
    Never,
}

#[expect(unsafe_code, reason = "only between fork and exec can a session and a signal be set")]
fn detach(command: &mut Command, huge: HugePages) {
    let prepare = move || {
        setsid()?;
        if huge == HugePages::Never {
            disable_transparent_huge_pages(true)?;
        }
        let limit = Rlimit { current: Some(FILE_LIMIT), maximum: Some(FILE_LIMIT) };
        setrlimit(Resource::Fsize, limit)?;
        // At the limit a write shall fail, not end the guest. SIG_IGN survives exec.
        // SAFETY: `signal` with SIG_IGN is async-signal-safe and installs no handler.
        if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec, and makes system calls only: it neither
    // allocates nor takes a lock that another thread may have held.
    unsafe { command.pre_exec(prepare) };
}
