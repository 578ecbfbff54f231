//! The guest's first file system, as two cpio archives. Where there is a userland, it is left behind soon.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use cpio::newc::{Builder, trailer};

use super::busybox::Busybox;
use super::kernel::Kernel;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const DEVICE: u32 = 0o020_000;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n\
    user:x:1000:1000:user:/home/user:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n";
const FOLDERS: [(&str, u32); 14] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/user", 0o755),
    ("lib", 0o755),
    ("lib/modules-throughline", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
];

/// What a guest with a userland has before it goes over to that.
const FIRST_FOLDERS: [(&str, u32); 7] = [
    ("dev", 0o755),
    ("lib", 0o755),
    ("lib/modules-throughline", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

/// Writes the first archive: the modules with their order, and busybox under all its names; or, without busybox, what
/// leads to a userland. The agent's follows.
pub(super) fn write_base(to: impl Write, busybox: Option<&Busybox>, kernel: &Kernel) -> io::Result<()> {
    let mut archive = Archive { to, entries: 0 };
    match busybox {
        Some(busybox) => archive.system(busybox)?,
        None => archive.folders(&FIRST_FOLDERS)?,
    }
    // The kernel opens it for process 1 before anything is mounted.
    let console = archive.entry("dev/console", DEVICE | 0o600).rdev_major(5).rdev_minor(1);
    archive.add(console, &[])?;
    archive.modules("modules.list", kernel.modules(busybox.is_none()))?;
    archive.modules("network.list", kernel.network_modules())?;
    trailer(archive.to)?.flush()
}

/// Writes the second archive: process 1. It is the last, so that another can take its place.
pub(super) fn write_agent(to: impl Write, agent: &[u8]) -> io::Result<()> {
    let mut archive = Archive { to, entries: 0 };
    archive.file("init", 0o755, agent)?;
    trailer(archive.to)?.flush()
}

struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An entry with an inode of its own: equal ones would be taken for hard links.
    fn entry(&self, path: &str, mode: u32) -> Builder {
        Builder::new(path).ino(self.entries + 1).mode(mode).nlink(1)
    }

    fn add(&mut self, entry: Builder, content: &[u8]) -> io::Result<()> {
        let length = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a file for the image exceeds 4 GiB"))?;
        let mut writer = entry.write(&mut self.to, length);
        writer.write_all(content)?;
        writer.finish()?;
        self.entries += 1;
        Ok(())
    }

    fn folders(&mut self, folders: &[(&str, u32)]) -> io::Result<()> {
        for (path, mode) in folders {
            let owner = if *path == "home/user" { 1000 } else { 0 };
            self.add(self.entry(path, FOLDER | mode).uid(owner).gid(owner), &[])?;
        }
        Ok(())
    }

    /// A small system around busybox.
    fn system(&mut self, busybox: &Busybox) -> io::Result<()> {
        self.folders(&FOLDERS)?;
        for (path, target) in [("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/tmp", "../tmp")] {
            self.add(self.entry(path, LINK | 0o777), target.as_bytes())?;
        }
        self.file("bin/busybox", 0o755, &busybox.bytes)?;
        for applet in busybox.applets.iter().filter(|name| *name != "busybox") {
            self.add(self.entry(&format!("bin/{applet}"), LINK | 0o777), b"busybox")?;
        }
        self.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
        self.file("etc/group", 0o644, GROUP.as_bytes())
    }

    /// Modules, and the list of them in their order.
    fn modules<'a>(&mut self, list: &str, modules: impl Iterator<Item = (&'a str, PathBuf)>) -> io::Result<()> {
        let mut order = String::new();
        for (name, file) in modules {
            self.file(&format!("lib/modules-throughline/{name}.ko"), 0o644, &fs::read(file)?)?;
            order.push_str(name);
            order.push_str(".ko\n");
        }
        self.file(&format!("lib/modules-throughline/{list}"), 0o644, order.as_bytes())
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.add(self.entry(path, FILE | mode), content)
    }
}
