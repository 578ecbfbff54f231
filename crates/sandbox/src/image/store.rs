//! Images with names.
//!
//! A name is a link, `names/NAME`, to an image's folder, and so is changed in one step. An image stays while it has a
//! name, while a machine runs on its root file system (which is then locked), and while a snapshot needs that file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::{ImageError, Names};
use super::{DESCRIPTION, Image, ImageBuilder, create_folder};
use crate::bundle::Bundle;
use crate::places::is_name;

const NAMES: &str = "names";
/// Held while names and folders go.
const LOCK: &str = ".lock";
/// Hexadecimal digits of an id.
const ID: usize = 32;
/// The fewest of them that may stand for all.
const SHORTEST: usize = 8;

/// The images on this host.
#[derive(Clone, Debug)]
pub struct Images {
    folder: PathBuf,
    snapshots: PathBuf,
}

/// One image, as [`Images::list`] tells of it.
#[derive(Clone, Debug)]
pub struct ImageEntry {
    /// Its name; `None` where it lost it to another and something still needs it, or it never had one.
    pub name: Option<String>,
    /// The image.
    pub image: Image,
    /// When it was built.
    pub created: SystemTime,
}

impl ImageEntry {
    fn new(name: Option<String>, image: Image) -> Result<Self, ImageError> {
        let path = image.folder.join(DESCRIPTION);
        let created = fs::metadata(&path).and_then(|data| data.modified());
        Ok(Self { name, created: created.map_err(|source| ImageError::io("read", &path, source))?, image })
    }
}

impl Default for Images {
    fn default() -> Self {
        Self::new()
    }
}

impl Images {
    /// The name of the image that a sandbox gets unless told otherwise.
    pub const DEFAULT: &str = "default";

    /// The images in `$XDG_DATA_HOME/throughline/images`, and the snapshots beside them.
    pub fn new() -> Self {
        let data = crate::folders::data();
        Self { folder: data.join("images"), snapshots: data.join("snapshots") }
    }

    /// Keeps images in another folder.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// Looks for the snapshots that need images in another folder.
    #[must_use]
    pub fn snapshots(mut self, folder: impl Into<PathBuf>) -> Self {
        self.snapshots = folder.into();
        self
    }

    /// Builds an image, or finds it built, and gives it a name. The image that had the name goes, unless something
    /// needs it. Blocks: [`ImageBuilder::build`].
    pub fn build(&self, name: &str, builder: &ImageBuilder) -> Result<Image, ImageError> {
        check_name(name)?;
        self.give(name, builder.clone().folder(&self.folder).build()?)
    }

    /// Gives an image a name.
    fn give(&self, name: &str, image: Image) -> Result<Image, ImageError> {
        let _lock = self.lock()?;
        let before = self.target(name);
        self.point(name, image.id())?;
        if let Some(before) = before.filter(|id| id != image.id())
            && self.name_of(&before)?.is_none()
            && let Some(old) = self.by_id(&before)
            && let Err(error) = self.discard(old.id(), &before)
        {
            tracing::debug!(%error, "the image that had the name stays");
        }
        Ok(image)
    }

    /// The image of this name, or of this id, of which the first eight digits or more will do.
    pub fn open(&self, name: &str) -> Result<Image, ImageError> {
        let (id, _) = self.resolve(name)?;
        let damaged = || ImageError::Damaged { name: name.to_owned(), folder: self.folder.join(&id) };
        self.by_id(&id).ok_or_else(damaged)
    }

    /// The image of this name, ready for this release: one that was built with another agent than the builder's gets
    /// that, whatever else it is made of, and keeps its name. The default image is built where it is missing.
    /// Blocks: [`ImageBuilder::build`].
    pub fn open_or_build(&self, name: &str, builder: &ImageBuilder) -> Result<Image, ImageError> {
        match self.open(name) {
            Err(ImageError::Absent { .. }) if name == Self::DEFAULT => self.build(name, builder),
            Ok(image) if self.target(name).is_some() && image.description.agent != builder.agent_digest() => {
                self.give(name, builder.clone().folder(&self.folder).renew(&image)?)
            }
            found => found,
        }
    }

    /// All images, by name; those without one last.
    pub fn list(&self) -> Result<Vec<ImageEntry>, ImageError> {
        let mut entries = Vec::new();
        for name in self.names()? {
            if let Some(image) = self.target(&name).and_then(|id| self.by_id(&id)) {
                entries.push(ImageEntry::new(Some(name), image)?);
            }
        }
        let mut named: Vec<_> = entries.iter().map(|entry| entry.image.id().to_owned()).collect();
        named.sort();
        for image in self.all()? {
            if named.binary_search_by(|id| id.as_str().cmp(image.id())).is_err() {
                entries.push(ImageEntry::new(None, image)?);
            }
        }
        Ok(entries)
    }

    /// Removes a name, and its image if that was the last one; or the image of an id that no name has.
    ///
    /// Refused while a sandbox runs on the image's root file system or a snapshot needs it. An image without one is
    /// needed for the start of a sandbox only.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let (id, named) = self.resolve(name)?;
        let mut others = self.names()?.into_iter().filter(|other| other != name);
        let other = others.find(|other| self.target(other).as_deref() == Some(&id));
        match other {
            Some(other) if !named => {
                return Err(ImageError::Needed { name: name.to_owned(), user: format!("the name {other}") });
            }
            Some(_) => {}
            None => self.discard(&id, name)?,
        }
        let link = self.link(name);
        if named { fs::remove_file(&link).map_err(|source| ImageError::io("remove", &link, source)) } else { Ok(()) }
    }

    /// The image with the root file system that a snapshot needs: of this id, or another one with the same.
    pub(crate) fn with_rootfs(&self, id: &str, digest: &str) -> Result<Option<Image>, ImageError> {
        match self.by_id(id).filter(|image| image.has(digest)) {
            Some(image) => Ok(Some(image)),
            None => Ok(self.all()?.into_iter().find(|image| image.has(digest))),
        }
    }

    /// The folder.
    pub fn place(&self) -> &Path {
        &self.folder
    }

    /// Removes an image's folder, unless something needs it.
    fn discard(&self, id: &str, name: &str) -> Result<(), ImageError> {
        let folder = self.folder.join(id);
        let failed = |source| ImageError::io("remove", &folder, source);
        // Held until the folder is gone: who opens the file meanwhile finds it locked.
        let _held = match self.by_id(id) {
            Some(image) => self.unneeded(&image, name)?,
            // What is not whole is of no use to anybody.
            None => None,
        };
        let going = tempfile::Builder::new().prefix(".removing-").tempdir_in(&self.folder).map_err(failed)?;
        match fs::rename(&folder, going.path().join("image")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => going.close().map_err(failed),
        }
    }

    /// Refuses an image that something needs. Otherwise its root file system, locked against use.
    fn unneeded(&self, image: &Image, name: &str) -> Result<Option<File>, ImageError> {
        let Some((rootfs, path)) = image.rootfs().zip(image.rootfs_file()) else { return Ok(None) };
        let needed = |user: String| Err(ImageError::Needed { name: name.to_owned(), user });
        let failed = |source| ImageError::io("lock", &path, source);
        let file = File::open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return needed("a sandbox that runs".to_owned()),
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        let twin = |other: &Image| other.id() != image.id() && other.has(&rootfs.digest);
        match self.bundle_with(&rootfs.digest) {
            Some(bundle) if !self.all()?.iter().any(twin) => needed(format!("the snapshot {bundle}")),
            _ => Ok(Some(file)),
        }
    }

    /// The name of a snapshot that needs a root file system.
    fn bundle_with(&self, digest: &str) -> Option<String> {
        let entries = fs::read_dir(&self.snapshots).into_iter().flatten().flatten();
        let mut needing = entries.filter(|entry| {
            let rootfs = Bundle::open(&entry.path()).ok().and_then(|bundle| bundle.manifest().rootfs.clone());
            rootfs.is_some_and(|rootfs| rootfs.digest == digest)
        });
        needing.next().map(|entry| entry.file_name().to_string_lossy().into_owned())
    }

    /// The id that is meant, and whether it is by a name.
    fn resolve(&self, name: &str) -> Result<(String, bool), ImageError> {
        if let Some(id) = self.target(name) {
            return Ok((id, true));
        }
        let mut ids = Vec::new();
        if name.len() >= SHORTEST && is_hexadecimal(name) {
            ids = entries(&self.folder)?;
            ids.retain(|id| is_id(id) && id.starts_with(name));
        }
        match <[String; 1]>::try_from(ids) {
            Ok([id]) => Ok((id, false)),
            Err(_) => Err(ImageError::Absent { name: name.to_owned(), there: Names(self.names()?) }),
        }
    }

    fn by_id(&self, id: &str) -> Option<Image> {
        Image::open(&self.folder.join(id))
    }

    /// All images, by id.
    fn all(&self) -> Result<Vec<Image>, ImageError> {
        let ids = entries(&self.folder)?.into_iter().filter(|name| is_id(name));
        Ok(ids.filter_map(|id| self.by_id(&id)).collect())
    }

    /// All names, sorted.
    fn names(&self) -> Result<Vec<String>, ImageError> {
        Ok(entries(&self.folder.join(NAMES))?.into_iter().filter(|name| check_name(name).is_ok()).collect())
    }

    fn name_of(&self, id: &str) -> Result<Option<String>, ImageError> {
        Ok(self.names()?.into_iter().find(|name| self.target(name).as_deref() == Some(id)))
    }

    fn link(&self, name: &str) -> PathBuf {
        self.folder.join(NAMES).join(name)
    }

    /// The id that a name stands for.
    fn target(&self, name: &str) -> Option<String> {
        check_name(name).ok()?;
        let target = fs::read_link(self.link(name)).ok()?;
        target.file_name()?.to_str().map(str::to_owned)
    }

    fn point(&self, name: &str, id: &str) -> Result<(), ImageError> {
        let folder = self.folder.join(NAMES);
        create_folder(&folder)?;
        let failed = |source| ImageError::io("name the image in", &folder, source);
        let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&folder).map_err(failed)?;
        let link = new.path().join(name);
        std::os::unix::fs::symlink(Path::new("..").join(id), &link).map_err(failed)?;
        fs::rename(link, self.link(name)).map_err(failed)
    }

    fn lock(&self) -> Result<File, ImageError> {
        create_folder(&self.folder)?;
        let path = self.folder.join(LOCK);
        let failed = |source| ImageError::io("lock", &path, source);
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }
}

/// Names of a folder's entries, sorted; none without the folder.
fn entries(folder: &Path) -> Result<Vec<String>, ImageError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ImageError::io("read", folder, source)),
    };
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn is_id(name: &str) -> bool {
    name.len() == ID && is_hexadecimal(name)
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn check_name(name: &str) -> Result<(), ImageError> {
    if is_name(name) && !is_id(name) { Ok(()) } else { Err(ImageError::Name(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_have_rules() {
        for good in ["default", "debian-12.1", "a", "deadbeef"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "../x", "a/b", ".hidden", "Upper", "0123456789abcdef0123456789abcdef"] {
            assert!(matches!(check_name(bad), Err(ImageError::Name(_))), "{bad}");
        }
    }
}
