//! Packages of the distribution: downloaded and unpacked, as any user may, and not installed.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::ImageError;
use super::progress::{BuildStep, Reporter};

/// How long a program may take: a download of 30 MB over a slow line.
const DEADLINE: Duration = Duration::from_mins(10);
/// Between two looks at how far a program is.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// The package manager's own deadlines, far shorter.
const NETWORK: [&str; 4] = ["-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=2"];

/// The distribution's package manager.
pub(super) struct Manager<'a> {
    program: &'a Path,
}

impl<'a> Manager<'a> {
    pub(super) fn new(program: &'a Path) -> Self {
        Self { program }
    }

    /// The package that a meta-package depends on, whose name starts with `prefix`.
    pub(super) fn dependency(&self, meta: &str, prefix: &str) -> Result<String, ImageError> {
        // A simulation resolves like an installation and needs no rights.
        let output = self.run(meta, Path::new("/"), &["--simulate", "--no-install-recommends", "install", meta])?;
        let mut names = output.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
        let found = names.find(|name| name.starts_with(prefix) && *name != meta);
        match found {
            Some(name) => Ok(name.to_owned()),
            None => dependency_of_installed(meta, prefix),
        }
    }

    /// Downloads a package into `folder` and unpacks it into `folder/unpacked`. Returns the
    /// package's file name, which tells its version, and the folder.
    pub(super) fn unpack(
        &self,
        package: &str,
        folder: &Path,
        reporter: &Reporter,
    ) -> Result<(String, PathBuf), ImageError> {
        let total = self.run(package, folder, &["--print-uris", "download", package]).ok();
        let total = total.and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
        let mut tell = || reporter.tell(BuildStep::Kernel, size_of(folder), total);
        let download = self.command(folder, &["download", package]);
        Task { subject: package, stdin: Stdio::null(), deadline: DEADLINE, tick: &mut tell }.run(download)?;
        let entries = fs::read_dir(folder).map_err(|source| ImageError::io("read", folder, source))?;
        let archive = entries.filter_map(Result::ok).map(|entry| entry.path());
        let archive = archive.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
        let archive = archive.ok_or_else(|| ImageError::UnknownPackage { package: package.to_owned() })?;
        let unpacked = folder.join("unpacked");
        let mut extract = Command::new("dpkg-deb");
        extract.arg("--extract").arg(&archive).arg(&unpacked);
        run(extract, package)?;
        let name = archive.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, unpacked))
    }

    fn run(&self, package: &str, folder: &Path, arguments: &[&str]) -> Result<String, ImageError> {
        run(self.command(folder, arguments), package)
    }

    fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(NETWORK).args(arguments).current_dir(folder);
        command
    }
}

/// Bytes of a folder's files.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|data| data.len()).sum()
}

/// What is installed is not in a simulation's plan.
fn dependency_of_installed(meta: &str, prefix: &str) -> Result<String, ImageError> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Depends}", meta]);
    let output = run(query, meta)?;
    let name = output.split([',', '|']).map(str::trim).find(|name| name.starts_with(prefix));
    let name = name.and_then(|name| name.split_whitespace().next());
    name.map(str::to_owned).ok_or_else(|| ImageError::UnknownPackage { package: meta.to_owned() })
}

/// The program's path, if it is installed.
pub(super) fn find_program(program: &str) -> Result<PathBuf, ImageError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file());
    found.ok_or_else(|| missing(program))
}

/// The error for a program that is not there, with where it comes from.
fn missing(program: &str) -> ImageError {
    const PACKAGES: [(&str, &str); 7] = [
        ("bzip2", "bzip2"),
        ("mkfs.erofs", "erofs-utils"),
        ("fakeroot", "fakeroot"),
        ("tar", "tar"),
        ("gzip", "gzip"),
        ("xz", "xz-utils"),
        ("zstd", "zstd"),
    ];
    match PACKAGES.into_iter().find(|(name, _)| *name == program) {
        Some((program, package)) => ImageError::ProgramMissing { program, package },
        None => ImageError::PackageManagerMissing { program: program.to_owned() },
    }
}

/// Runs a program to its end, or to the deadline, and returns what it printed.
pub(super) fn run(command: Command, package: &str) -> Result<String, ImageError> {
    Task { subject: package, stdin: Stdio::null(), deadline: DEADLINE, tick: &mut || () }.run(command)
}

/// Runs a program, and returns its output's bytes.
pub(super) fn output_of(mut command: Command, subject: &str) -> Result<Vec<u8>, ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => Err(judge(program, subject, &String::from_utf8_lossy(&output.stderr))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(&program)),
        Err(source) => Err(ImageError::io("run", Path::new(&program), source)),
    }
}

/// How a program is run.
pub(super) struct Task<'a> {
    /// What it works on, for errors.
    pub(super) subject: &'a str,
    pub(super) stdin: Stdio,
    pub(super) deadline: Duration,
    /// Called some ten times a second meanwhile.
    pub(super) tick: &'a mut dyn FnMut(),
}

impl Task<'_> {
    /// Runs the program to its end, or to the deadline, and returns what it printed.
    pub(super) fn run(self, mut command: Command) -> Result<String, ImageError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |source| ImageError::io("run", Path::new(&program), source);
        // A file, not a pipe: nobody has to read while it runs, however much it prints.
        let mut output = tempfile::tempfile().map_err(failed)?;
        let share = |file: &File| file.try_clone().map_err(failed);
        command.stdin(self.stdin).stdout(share(&output)?).stderr(share(&output)?).env("LC_ALL", "C");
        let child = match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(&program)),
            child => child.map_err(failed)?,
        };
        let status = wait(child, self.deadline, self.tick).map_err(failed)?;
        let mut bytes = Vec::new();
        output.rewind().and_then(|()| output.read_to_end(&mut bytes)).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        match status {
            Some(status) if status.success() => Ok(text),
            Some(_) => Err(judge(program, self.subject, &text)),
            None => Err(ImageError::Deadline { program, package: self.subject.to_owned(), deadline: self.deadline }),
        }
    }
}

/// Waits for a child; None when the deadline ended it.
fn wait(mut child: Child, deadline: Duration, tick: &mut dyn FnMut()) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(&child);
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + deadline;
    while Instant::now() < deadline {
        let ended = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&TICK));
        if !matches!(ended, Ok(0) | Err(rustix::io::Errno::INTR)) {
            return child.wait().map(Some);
        }
        tick();
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// Makes an error of a program's words, which are all that it gives.
fn judge(program: String, package: &str, output: &str) -> ImageError {
    const NETWORK: [&str; 6] = [
        "Could not resolve",
        "Temporary failure",
        "Could not connect",
        "Failed to fetch",
        "Unable to fetch",
        "timed out",
    ];
    let package = package.to_owned();
    let says = |words: &str| output.contains(words);
    let line = |line: &&str| {
        let told = ["E:", "<E>", "tar: "].iter().any(|start| line.starts_with(start)) || line.contains("error:");
        told && !line.starts_with("tar: Removing")
    };
    let reason = output.lines().find(line).or_else(|| output.lines().last()).unwrap_or_default().to_owned();
    if says("No space left on device") || says("enough free space") {
        return ImageError::NoSpace { doing: "unpack", path: PathBuf::from(package) };
    }
    if says("Unable to locate package") || says("no installation candidate") || says("Can't find a source") {
        return ImageError::UnknownPackage { package };
    }
    if NETWORK.iter().any(|words| says(words)) {
        return ImageError::Offline { package, reason };
    }
    ImageError::Failed { program, package, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_package_manager_become_errors() {
        let judge = |output: &str| judge("apt-get".into(), "kernel", output);
        let unresolved = "E: Failed to fetch http://h/x.deb  Could not resolve 'h'\nE: Unable to fetch some archives";
        assert!(matches!(judge(unresolved), ImageError::Offline { .. }));
        assert!(matches!(judge("E: Unable to locate package x"), ImageError::UnknownPackage { .. }));
        assert!(matches!(judge("tar: write error: No space left on device"), ImageError::NoSpace { .. }));
        let cut = judge("tar: Removing leading `/'\ntar: Unexpected EOF in archive\ntar: Exiting");
        assert!(matches!(cut, ImageError::Failed { reason, .. } if reason.contains("Unexpected EOF")));
        assert!(matches!(judge("E: other"), ImageError::Failed { reason, .. } if reason == "E: other"));
    }
}
