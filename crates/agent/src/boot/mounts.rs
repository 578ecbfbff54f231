//! File systems that every program expects.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system that cannot be mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {source}; does the guest's kernel have it?")]
pub struct MountError {
    what: &'static str,
    path: &'static str,
    source: io::Error,
}

/// Type, place, and options.
struct Mount(&'static str, &'static str, MountFlags, &'static std::ffi::CStr);

const NO_PROGRAMS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

/// Every command moves itself into the user's group. Without this option (Linux 6.0) the kernel waits for an RCU
/// grace period each time: 15 ms of a command's 30.
const FAST_MOVES: &std::ffi::CStr = c"favordynmods";

const MOUNTS: [Mount; 8] = [
    Mount("proc", "/proc", NO_PROGRAMS, c""),
    Mount("sysfs", "/sys", NO_PROGRAMS, c""),
    Mount("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755"),
    Mount("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"mode=0620,ptmxmode=0666"),
    Mount("tmpfs", "/dev/shm", NO_DEVICES, c"mode=1777"),
    Mount("tmpfs", "/run", NO_DEVICES, c"mode=0755"),
    Mount("tmpfs", "/tmp", NO_DEVICES, c"mode=1777"),
    Mount("cgroup2", "/sys/fs/cgroup", NO_PROGRAMS, FAST_MOVES),
];

/// Links below `/dev` that the kernel does not make.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is not there yet, and takes the console.
pub(super) fn mount_all() -> Result<(), MountError> {
    for Mount(kind, path, flags, options) in MOUNTS {
        // One that exists is as good; one that cannot be made fails at the mount, with a better reason.
        let _ = fs::create_dir_all(path);
        let mounted = match mount(kind, path, kind, flags, options) {
            Err(Errno::INVAL) if options == FAST_MOVES => mount(kind, path, kind, flags, c""),
            mounted => mounted,
        };
        match mounted {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(MountError { what: "mount", path, source: errno.into() }),
        }
        if path == "/dev" {
            take_console()?;
        }
    }
    for (target, path) in LINKS {
        match symlink(target, path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MountError { what: "link", path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes away what [`mount_all`] mounted, so that it can be mounted in another root. What is open stays open.
pub(super) fn unmount_all() -> Result<(), MountError> {
    // Of one that lies in another, the other's end is the end.
    for path in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
        unmount(path, UnmountFlags::DETACH).map_err(|errno| MountError {
            what: "unmount",
            path,
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// The kernel gave us the console only if the image has a node for it.
fn take_console() -> Result<(), MountError> {
    let open = |path: &'static str, flags| {
        rustix::fs::open(path, flags | OFlags::NOCTTY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .map_err(|errno| MountError { what: "open", path, source: errno.into() })
    };
    let console = open("/dev/console", OFlags::WRONLY)?;
    let null = open("/dev/null", OFlags::RDONLY)?;
    let failed = |errno: Errno| MountError { what: "use", path: "/dev/console", source: errno.into() };
    rustix::stdio::dup2_stdin(&null).map_err(failed)?;
    rustix::stdio::dup2_stdout(&console).map_err(failed)?;
    rustix::stdio::dup2_stderr(&console).map_err(failed)
}
