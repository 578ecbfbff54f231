//! Which process a machine's monitor is, on paper before it is anything else.
//!
//! A monitor outlives whoever started it, so its starter may die before it could write down what it had started. So the
//! new process itself does: into a file that is open before it exists, before it becomes the monitor.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use procfs::process::Process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The file's name in a machine's folder: the boot's id, and what [`line`] makes.
const PAPER: &str = "monitor.pid";
/// How long a process may take to end that was killed.
const ENDING: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Bytes that the process adds.
const LINE: usize = 16;

/// Descriptors from here on are not replaced by those that a monitor inherits.
pub(crate) const HIGH: i32 = 64;

/// The same file under such a descriptor: a process that becomes a monitor has it until it executes it.
pub(crate) fn high(fd: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, HIGH)?)
}

/// This boot of the host, by the kernel's random id.
pub(super) fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim_end().to_owned())
}

/// When a process started, in clock ticks since the host booted; `None` once it has ended, whoever has to be told of it.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

/// The file in a machine's folder into which the new process is to write its [`line`].
pub(super) fn note(folder: &Path) -> io::Result<File> {
    let mut file = File::create(folder.join(PAPER))?;
    file.write_all(boot().unwrap_or_default().as_bytes())?;
    Ok(file)
}

/// What says which process this pid means. Allocates nothing: made between fork and exec.
pub(super) fn line(pid: i32) -> [u8; LINE] {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ticks = |nanoseconds: i64| nanoseconds.saturating_mul(100) / 1_000_000_000;
    let mut line = [0; LINE];
    line[..8].copy_from_slice(&i64::from(pid).to_ne_bytes());
    // In hundredths of a second, as the kernel tells the starts of processes.
    line[8..].copy_from_slice(&(now.tv_sec.saturating_mul(100).saturating_add(ticks(now.tv_nsec))).to_ne_bytes());
    line
}

/// Ends the monitor that a dead process left in a machine's folder, and waits for its end. Nothing happens where there
/// is none.
pub(crate) fn end_left(folder: &Path) -> io::Result<()> {
    let paper = match fs::read(folder.join(PAPER)) {
        Ok(paper) => paper,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some((there, line)) = paper.split_last_chunk::<LINE>() else { return Ok(()) };
    let ([pid, written], _) = line.as_chunks::<8>() else { return Ok(()) };
    let (pid, written) = (i64::from_ne_bytes(*pid), i64::from_ne_bytes(*written));
    if boot().is_none_or(|boot| boot.as_bytes() != there) {
        return Ok(());
    }
    let pid = i32::try_from(pid).unwrap_or(0);
    let Some(raw) = Pid::from_raw(pid) else { return Ok(()) };
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Another process that has its pid by now started later than it wrote.
    if start_time(pid).is_none_or(|started| i64::try_from(started).is_ok_and(|started| started > written)) {
        return Ok(());
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Err(error) if error != rustix::io::Errno::SRCH => return Err(error.into()),
        _ => {}
    }
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ENDING))? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid} was killed, and does not end"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A process and a folder whose paper names it.
    fn noted(boot: Option<&str>, age: i64) -> (std::process::Child, tempfile::TempDir) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut file = note(folder.path()).unwrap();
        if let Some(boot) = boot {
            file = File::create(folder.path().join(PAPER)).unwrap();
            file.write_all(boot.as_bytes()).unwrap();
        }
        let mut line = line(child.id().cast_signed());
        let written = i64::from_ne_bytes(*line.last_chunk().unwrap());
        line[8..].copy_from_slice(&(written - age).to_ne_bytes());
        file.write_all(&line).unwrap();
        (child, folder)
    }

    #[test]
    fn what_a_dead_starter_left_is_ended() {
        let (mut child, folder) = noted(None, 0);
        end_left(folder.path()).unwrap();
        assert!(child.try_wait().unwrap().is_some());
        // It has ended, and its pid may be another's.
        end_left(folder.path()).unwrap();
        fs::write(folder.path().join(PAPER), "half").unwrap();
        end_left(folder.path()).unwrap();
        end_left(&folder.path().join("nowhere")).unwrap();
    }

    #[test]
    fn a_process_of_another_boot_or_one_that_has_a_pid_again_is_left_alone() {
        for (boot, age) in [(Some("0b1ea5e5-0000-4000-8000-000000000000"), 0), (None, 1000)] {
            let (mut child, folder) = noted(boot, age);
            end_left(folder.path()).unwrap();
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
