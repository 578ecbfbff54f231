//! A userland of the user's own: a read-only file system on a disk, under an overlay in memory.
//!
//! It becomes `/` of every process, this one's too, as an initramfs hands over to a system on a disk. So there is one
//! root in the guest, whatever it boots from: accounts, identity, hooks and files need not know. (In a `chroot` alone
//! the kernel would refuse user namespaces, which browsers and container tools live in.)

use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};

use super::MountError;
use super::mounts::unmount_all;
use crate::console::say;

/// How long the disk may take to appear.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

// In the initramfs.
const DISK: &str = "/disk";
const MEMORY: &str = "/memory";
const ROOT: &str = "/root";
const LAYERS: &CStr = c"lowerdir=/disk,upperdir=/memory/upper,workdir=/memory/work";
/// What nobody needs any more, and lies in memory.
const USED: [&str; 2] = ["/init", "/lib"];

/// Files that every program expects, and that an exported container has empty.
const FILES: [(&str, &str); 2] = [
    ("/etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    // The address at which QEMU's user network answers; without a network nobody does.
    ("/etc/resolv.conf", "nameserver 10.0.2.3\n"),
];

/// The user's file system cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UserlandError {
    /// It did not appear.
    #[error("the disk {0} with the user's file system did not appear; is virtio_blk loaded, and does the VMM have it?")]
    Missing(String),
    /// The disk or a layer.
    #[error(
        "cannot {what} of the user's file system: {source}; is the image's rootfs whole, and made for this kernel?"
    )]
    Layer {
        /// What was tried, and on what.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What lay there before.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Makes the file system on `disk`, under an overlay, the root of this process and of all that it starts. What
/// was mounted before is gone.
pub(super) fn enter(disk: &Path) -> Result<(), UserlandError> {
    wait_for(disk)?;
    let layer = |what| move |source| UserlandError::Layer { what, source };
    let refused = |what| move |errno: Errno| UserlandError::Layer { what, source: errno.into() };
    for folder in [DISK, MEMORY, ROOT] {
        fs::create_dir_all(folder).map_err(layer("make a mount point"))?;
    }
    mount(disk, DISK, "erofs", MountFlags::RDONLY, c"").map_err(refused("mount the disk"))?;
    mount("memory", MEMORY, "tmpfs", MountFlags::empty(), c"mode=0700").map_err(refused("mount the memory"))?;
    for name in ["upper", "work"] {
        let folder = Path::new(MEMORY).join(name);
        fs::create_dir(&folder).map_err(layer("make a layer"))?;
        // The upper one's mode is that of the root: everybody goes through it, whatever folder the image was made of.
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).map_err(layer("open a layer"))?;
    }
    mount("overlay", ROOT, "overlay", MountFlags::empty(), LAYERS).map_err(refused("mount the layers"))?;
    for path in USED {
        // Not there is as good.
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
    }
    unmount_all()?;
    chdir(ROOT).map_err(refused("enter the root"))?;
    mount_move(".", "/").map_err(refused("move the root"))?;
    chroot(".").map_err(refused("enter the root"))?;
    chdir("/").map_err(refused("enter the root"))
}

fn wait_for(disk: &Path) -> Result<(), UserlandError> {
    let deadline = Instant::now() + LIMIT;
    while !disk.exists() {
        if Instant::now() >= deadline {
            return Err(UserlandError::Missing(disk.display().to_string()));
        }
        // Nothing else runs yet, so blocking is fine.
        sleep(PAUSE);
    }
    Ok(())
}

/// Writes what the userland lacks. One that cannot take it works all the same, and may be meant so.
pub(super) fn complete() {
    for (path, text) in FILES {
        if let Err(error) = provide(Path::new(path), text) {
            say(&format!("cannot write {path}: {error}"));
        }
    }
}

/// Writes a file that is missing, empty, or a link to nothing.
pub(super) fn provide(path: &Path, text: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|data| data.len() > 0 || !data.is_file()) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::write(path, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_say_nothing_are_provided_and_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("etc/hosts");
        let read = || fs::read_to_string(&file).unwrap();
        provide(&file, "missing").unwrap();
        assert_eq!(read(), "missing");
        provide(&file, "other").unwrap();
        assert_eq!(read(), "missing");
        fs::write(&file, "").unwrap();
        provide(&file, "empty").unwrap();
        assert_eq!(read(), "empty");
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("../run/nowhere/hosts", &file).unwrap();
        provide(&file, "dangling").unwrap();
        assert_eq!(read(), "dangling");
    }
}
