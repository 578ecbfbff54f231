//! A boot-id of the agent's own, over the kernel's.
//!
//! The kernel draws its boot-id once, when it is first read, and there is no way to have it drawn anew: copies of a guest
//! would all be of one boot. So nothing reads it here, and a file lies over it that each identity writes anew. What
//! mounts a `/proc` of its own (a container) sees the kernel's, which is still to be drawn if nobody has read it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_bind};

use super::BootError;
use crate::identity::BOOT_ID;

/// Where programs read it.
const KERNELS: &str = "/proc/sys/kernel/random/boot_id";
/// A `/proc` that nothing lies over, below the agent's folder. In a user namespace the kernel lets `/proc` be mounted
/// only where the mounts so far hide nothing of one, and container tools and browsers do that.
const WHOLE: &str = "proc";

/// Lays the file in `run` over the kernel's. It is empty until the first identity, before which nothing reads it.
pub(super) fn cover(run: &Path) -> Result<(), BootError> {
    let failed = |source| BootError::System { what: "lay a boot-id over the kernel's", source };
    let (own, whole) = (run.join(BOOT_ID), run.join(WHOLE));
    let covered = || {
        fs::create_dir_all(&whole)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", &whole, "proc", flags, c"")?;
        // As readable as the kernel's, and as little writable.
        File::create(&own)?.set_permissions(Permissions::from_mode(0o444))?;
        mount_bind(&own, KERNELS)?;
        Ok::<_, io::Error>(())
    };
    covered().map_err(failed)
}
