//! From files to what is sent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use tar::EntryType;
use throughline_wire::files::{Failure, FailureKind, Form, Found, Kind, Summary};

use crate::archive::{self, Entry};
use crate::chunks::Output;
use crate::failure::{failure, system};
use crate::root::{Root, below, split_last, within};

/// Something to copy: an open folder, and its name in it; the folder itself without one.
struct Source {
    folder: OwnedFd,
    name: Vec<u8>,
}

impl Source {
    fn find(root: &Root, path: &[u8], follow: bool) -> Result<Self, Failure> {
        let inner = within(path)?;
        let flags = OFlags::PATH;
        // Whoever writes a slash behind it means what a link names.
        let last = split_last(inner).filter(|_| !follow && !path.ends_with(b"/"));
        let (folder, name) = match last {
            Some((parent, name)) => (root.enter(parent, flags | OFlags::DIRECTORY), name.to_vec()),
            None => (root.enter(inner, flags), Vec::new()),
        };
        Ok(Self { folder: folder.map_err(system(path, "find it"))?, name })
    }

    fn stat(&self, path: &[u8]) -> Result<Stat, Failure> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        statat(&self.folder, self.name.as_slice(), flags).map_err(system(path, "look at it"))
    }

    /// Opens it for reading.
    fn open(&self, root: &Root, path: &[u8]) -> Result<OwnedFd, Failure> {
        if self.name.is_empty() {
            // A descriptor that only names something is opened once more by where it is.
            let inner = within(path)?;
            return root.enter(inner, READ & !OFlags::NOFOLLOW).map_err(system(path, "open it"));
        }
        openat(&self.folder, self.name.as_slice(), READ, Mode::empty()).map_err(system(path, "open it"))
    }
}

/// Never through a link, and never waiting for a pipe's other end.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// What there is at a path in the root.
pub fn found(root: &Root, path: &[u8], follow: bool) -> Result<Found, Failure> {
    let stat = Source::find(root, path, follow)?.stat(path)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        _ => Kind::Special,
    };
    Ok(Found { kind, mode: stat.st_mode & 0o7777, size: stat.st_size.cast_unsigned(), mtime: stat.st_mtime })
}

/// Files that are not sent, by what is known of each.
pub type Withheld<'a> = &'a dyn Fn(&Stat) -> bool;

/// Sends what there is at a path in the root. What was sent before a failure is counted; a file that is withheld is one.
pub fn pack(
    root: &Root,
    (path, form, follow): (&[u8], &Form, bool),
    withheld: Withheld<'_>,
    output: &mut Output,
    copied: &mut Summary,
) -> Result<(), Failure> {
    let source = Source::find(root, path, follow)?;
    let stat = source.stat(path)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mut packer = Packer { withheld, output, copied };
    match form {
        Form::Bytes => {
            if kind == FileType::Directory {
                return Err(failure(FailureKind::IsAFolder, path, "is a folder, and has no bytes of its own"));
            }
            let file = packer.regular(source.open(root, path)?, path)?;
            packer.copy(&file.0, path, None)?;
            packer.copied.entries += 1;
        }
        Form::Contents if kind != FileType::Directory => {
            return Err(failure(FailureKind::NotAFolder, path, "is no folder, and has no contents"));
        }
        Form::Contents => packer.tree(source.open(root, path)?, path, b".")?,
        Form::Tree(name) if kind == FileType::Directory => packer.tree(source.open(root, path)?, path, name)?,
        Form::Tree(name) if kind == FileType::Symlink => {
            packer.link(&source.folder, &source.name, path, name, &stat)?;
        }
        Form::Tree(name) => {
            special(kind, path)?;
            packer.file(source.open(root, path)?, path, name)?;
        }
    }
    if *form != Form::Bytes {
        archive::end(packer.output).map_err(unwanted)?;
    }
    packer.output.pass_on().map_err(unwanted)
}

struct Packer<'a> {
    withheld: Withheld<'a>,
    output: &'a mut Output,
    copied: &'a mut Summary,
}

/// A folder whose entries are being sent.
struct Level {
    folder: OwnedFd,
    entries: Dir,
    /// Bytes of the two paths that are its own.
    lengths: (usize, usize),
}

impl Packer<'_> {
    /// A folder with everything in it. Each folder on the way is open, so that renames mislead nobody.
    fn tree(&mut self, folder: OwnedFd, path: &[u8], name: &[u8]) -> Result<(), Failure> {
        let (mut path, mut name) = (path.to_vec(), name.to_vec());
        let mut levels = vec![self.level(folder, &path, &name)?];
        while let Some(level) = levels.last_mut() {
            path.truncate(level.lengths.0);
            name.truncate(level.lengths.1);
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(system(&path, "read the folder"))?;
            let own = entry.file_name().to_bytes();
            if own == b"." || own == b".." {
                continue;
            }
            for full in [&mut path, &mut name] {
                full.push(b'/');
                full.extend_from_slice(own);
            }
            let stat = statat(&level.folder, own, AtFlags::SYMLINK_NOFOLLOW).map_err(system(&path, "look at it"))?;
            let open = || openat(&level.folder, own, READ, Mode::empty()).map_err(system(&path, "open it"));
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let folder = open()?;
                    let next = self.level(folder, &path, &name)?;
                    levels.push(next);
                }
                FileType::Symlink => self.link(&level.folder, own, &path, &name, &stat)?,
                kind => {
                    special(kind, &path)?;
                    self.file(open()?, &path, &name)?;
                }
            }
        }
        Ok(())
    }

    /// Sends a folder's own entry, and opens what is in it.
    fn level(&mut self, folder: OwnedFd, path: &[u8], name: &[u8]) -> Result<Level, Failure> {
        let stat = fstat(&folder).map_err(system(path, "look at it"))?;
        self.header(EntryType::Directory, &[name, b"/"].concat(), &stat, 0, b"")?;
        let entries = below(&folder, b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .and_then(Dir::new)
            .map_err(system(path, "read the folder"))?;
        Ok(Level { folder, entries, lengths: (path.len(), name.len()) })
    }

    fn link(&mut self, folder: &OwnedFd, own: &[u8], path: &[u8], name: &[u8], stat: &Stat) -> Result<(), Failure> {
        let target = readlinkat(folder.as_fd(), own, Vec::new()).map_err(system(path, "read the symbolic link"))?;
        self.header(EntryType::Symlink, name, stat, 0, target.as_bytes())
    }

    fn file(&mut self, file: OwnedFd, path: &[u8], name: &[u8]) -> Result<(), Failure> {
        let (file, stat) = self.regular(file, path)?;
        let size = stat.st_size.cast_unsigned();
        self.header(EntryType::Regular, name, &stat, size, b"")?;
        self.copy(&file, path, Some(size))?;
        archive::pad(self.output, size).map_err(unwanted)
    }

    /// A file with bytes; what it is may have changed since somebody looked.
    fn regular(&self, file: OwnedFd, path: &[u8]) -> Result<(OwnedFd, Stat), Failure> {
        let stat = fstat(&file).map_err(system(path, "look at it"))?;
        special(FileType::from_raw_mode(stat.st_mode), path)?;
        if (self.withheld)(&stat) {
            return Err(failure(FailureKind::Refused, path, "is a secret, which is not copied"));
        }
        Ok((file, stat))
    }

    fn header(&mut self, kind: EntryType, name: &[u8], stat: &Stat, size: u64, link: &[u8]) -> Result<(), Failure> {
        let mtime = u64::try_from(stat.st_mtime).unwrap_or(0);
        let mode = stat.st_mode & 0o7777;
        let entry = Entry { path: name.to_vec(), kind, mode, mtime, size, link: link.to_vec() };
        self.copied.entries += 1;
        archive::write(self.output, &entry).map_err(unwanted)
    }

    /// Reads straight into what is sent. A size that was announced is kept.
    fn copy(&mut self, file: &OwnedFd, path: &[u8], size: Option<u64>) -> Result<(), Failure> {
        let mut left = size.unwrap_or(u64::MAX);
        while left > 0 {
            let space = self.output.space().map_err(unwanted)?;
            let wanted = space.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = rustix::io::retry_on_intr(|| rustix::io::read(file, &mut space[..wanted]));
            let length = read.map_err(system(path, "read"))?;
            if length == 0 {
                break;
            }
            self.output.filled(length);
            self.copied.bytes += length as u64;
            left -= length as u64;
        }
        if left > 0 && size.is_some() {
            return Err(failure(FailureKind::Changed, path, "became shorter while it was copied"));
        }
        Ok(())
    }
}

fn special(kind: FileType, path: &[u8]) -> Result<(), Failure> {
    let what = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Fifo => "is a pipe",
        FileType::Socket => "is a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device",
        _ => "is no file, folder or symbolic link",
    };
    Err(failure(FailureKind::Special, path, format!("{what}, which is not copied")))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn unwanted(error: io::Error) -> Failure {
    failure(FailureKind::Other, b"transfer", format!("nobody takes it any more: {error}"))
}
