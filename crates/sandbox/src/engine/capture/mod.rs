//! Copies of a machine's RAM, made while it runs and corrected while it is paused.
//!
//! Allocating pages costs ten times what comparing them does. So the copy is made before the
//! pause, wrong as it may be where the guest writes meanwhile; in the pause every page that can
//! differ is compared, and written only if it does. What is compared is mapped before the pause: reading it then takes
//! neither system calls nor page faults.
//!
//! An image appears under its name only when it is complete: until then it is `NAME.partial`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use throughline_shmem::{Mapping, Populate, WORD, Words};

use super::EngineError;
use crate::zeros::{PAGE, is_zero};

mod private;

/// How much is read at a time, in bytes: fits a core's cache together with what it is compared to.
const CHUNK: usize = 256 * 1024;
/// How many threads compare. More than two leave nothing for the guest.
const THREADS: u64 = 2;

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

/// Where bytes are read.
trait Source: Sync {
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }
}

impl Source for Mapping {
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.copy_out(at as usize / WORD, bytes);
        Ok(())
    }
}

/// What RAM is corrected from.
#[derive(Debug)]
enum Ram {
    /// A file, and the same mapped.
    Shared(File, Mapping),
    /// A monitor, and where it has mapped the image.
    CopyOnWrite { pid: i32, address: u64 },
}

/// A copy of RAM in the making. Dropping it removes what there is of the copy.
#[derive(Debug)]
pub struct Capture {
    ram: Ram,
    image: PathBuf,
    partial: PathBuf,
    copy: File,
    length: u64,
    copied: u64,
}

impl Capture {
    /// Copies RAM to a new file beside `image`. Blocks for about 1 ms per MiB in use; the machine
    /// may run meanwhile.
    pub fn begin(source: RamSource, image: &Path) -> Result<Self, EngineError> {
        let partial = partial(image);
        let failed = |source| EngineError::io("copy RAM to", &partial, source);
        let copy = File::options().read(true).write(true).create(true).truncate(true).open(&partial).map_err(failed)?;
        let filled = fill(source, &copy).map_err(failed).inspect_err(|_| remove(&partial));
        let (ram, length, copied) = filled?;
        let mut capture = Self { ram, image: image.to_path_buf(), partial, copy, length, copied };
        if let Ram::CopyOnWrite { .. } = capture.ram {
            capture.copied += capture.correct()?;
        }
        Ok(capture)
    }

    /// Corrects the copy, and gives it its name. The machine must be paused since before this
    /// call, and its devices saved: saving may still write to RAM.
    pub fn finish(self) -> Result<CaptureReport, EngineError> {
        let corrected = self.correct()?;
        fs::rename(&self.partial, &self.image)
            .map_err(|e| EngineError::io("complete the RAM image", &self.image, e))?;
        Ok(CaptureReport { copied: self.copied, corrected, shared: false })
    }

    fn correct(&self) -> Result<u64, EngineError> {
        let corrected = match &self.ram {
            Ram::Shared(file, memory) => correct_shared(file, memory, &self.copy, self.length),
            Ram::CopyOnWrite { pid, address } => private::correct(*pid, *address, &self.copy, self.length),
        };
        corrected.map_err(|source| EngineError::io("copy RAM to", &self.partial, source))
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

/// Copies what there is of RAM. Returns what to correct the copy from, RAM's length, and how much was copied.
fn fill(source: RamSource, copy: &File) -> io::Result<(Ram, u64, u64)> {
    match source {
        RamSource::Shared(file) => {
            let length = file.metadata()?.len();
            let memory = Mapping::file(&file, length, Populate::OnTouch).map_err(io::Error::other)?;
            let copied = copy_sparse(&file, &memory, copy, length)?;
            Ok((Ram::Shared(file, memory), length, copied))
        }
        RamSource::CopyOnWrite { image, pid, address } => {
            let length = image.metadata()?.len();
            let cloned = rustix::fs::ioctl_ficlone(copy, &image).is_ok();
            let copied = if cloned { length } else { copy_sparse(&image, &image, copy, length)? };
            Ok((Ram::CopyOnWrite { pid, address }, length, copied))
        }
    }
}

/// Copies what is not zero of a file, reading it at `source`.
fn copy_sparse(from: &File, source: &impl Source, to: &File, length: u64) -> io::Result<u64> {
    to.set_len(length)?;
    let mut copied = 0;
    let mut buffer = vec![0; CHUNK];
    for (start, end) in segments(from, 0, length)? {
        let mut at = start;
        while at < end {
            let bytes = &mut buffer[..CHUNK.min((end - at) as usize)];
            source.read(bytes, at)?;
            copied += write_runs(to, bytes, at, |page, _| !is_zero(page))?;
            at += bytes.len() as u64;
        }
    }
    Ok(copied)
}

/// Compares all of RAM to its copy, and writes the pages that differ.
fn correct_shared(ram: &File, memory: &Mapping, copy: &File, length: u64) -> io::Result<u64> {
    let share = (length / THREADS).next_multiple_of(CHUNK as u64);
    std::thread::scope(|scope| {
        let shares: Vec<_> = (0..THREADS)
            .map(|index| (share * index, length.min(share * (index + 1))))
            .filter(|(start, end)| start < end)
            .map(|(start, end)| scope.spawn(move || correct_range(ram, memory, copy, start, end)))
            .collect();
        shares.into_iter().try_fold(0, |sum, thread| {
            let corrected = thread.join().map_err(|_| io::Error::other("a comparing thread panicked"))??;
            Ok(sum + corrected)
        })
    })
}

fn correct_range(ram: &File, memory: &Mapping, copy: &File, start: u64, end: u64) -> io::Result<u64> {
    let mut corrected = 0;
    let (mut new, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
    // Holes of RAM are holes of the copy: guests do not give pages back.
    for (mut at, end) in segments(ram, start, end)? {
        while at < end {
            let size = CHUNK.min((end - at) as usize);
            memory.read(&mut new[..size], at)?;
            corrected += correct_chunk(copy, &new[..size], &mut old[..size], at)?;
            at += size as u64;
        }
    }
    Ok(corrected)
}

/// Writes the pages of `new` in which the copy at `at` differs; `old` is scratch of the same size.
fn correct_chunk(copy: &File, new: &[u8], old: &mut [u8], at: u64) -> io::Result<u64> {
    copy.read_exact_at(old, at)?;
    if new == old {
        return Ok(0);
    }
    write_runs(copy, new, at, |page, offset| *page != old[offset..offset + page.len()])
}

/// Writes the pages of `bytes` that are `wanted`, adjacent ones together. Returns how many bytes.
fn write_runs(to: &File, bytes: &[u8], at: u64, wanted: impl Fn(&[u8], usize) -> bool) -> io::Result<u64> {
    let mut written = 0;
    let mut run = 0..0;
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        let start = index * PAGE;
        if wanted(page, start) {
            if run.end != start || run.is_empty() {
                run.start = start;
            }
            run.end = start + page.len();
            if run.end < bytes.len() {
                continue;
            }
        }
        if !run.is_empty() {
            to.write_all_at(&bytes[run.clone()], at + run.start as u64)?;
            written += run.len() as u64;
            run = 0..0;
        }
    }
    Ok(written)
}

/// The parts of a file between `start` and `end` that are not holes.
fn segments(file: &File, start: u64, end: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = start;
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?.min(end);
        found.push((data, hole));
        at = hole;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

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
