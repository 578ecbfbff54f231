//! From what arrives to files.

use std::io::{BufRead, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, chownat, fchmod, fchown, futimens, linkat,
    mkdirat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;
use throughline_wire::files::{Content, Failure, FailureKind, Summary};

use crate::archive::{self, Entry, cut_off, skip_padding};
use crate::failure::{failure, system};
use crate::place::Place;
use crate::root::{Root, below};

/// Longest path in an archive, in bytes: what the kernel takes.
const MAX_PATH: usize = 4096;

/// Unpacks what comes to a path in the root. What was copied before a failure is counted, and stays.
pub fn unpack(
    root: &Root,
    dest: &[u8],
    content: &Content,
    input: &mut impl BufRead,
    copied: &mut Summary,
) -> Result<(), Failure> {
    let place = Place::find(root, dest, content)?;
    let mut unpacker = Unpacker { root, place: &place, copied, last: None, open: Vec::new() };
    if let Content::Bytes { mode, mtime, .. } = content {
        return unpacker.bytes(dest, *mode, *mtime, input);
    }
    while let Some(entry) = archive::next(input)? {
        unpacker.entry(&entry, input)?;
    }
    unpacker.close(&[])?;
    // Whatever fills an archive's last record.
    drain(input)
}

fn drain(input: &mut impl BufRead) -> Result<(), Failure> {
    loop {
        let length = input.fill_buf().map_err(cut_off)?.len();
        if length == 0 {
            return Ok(());
        }
        input.consume(length);
    }
}

/// A folder that was made, and gets its permissions and time when everything in it is there.
struct Open {
    path: Vec<u8>,
    mode: u32,
    mtime: u64,
}

struct Unpacker<'a> {
    root: &'a Root,
    place: &'a Place,
    copied: &'a mut Summary,
    /// The folder that the last entry was in.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Each in the one before: as many as a path has names, at most.
    open: Vec<Open>,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, input: &mut impl BufRead) -> Result<(), Failure> {
        let path = &entry.path;
        if path.len().max(entry.link.len()) > MAX_PATH {
            return Err(failure(FailureKind::Malformed, b"archive", "a path of more than 4096 bytes"));
        }
        let place = self.place;
        let names = place.names(path)?;
        self.close(&names)?;
        let Some((name, parents)) = names.split_last() else { return self.top(entry) };
        match entry.kind {
            EntryType::Directory => self.folder(path, parents, name, entry)?,
            EntryType::Regular | EntryType::Continuous => {
                let folder = self.parent(path, parents)?;
                let file = create(folder, path, name)?;
                self.fill(&file, path, &mut input.take(entry.size), Some(entry.size))?;
                skip_padding(input, entry.size)?;
                self.finish(&file, path, entry.mode, Some(entry.mtime))?;
            }
            EntryType::Symlink => {
                let folder = self.parent(path, parents)?;
                replacing(folder, name, || symlinkat(entry.link.as_slice(), folder, *name))
                    .map_err(system(path, "make a symbolic link"))?;
                self.finish_link(path, parents, name, entry.mtime)?;
            }
            EntryType::Link => self.hard_link(path, parents, name, entry)?,
            _ => {
                return Err(failure(FailureKind::Special, path, "is a device, socket, pipe or the like; not copied"));
            }
        }
        self.copied.entries += 1;
        Ok(())
    }

    /// One file that is no archive.
    fn bytes(&mut self, dest: &[u8], mode: u32, mtime: Option<u64>, input: &mut impl BufRead) -> Result<(), Failure> {
        let Some((_, name)) = &self.place.called else {
            return Err(failure(FailureKind::Protocol, dest, "a file without a name"));
        };
        let file = create(self.place.folder.as_fd(), dest, name)?;
        self.fill(&file, dest, input, None)?;
        self.finish(&file, dest, mode, mtime)?;
        self.copied.entries += 1;
        Ok(())
    }

    /// The destination itself: it has its permissions, unless it was made for this.
    fn top(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.kind != EntryType::Directory {
            return Err(failure(FailureKind::Malformed, &entry.path, "a name is missing"));
        }
        if self.place.is_new && self.open.is_empty() {
            self.open.push(Open { path: Vec::new(), mode: entry.mode, mtime: entry.mtime });
        }
        Ok(())
    }

    /// The folder that an entry goes into; an archive may leave out those on the way.
    fn parent(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<std::os::fd::BorrowedFd<'_>, Failure> {
        let wanted = parents.join(&b'/');
        if self.last.as_ref().is_none_or(|(last, _)| *last != wanted) {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let mut opened = below(&self.place.folder, &wanted, flags);
            if matches!(opened, Err(Errno::NOENT)) {
                for length in 1..=parents.len() {
                    match mkdirat_below(&self.place.folder, &parents[..length]) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(system(path, "make a folder on its way")(errno)),
                    }
                }
                opened = below(&self.place.folder, &wanted, flags);
            }
            let folder = opened.map_err(system(path, "enter the folder that it is in"))?;
            self.last = Some((wanted, folder));
        }
        // It was set just now.
        self.last.as_ref().map(|(_, folder)| folder.as_fd()).ok_or_else(|| archive::malformed("no folder"))
    }

    fn folder(&mut self, path: &[u8], parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<(), Failure> {
        let owner = self.root.owner;
        let folder = self.parent(path, parents)?;
        match mkdirat(folder, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                if let Some(owner) = owner {
                    let (uid, gid) = owner.ids();
                    chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(system(path, "give it away"))?;
                }
                let own = [parents, &[name]].concat().join(&b'/');
                self.open.push(Open { path: own, mode: entry.mode, mtime: entry.mtime });
                Ok(())
            }
            // One that is there keeps its permissions.
            Err(Errno::EXIST) => {
                below(folder, name, OFlags::PATH | OFlags::DIRECTORY).map_err(system(path, "enter the folder"))?;
                Ok(())
            }
            Err(errno) => Err(system(path, "make the folder")(errno)),
        }
    }

    fn hard_link(&mut self, path: &[u8], parents: &[&[u8]], name: &[u8], entry: &Entry) -> Result<(), Failure> {
        let place = self.place;
        let names = place.names(&entry.link)?;
        let Some((target, above)) = names.split_last() else {
            return Err(failure(FailureKind::Malformed, path, "a hard link to nothing"));
        };
        let from = below(&place.folder, &above.join(&b'/'), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(system(&entry.link, "enter the folder of a hard link's target"))?;
        let folder = self.parent(path, parents)?;
        replacing(folder, name, || linkat(&from, *target, folder, name, AtFlags::empty()))
            .map_err(system(path, "make a hard link"))
    }

    /// Copies the bytes: from where they arrived, straight into the file.
    fn fill(
        &mut self,
        file: &OwnedFd,
        path: &[u8],
        input: &mut impl BufRead,
        size: Option<u64>,
    ) -> Result<(), Failure> {
        let mut total = 0;
        loop {
            let bytes = input.fill_buf().map_err(cut_off)?;
            if bytes.is_empty() {
                break;
            }
            let written =
                rustix::io::retry_on_intr(|| rustix::io::write(file, bytes)).map_err(system(path, "write"))?;
            input.consume(written);
            self.copied.bytes += written as u64;
            total += written as u64;
        }
        if size.is_some_and(|size| size != total) {
            return Err(archive::malformed("it ends before it is complete"));
        }
        Ok(())
    }

    fn finish(&self, file: &OwnedFd, path: &[u8], mode: u32, mtime: Option<u64>) -> Result<(), Failure> {
        if let Some(owner) = self.root.owner {
            let (uid, gid) = owner.ids();
            fchown(file, uid, gid).map_err(system(path, "give it away"))?;
        }
        fchmod(file, Mode::from_raw_mode(mode & self.root.modes)).map_err(system(path, "set its permissions"))?;
        match mtime {
            Some(mtime) => futimens(file, &times(mtime)).map_err(system(path, "set its time")),
            None => Ok(()),
        }
    }

    fn finish_link(&mut self, path: &[u8], parents: &[&[u8]], name: &[u8], mtime: u64) -> Result<(), Failure> {
        let owner = self.root.owner;
        let folder = self.parent(path, parents)?;
        if let Some(owner) = owner {
            let (uid, gid) = owner.ids();
            chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(system(path, "give it away"))?;
        }
        utimensat(folder, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(system(path, "set its time"))
    }

    /// Finishes the folders that the next entry is not in.
    fn close(&mut self, next: &[&[u8]]) -> Result<(), Failure> {
        let next = next.join(&b'/');
        while let Some(open) = self.open.last() {
            let inside = open.path.is_empty() && !next.is_empty()
                || next.strip_prefix(open.path.as_slice()).is_some_and(|rest| rest.starts_with(b"/"));
            if inside {
                return Ok(());
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let folder =
                below(&self.place.folder, &open.path, flags).map_err(system(&open.path, "enter the folder"))?;
            fchmod(&folder, Mode::from_raw_mode(open.mode & self.root.modes))
                .map_err(system(&open.path, "set its permissions"))?;
            futimens(&folder, &times(open.mtime)).map_err(system(&open.path, "set its time"))?;
            self.open.pop();
        }
        Ok(())
    }
}

fn times(mtime: u64) -> Timestamps {
    let seconds = i64::try_from(mtime).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    Timestamps { last_access: omit, last_modification: time }
}

/// A new file in the place of whatever was there, but for a folder. Never one that a link leads to.
fn create(folder: impl AsFd, path: &[u8], name: &[u8]) -> Result<OwnedFd, Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    replacing(&folder, name, || openat(&folder, name, flags, Mode::from_raw_mode(0o600)))
        .map_err(system(path, "create the file"))
}

/// Makes something, in the place of a file or link that is there; a device, socket or pipe is `NXIO`.
fn replacing<T>(folder: impl AsFd, name: &[u8], make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {
            let there = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(there.st_mode) {
                FileType::RegularFile | FileType::Symlink => unlinkat(folder, name, AtFlags::empty())?,
                FileType::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::NXIO),
            }
            make()
        }
        result => result,
    }
}

/// A folder on the way, below the first.
fn mkdirat_below(folder: impl AsFd, names: &[&[u8]]) -> Result<(), Errno> {
    let Some((name, parents)) = names.split_last() else { return Ok(()) };
    let parent = below(&folder, &parents.join(&b'/'), OFlags::PATH | OFlags::DIRECTORY)?;
    mkdirat(parent, *name, Mode::from_raw_mode(0o755))
}
