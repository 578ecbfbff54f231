//! A small userland in an archive, as an exported container is: owners that nobody here has, rights that only root
//! gives, file capabilities.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nalice:x:1500:1600:Alice:/home/alice:/bin/sh\n";
const GROUP: &str = "root:x:0:\nstaff:x:1600:\nwheel:x:10:alice\n";
/// How often [`BLOCK`] bytes of data are repeated, unless a test wants more.
pub const FEW: usize = 2;
const BLOCK: usize = 1 << 20;
/// What gives a file `cap_net_raw`, as `ping` has it; and what keeps its place on a command line.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const PLACE: &str = "twenty-bytes-of-text";

/// Makes the archive in `folder`. `/data` has so many MiB.
pub fn archive(folder: &Path, data: usize) -> PathBuf {
    let (tree, archive) = (folder.join("tree"), folder.join("userland.tar"));
    for path in ["bin", "etc", "home/alice", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(path)).expect("a folder");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox"), tree.join("bin/busybox")).expect("a copy of busybox");
    fs::set_permissions(tree.join("bin/busybox"), Permissions::from_mode(0o4755)).expect("a mode");
    let applets = Command::new(tree.join("bin/busybox")).arg("--list").output().expect("busybox").stdout;
    for applet in String::from_utf8(applets).expect("names").lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).expect("a link");
    }
    let block: Vec<u8> =
        (0..BLOCK / 4).flat_map(|index: usize| (index.wrapping_mul(0x9e37_79b1) as u32).to_le_bytes()).collect();
    let files = [
        ("etc/passwd", PASSWD.as_bytes()),
        ("etc/group", GROUP.as_bytes()),
        ("etc/hosts", b""),
        ("home/alice/own", b"hers\n"),
    ];
    for (path, content) in files {
        fs::write(tree.join(path), content).expect("a file");
    }
    fs::write(tree.join("data"), block.repeat(data)).expect("data");
    // What a running system shows, and no archive should have.
    fs::write(tree.join("proc/stale"), "").expect("a file");
    tar(&["--create", "--owner=root:0", "--group=root:0", "--exclude=home/alice"], &tree, &archive, ".");
    let hers = ["--append", "--owner=alice:1500", "--group=staff:1600", "--no-recursion"];
    tar(&hers, &tree, &archive, "./home/alice");
    let capable = format!("--pax-option=SCHILY.xattr.security.capability:={PLACE}");
    tar(&[&hers[..], &[&capable]].concat(), &tree, &archive, "./home/alice/own");
    let mut bytes = fs::read(&archive).expect("the archive");
    let at = bytes.windows(PLACE.len()).position(|bytes| bytes == PLACE.as_bytes()).expect("the attribute");
    bytes[at..at + PLACE.len()].copy_from_slice(&CAPABILITY);
    fs::write(&archive, bytes).expect("the archive");
    fs::remove_dir_all(tree).expect("the tree goes");
    archive
}

fn tar(arguments: &[&str], tree: &Path, archive: &Path, what: &str) {
    let mut tar = Command::new("tar");
    // One time, so that the same image comes of it.
    tar.args(arguments).args(["--format=pax", "--mtime=@1000000000", "--sort=name"]);
    tar.arg("--file").arg(archive).arg("--directory").arg(tree).arg(what);
    assert!(tar.status().expect("tar").success());
}
