//! Copies of a machine's RAM, made while it runs and corrected while it is paused.
//!
//! Allocating pages costs ten times what comparing them does. So the copy is made before the
//! pause, wrong as it may be where the guest writes meanwhile; in the pause every page that can
//! differ is compared, and written only if it does.
//!
//! RAM of a machine that is to end is not copied at all where it is a file: that becomes the image. Nor is an image copied
//! that a machine was loaded from, if little has changed since: it gets a second name, and what differs is a [delta](delta).
//!
//! An image appears under its name only when it is complete: until then it is `NAME.partial`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};

use self::delta::Delta;
pub(super) use self::delta::lay;
use self::private::Private;
use self::shared::Shared;
use super::EngineError;

mod delta;
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
    /// Whether the image is a second name of a file that was there, without a copy: of the RAM itself, or of the image
    /// that the machine was loaded from.
    pub shared: bool,
    /// Whether there is a [delta](delta_of) over the image.
    pub delta: bool,
}

/// Where the image comes from.
#[derive(Debug)]
enum Work {
    /// The RAM's file, which has another name already, becomes it.
    Link,
    /// A copy, which is corrected.
    Copy { ram: Ram, copy: File, copied: u64 },
    /// The image that the machine was loaded from, and what differs from it.
    Delta { delta: Delta, copied: u64 },
}

/// What a copy is corrected from.
#[derive(Debug)]
enum Ram {
    Shared(Shared),
    Private(Private),
}

/// An image of RAM in the making. Dropping it removes what there is of a copy.
#[derive(Debug)]
pub struct Capture {
    work: Work,
    image: PathBuf,
    complete: bool,
}

impl Work {
    fn begin(source: RamSource, image: &Path) -> io::Result<Self> {
        let (base, pid, address) = match source {
            RamSource::Shared(ram) => {
                let copy = create(&partial(image))?;
                let (ram, copied) = Shared::copy(ram, &copy)?;
                return Ok(Self::Copy { ram: Ram::Shared(ram), copy, copied });
            }
            RamSource::CopyOnWrite { image, pid, address } => (image, pid, address),
        };
        let ram = Private::new(&base, pid, address)?;
        // All its names may be gone, or on another file system.
        if link(&base, &partial(image)).is_ok() {
            if let Some((delta, copied)) = Delta::copy(ram, base.try_clone()?, &delta_of(image))? {
                return Ok(Self::Delta { delta, copied });
            }
            fs::remove_file(partial(image))?;
            fs::remove_file(delta_of(image))?;
        }
        let copy = create(&partial(image))?;
        let copied = ram.copy(&base, &copy)?;
        Ok(Self::Copy { ram: Ram::Private(ram), copy, copied })
    }
}

impl Capture {
    /// Copies RAM to a new file beside `image`, or what differs from the image that the machine was loaded from. Blocks for
    /// about 1 ms per MiB that is copied; the machine may run meanwhile.
    pub fn begin(source: RamSource, image: &Path) -> Result<Self, EngineError> {
        let work = Work::begin(source, image).map_err(|source| {
            remove(&partial(image));
            remove(&delta_of(image));
            EngineError::io("copy RAM to", image, source)
        });
        Ok(Self { work: work?, image: image.to_path_buf(), complete: false })
    }

    /// The same for a machine that will not run again once this is finished: where its RAM is a file on the file system
    /// of `image`, no byte of it is copied, and the image is a second name of it.
    pub fn begin_last(source: RamSource, image: &Path) -> Result<Self, EngineError> {
        match &source {
            RamSource::Shared(file) if link(file, &partial(image)).is_ok() => {
                Ok(Self { work: Work::Link, image: image.to_path_buf(), complete: false })
            }
            _ => Self::begin(source, image),
        }
    }

    /// Corrects the copy, and gives it its name. The machine must be paused since before this
    /// call, and its devices saved: saving may still write to RAM.
    ///
    /// Drop it once the machine goes on: unmapping takes a third as long as comparing did.
    pub fn finish(&mut self) -> Result<CaptureReport, EngineError> {
        let Self { work, image, complete } = self;
        let finished = match work {
            Work::Link => Ok(CaptureReport { shared: true, ..CaptureReport::default() }),
            Work::Copy { ram, copy, copied } => {
                let corrected = match ram {
                    Ram::Shared(ram) => ram.correct(copy),
                    Ram::Private(ram) => ram.correct(copy),
                };
                corrected.map(|corrected| CaptureReport { copied: *copied, corrected, ..CaptureReport::default() })
            }
            Work::Delta { delta, copied } => {
                let report = CaptureReport { copied: *copied, shared: true, delta: true, ..CaptureReport::default() };
                delta.finish().map(|corrected| CaptureReport { corrected, ..report })
            }
        };
        let report = finished.map_err(|source| EngineError::io("copy RAM to", image, source))?;
        fs::rename(partial(image), &*image)
            .map_err(|source| EngineError::io("complete the RAM image", image, source))?;
        *complete = true;
        Ok(report)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !self.complete {
            remove(&partial(&self.image));
            remove(&delta_of(&self.image));
        }
    }
}

/// Where the delta over an image lies, if there is one.
pub fn delta_of(image: &Path) -> PathBuf {
    with_ending(image, ".delta")
}

/// Gives an open file another name. It must have one, on the same file system.
pub(crate) fn link(file: &File, path: &Path) -> io::Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Opens the file that is a machine's RAM.
pub(super) fn open(ram: &Path) -> io::Result<File> {
    // Whatever is mapped is mapped for writing, too.
    File::options().read(true).write(true).open(ram)
}

fn create(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

fn partial(image: &Path) -> PathBuf {
    with_ending(image, ".partial")
}

fn with_ending(image: &Path, ending: &str) -> PathBuf {
    let mut name = image.as_os_str().to_os_string();
    name.push(ending);
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

    fn copied(capture: &Capture) -> u64 {
        match capture.work {
            Work::Copy { copied, .. } => copied,
            Work::Link | Work::Delta { .. } => 0,
        }
    }

    #[test]
    fn what_changes_between_begin_and_finish_is_in_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let ram = ram(folder.path());
        let image = folder.path().join("image");
        let mut capture = Capture::begin(RamSource::Shared(ram.try_clone().unwrap()), &image).unwrap();
        assert_eq!(copied(&capture), 7 * PAGE as u64);
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
        let mut capture = Capture::begin(RamSource::Shared(ram.try_clone().unwrap()), &image).unwrap();
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
        let source = ram(folder.path());
        let (ram, image) = (folder.path().join("ram"), folder.path().join("image"));
        let share = || {
            let mut capture = Capture::begin_last(RamSource::Shared(source.try_clone().unwrap()), &image).unwrap();
            assert!(!image.exists(), "it has its name before the machine stands still");
            capture.finish().unwrap()
        };
        assert!(share().shared);
        fs::remove_file(&image).unwrap();
        assert!(ram.exists(), "an image that came to nothing takes no RAM with it");
        assert!(share().shared);
        let before = fs::read(&ram).unwrap();
        fs::remove_file(&ram).unwrap();
        assert_eq!(fs::read(image).unwrap(), before);
    }
}
