//! Where a copy goes, as `cp -r` decides it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, mkdirat};
use rustix::io::Errno;
use throughline_wire::files::{Content, Failure, FailureKind};

use crate::failure::{failure, system};
use crate::root::{Root, names, split_last, within};

/// An open folder, and what the copied thing is called there.
#[derive(Debug)]
pub(crate) struct Place {
    /// Everything happens below it.
    pub(crate) folder: OwnedFd,
    /// What the first name of every path in the archive must be, and what it becomes; as it is without one.
    pub(crate) called: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether the folder was made for this copy.
    pub(crate) is_new: bool,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Place {
    /// Finds the place for something at `dest`.
    pub(crate) fn find(root: &Root, dest: &[u8], content: &Content) -> Result<Self, Failure> {
        let path = within(dest)?;
        match root.enter(path, FOLDER) {
            Ok(folder) => Self::inside(folder, dest, content),
            Err(Errno::NOENT) => Self::beside(root, dest, path, content, false),
            Err(Errno::NOTDIR) => Self::beside(root, dest, path, content, true),
            Err(errno) => Err(system(dest, "open the destination")(errno)),
        }
    }

    /// The destination is a folder.
    fn inside(folder: OwnedFd, dest: &[u8], content: &Content) -> Result<Self, Failure> {
        let called = match content {
            Content::Contents => None,
            Content::Tree { name, .. } | Content::Bytes { name: Some(name), .. } => Some(single(name)?),
            Content::Bytes { name: None, .. } => {
                return Err(failure(FailureKind::IsAFolder, dest, "is a folder; name a file in it"));
            }
        };
        Ok(Self { folder, called: called.map(|name| (name.clone(), name)), is_new: false })
    }

    /// The destination is missing, or no folder.
    fn beside(root: &Root, dest: &[u8], path: &[u8], content: &Content, exists: bool) -> Result<Self, Failure> {
        let is_folder = matches!(content, Content::Contents | Content::Tree { is_folder: true, .. });
        let missing = || failure(FailureKind::NotFound, dest, "there is no such folder");
        let Some((parent, name)) = split_last(path) else { return Err(missing()) };
        let parent = root.enter(parent, FOLDER).map_err(system(dest, "open the folder that it would be in"))?;
        if exists && (is_folder || dest.ends_with(b"/")) {
            return Err(failure(FailureKind::NotAFolder, dest, "exists, and is no folder"));
        }
        if !is_folder && dest.ends_with(b"/") {
            return Err(missing());
        }
        match content {
            Content::Contents => {
                let folder = made(&parent, name).map_err(system(dest, "make the folder"))?;
                Ok(Self { folder, called: None, is_new: true })
            }
            Content::Tree { name: old, .. } => {
                Ok(Self { folder: parent, called: Some((single(old)?, name.to_vec())), is_new: false })
            }
            Content::Bytes { .. } => {
                Ok(Self { folder: parent, called: Some((name.to_vec(), name.to_vec())), is_new: false })
            }
        }
    }

    /// The names of an archive's path as they are here.
    pub(crate) fn names<'a>(&'a self, path: &'a [u8]) -> Result<Vec<&'a [u8]>, Failure> {
        let mut names = names(path)?;
        if let Some((old, new)) = &self.called {
            match names.first_mut() {
                Some(first) if *first == old.as_slice() => *first = new,
                _ => {
                    let message = "the archive holds something else than what was announced, which is refused";
                    return Err(failure(FailureKind::Refused, path, message));
                }
            }
        }
        Ok(names)
    }
}

/// One name, and nothing else.
fn single(name: &[u8]) -> Result<Vec<u8>, Failure> {
    match names(name)?[..] {
        [only] if only == name => Ok(name.to_vec()),
        _ => Err(failure(FailureKind::Refused, name, "is not a single name")),
    }
}

fn made(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    crate::root::below(parent, name, FOLDER)
}
