//! Packages of the distribution: downloaded and unpacked, as any user may, and not installed.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::ImageError;

/// How long a program may take: a download of 30 MB over a slow line.
const DEADLINE: Duration = Duration::from_mins(10);
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
    pub(super) fn unpack(&self, package: &str, folder: &Path) -> Result<(String, PathBuf), ImageError> {
        self.run(package, folder, &["download", package])?;
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
        let mut command = Command::new(self.program);
        command.args(NETWORK).args(arguments).current_dir(folder);
        run(command, package)
    }
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

/// Runs a program to its end, or to the deadline, and returns what it printed.
pub(super) fn run(mut command: Command, package: &str) -> Result<String, ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| ImageError::io("run", Path::new(&program), source);
    // A file, not a pipe: nobody has to read while it runs, however much it prints.
    let mut output = tempfile::tempfile().map_err(failed)?;
    let share = |file: &File| file.try_clone().map_err(failed);
    command.stdin(Stdio::null()).stdout(share(&output)?).stderr(share(&output)?).env("LC_ALL", "C");
    let child = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ImageError::PackageManagerMissing { program });
        }
        child => child.map_err(failed)?,
    };
    let status = wait(child).map_err(failed)?;
    let mut bytes = Vec::new();
    output.rewind().and_then(|()| output.read_to_end(&mut bytes)).map_err(failed)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match status {
        Some(status) if status.success() => Ok(text),
        Some(_) => Err(judge(program, package, &text)),
        None => Err(ImageError::Deadline { program, package: package.to_owned(), deadline: DEADLINE }),
    }
}

/// Waits for a child; None when the deadline ended it.
fn wait(mut child: Child) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(&child);
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&deadline));
    if ended != Ok(0) {
        return child.wait().map(Some);
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
    let line = |line: &&str| line.starts_with("E:") || line.contains("error:");
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
        assert!(matches!(judge("E: other"), ImageError::Failed { reason, .. } if reason == "E: other"));
    }
}
