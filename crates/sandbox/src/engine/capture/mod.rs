//! Copies of a machine's RAM, made while it runs and corrected while it is paused.
//!
//! Allocating pages costs ten times what comparing them does. So the copy is made before the
//! pause, wrong as it may be where the guest writes meanwhile; in the pause every page that can
//! differ is compared, and written only if it does.
//!
//! An image appears under its name only when it is complete: until then it is `NAME.partial`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use self::private::Private;
use self::shared::Shared;
use super::EngineError;

mod pages;
mod private;
mod shared;

/// Where a machine's RAM is to be read.
#[derive(Debug)]
pub enum RamSource {
    /// The file is the RAM. Open for writing too, though nothing is written.
    Shared(File),
    /// The RAM is an immutable file, and private pages of the monitor over it.
    CopyOnWrite {
        /// The file underneath.
        image: File,
        /// The monitor.
        pid: i32,
        /// Where the monitor has mapped the file.
        address: u64,
    },
}

/// What a capture did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureReport {
    /// Bytes copied while the machine ran.
    pub copied: u64,
    /// Bytes corrected while it was paused.
    pub corrected: u64,
    /// Whether the RAM's file itself became the image, without a copy.
    pub shared: bool,
}

/// What RAM is corrected from.
#[derive(Debug)]
enum Ram {
    Shared(Shared),
    Private(Private),
}

/// A copy of RAM in the making. Dropping it removes what there is of the copy.
#[derive(Debug)]
pub struct Capture {
    ram: Ram,
    image: PathBuf,
    partial: PathBuf,
    copy: File,
    copied: u64,
}

impl Capture {
    /// Copies RAM to a new file beside `image`. Blocks for about 1 ms per MiB in use; the machine
    /// may run meanwhile.
    pub fn begin(source: RamSource, image: &Path) -> Result<Self, EngineError> {
        let partial = partial(image);
        let failed = |source| EngineError::io("copy RAM to", &partial, source);
        let copy = File::options().read(true).write(true).create(true).truncate(true).open(&partial).map_err(failed)?;
        let filled = match source {
            RamSource::Shared(file) => Shared::copy(file, &copy).map(|(ram, copied)| (Ram::Shared(ram), copied)),
            RamSource::CopyOnWrite { image, pid, address } => {
                Private::copy(&image, pid, address, &copy).map(|(ram, copied)| (Ram::Private(ram), copied))
            }
        };
        let (ram, copied) = filled.map_err(failed).inspect_err(|_| remove(&partial))?;
        Ok(Self { ram, image: image.to_path_buf(), partial, copy, copied })
    }

    /// Corrects the copy, and gives it its name. The machine must be paused since before this
    /// call, and its devices saved: saving may still write to RAM.
    ///
    /// Drop it once the machine goes on: unmapping takes a third as long as comparing did.
    pub fn finish(&self) -> Result<CaptureReport, EngineError> {
        let corrected = match &self.ram {
            Ram::Shared(ram) => ram.correct(&self.copy),
            Ram::Private(ram) => ram.correct(&self.copy),
        };
        let corrected = corrected.map_err(|source| EngineError::io("copy RAM to", &self.partial, source))?;
        fs::rename(&self.partial, &self.image)
            .map_err(|e| EngineError::io("complete the RAM image", &self.image, e))?;
        Ok(CaptureReport { copied: self.copied, corrected, shared: false })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        remove(&self.partial);
    }
}

/// Makes the RAM file of a machine that stands still an image: by a second name where that is possible.
pub(super) fn share(ram: &Path, image: &Path) -> Result<CaptureReport, EngineError> {
    match fs::hard_link(ram, image) {
        Ok(()) => Ok(CaptureReport { shared: true, ..CaptureReport::default() }),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let file = open(ram).map_err(|source| EngineError::io("open the RAM", ram, source))?;
            Capture::begin(RamSource::Shared(file), image)?.finish()
        }
        Err(error) => Err(EngineError::io("make RAM the file", image, error)),
    }
}

/// Opens the file that is a machine's RAM.
pub(super) fn open(ram: &Path) -> io::Result<File> {
    // Whatever is mapped is mapped for writing, too.
    File::options().read(true).write(true).open(ram)
}

fn partial(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_os_string();
    name.push(".partial");
    PathBuf::from(name)
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a partial RAM image was left behind");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::zeros::PAGE;

    const LENGTH: u64 = 4 << 20;

    fn ram(folder: &Path) -> File {
        let file = File::options().read(true).write(true).create_new(true).open(folder.join("ram")).unwrap();
        file.set_len(LENGTH).unwrap();
        for page in [0, 1, 5, 63, 64, 700, 1023] {
            file.write_all_at(&[(page % 251) as u8 + 1; PAGE], page * PAGE as u64).unwrap();
        }
        file
    }

    #[test]
    fn what_changes_between_begin_and_finish_is_in_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let ram = ram(folder.path());
        let image = folder.path().join("image");
        let capture = Capture::begin(RamSource::Shared(ram.try_clone().unwrap()), &image).unwrap();
        assert_eq!(capture.copied, 7 * PAGE as u64);
        for page in [5, 64, 65, 800, 1023] {
            ram.write_all_at(&[0xee; 10], page * PAGE as u64 + 17).unwrap();
        }
        ram.write_all_at(&[0; PAGE], 0).unwrap();
        assert!(!image.exists());
        let report = capture.finish().unwrap();
        assert_eq!(report.corrected, 6 * PAGE as u64);
        assert_eq!(fs::read(&image).unwrap(), fs::read(folder.path().join("ram")).unwrap());
    }

    #[test]
    fn comparing_fills_no_hole_of_the_image() {
        // Holes that are mapped are filled by reading them, on tmpfs.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let ram = ram(folder.path());
        ram.write_all_at(&vec![0; 8 * PAGE], 100 * PAGE as u64).unwrap();
        let image = folder.path().join("image");
        let capture = Capture::begin(RamSource::Shared(ram.try_clone().unwrap()), &image).unwrap();
        ram.write_all_at(&[1; PAGE], 103 * PAGE as u64).unwrap();
        ram.write_all_at(&[0; PAGE], 300 * PAGE as u64).unwrap();
        assert_eq!(capture.finish().unwrap().corrected, PAGE as u64);
        assert_eq!(fs::read(&image).unwrap(), fs::read(folder.path().join("ram")).unwrap());
        let there = |name: &str| fs::metadata(folder.path().join(name)).unwrap().blocks() * 512 / PAGE as u64;
        assert_eq!((there("ram"), there("image")), (7 + 8 + 1, 7 + 1));
    }

    #[test]
    fn an_abandoned_capture_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let capture = Capture::begin(RamSource::Shared(ram(folder.path())), &folder.path().join("image")).unwrap();
        drop(capture);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["ram"]);
    }

    #[test]
    fn sharing_gives_the_file_a_second_name() {
        let folder = tempfile::tempdir().unwrap();
        ram(folder.path());
        let (ram, image) = (folder.path().join("ram"), folder.path().join("image"));
        assert!(share(&ram, &image).unwrap().shared);
        fs::remove_file(&image).unwrap();
        assert!(ram.exists(), "an image that came to nothing takes no RAM with it");
        assert!(share(&ram, &image).unwrap().shared);
        let before = fs::read(&ram).unwrap();
        fs::remove_file(&ram).unwrap();
        assert_eq!(fs::read(image).unwrap(), before);
    }
}
