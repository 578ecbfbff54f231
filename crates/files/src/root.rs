//! Paths that stay below an open folder.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid, openat2};
use rustix::io::Errno;
use throughline_wire::files::{Failure, FailureKind};

use crate::failure::{failure, system};

/// How often a look-up that raced with a rename is tried again.
const TRIES: usize = 16;

/// Whom copied files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    pub(crate) fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// The folder that everything happens in, and what is taken over from an archive.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
    /// Whom files are given to; the process's own user without one.
    pub owner: Option<Owner>,
    /// The permission bits that are taken over.
    pub modes: u32,
}

impl Root {
    /// Takes over all permission bits, set-user-id too: into a guest.
    pub const EVERY_MODE: u32 = 0o7777;
    /// Takes over what makes nobody else: from a guest, whose files would gain the rights of their owner here.
    pub const PLAIN_MODES: u32 = 0o777;

    /// Opens the folder.
    pub fn open(path: &Path, owner: Option<Owner>, modes: u32) -> Result<Self, Failure> {
        let name = path.as_os_str().as_encoded_bytes();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty()).map_err(system(name, "open the root"))?;
        Ok(Self { folder, owner, modes })
    }

    /// Opens a path as somebody in this root would: links are followed, and end in it.
    pub(crate) fn enter(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        look_up(&self.folder, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }
}

/// Opens a path below a folder, through no link at all.
pub(crate) fn below(folder: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    look_up(folder, path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn look_up(folder: impl AsFd, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    for _ in 0..TRIES {
        match openat2(&folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// The names in an archive's path, which must stay below: relative, without `..`.
pub(crate) fn names(path: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    let refused = |why: &str| Err(failure(FailureKind::Refused, path, why));
    if path.starts_with(b"/") {
        return refused("an absolute path in an archive is refused");
    }
    if path.contains(&0) {
        return refused("a path with a zero byte is refused");
    }
    let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&b"..".as_slice()) {
        return refused("a path that leaves its root is refused");
    }
    Ok(names)
}

/// A path that somebody gave, made relative to the root. It may go up again, but not out.
pub(crate) fn within(path: &[u8]) -> Result<&[u8], Failure> {
    let refused = |why: &str| Err(failure(FailureKind::Refused, path, why));
    if path.is_empty() {
        return refused("an empty path is refused");
    }
    if path.contains(&0) {
        return refused("a path with a zero byte is refused");
    }
    let mut depth = 0_usize;
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if depth == 0 => return refused("a path that leaves its root is refused"),
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    Ok(path.get(start..).unwrap_or_default())
}

/// Splits off the last name; `None` where there is none that something could be called.
pub(crate) fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    let path = path.get(..end)?;
    let start = path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
    let (parent, name) = path.split_at_checked(start)?;
    (name != b"." && name != b"..").then_some((parent, name))
}
