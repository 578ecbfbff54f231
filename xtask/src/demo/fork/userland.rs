//! The userland: a Debian with Python. Made of the host's own sources the first time, an image with a name afterwards.
//!
//! `mmdebstrap` makes it under `fakechroot`, whoever runs this: nothing is mounted, and no user but root needs rights.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use throughline_sandbox::image::{Image, ImageBuilder, ImageError, Images};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::super::output::Progress;

/// What the image is called. Another one for another userland: an image that is there is taken as it is.
const IMAGE: &str = "demo-debian";
const PACKAGE: &str = "python3-minimal";
/// Where the host has no Debian among its sources, this one, from wherever `mmdebstrap` thinks best.
const SUITE: &str = "stable";

/// How long all of it may take: a slow network.
const LONGEST: Duration = Duration::from_mins(20);
/// Room that is needed meanwhile, in bytes.
const ROOM: u64 = 1 << 30;
/// Lines of a failed program's end that are shown.
const SHOWN: usize = 12;

/// A Debian's suite and mirror.
#[derive(Debug, PartialEq)]
struct Source {
    suite: String,
    mirror: String,
}

/// The image, made if it is not there, with `folder` for what is needed on the way.
pub async fn image(folder: &Path, progress: &Progress) -> Result<Image> {
    let images = Images::new();
    let made = DirBuilder::new().mode(0o700).recursive(true).create(images.place());
    made.with_context(|| format!("cannot create {}", images.place().display()))?;
    // One at a time: whoever made the same image once more would take away the one that others are about to use.
    let _turn =
        timeout(LONGEST, turn(images.place())).await.context("another demo is making its userland, still")??;
    match blocking(images.clone(), |images| images.open_or_build(IMAGE, &ImageBuilder::new())).await? {
        Err(ImageError::Absent { .. }) => {}
        found => return Ok(found?),
    }
    progress.note("a Debian with Python is made for the guests, this one time (some minutes)");
    let archive = folder.join("debian.tar");
    timeout(LONGEST, make(&archive, folder, progress)).await.context("the userland is not made")??;
    progress.now("image of the userland");
    let builder = ImageBuilder::new().rootfs(&archive);
    Ok(blocking(images, move |images| images.build(IMAGE, &builder)).await??)
}

async fn blocking<T: Send + 'static>(images: Images, work: impl FnOnce(&Images) -> T + Send + 'static) -> Result<T> {
    Ok(tokio::task::spawn_blocking(move || work(&images)).await?)
}

async fn turn(folder: &Path) -> Result<File> {
    let file = File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(TryLockError::Error(error)) => bail!("cannot lock {}: {error}", folder.display()),
        }
    }
}

async fn make(archive: &Path, folder: &Path, progress: &Progress) -> Result<()> {
    let space = rustix::fs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    if space.f_bavail.saturating_mul(space.f_frsize) < ROOM {
        bail!("{} has less than 1 GiB of room; make some, or name another folder in TMPDIR", folder.display());
    }
    let source = source().await?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--mode=fakechroot", "--variant=minbase", "--format=tar"])
        .arg(format!("--include={PACKAGE}"))
        .arg(source.as_ref().map_or(SUITE, |source| &source.suite))
        .arg(archive)
        .args(source.as_ref().map(|source| &source.mirror))
        .env("TMPDIR", folder)
        // An ordinary user's lacks them, and the packages' scripts want them.
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    for (key, variable) in [("Acquire::http::Proxy", "http_proxy"), ("Acquire::https::Proxy", "https_proxy")] {
        let proxy = output("apt-config", &["dump", "--format", "%v%n", key]).await?;
        if !proxy.trim().is_empty() {
            command.env(variable, proxy.trim());
        }
    }
    let last = run(command, progress).await?;
    last.map_or(Ok(()), |last| {
        bail!(
            "mmdebstrap made no userland. Does `apt-get update` work here? Its last words:\n    {}",
            last.join("\n    ")
        )
    })
}

/// Runs it to its end, and shows what it does. Its last words if it fails.
async fn run(mut command: Command, progress: &Progress) -> Result<Option<Vec<String>>> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
    let mut child = command.spawn().context("cannot start mmdebstrap; `cargo xtask setup` installs it")?;
    let mut lines = BufReader::new(child.stderr.take().context("no error output")?).lines();
    let mut last = Vec::new();
    while let Some(line) = lines.next_line().await? {
        // What it overwrites on a terminal is over.
        let line = line.rsplit('\r').next().unwrap_or_default().trim();
        if let Some(doing) = line.strip_prefix("I: ") {
            progress.now(&format!("Debian: {doing}"));
        }
        if !line.is_empty() {
            last.push(line.to_owned());
        }
        last.drain(..last.len().saturating_sub(SHOWN));
    }
    Ok(if child.wait().await?.success() { None } else { Some(last) })
}

/// The host's own Debian, as apt knows it: its first source of that name.
async fn source() -> Result<Option<Source>> {
    let format = "$(LABEL)|$(COMPONENT)|$(ARCHITECTURE)|$(CODENAME)|$(REPO_URI)";
    let targets = output("apt-get", &["indextargets", "--format", format, "Created-By: Packages"]).await?;
    Ok(first(&targets))
}

fn first(targets: &str) -> Option<Source> {
    targets.lines().find_map(|line| match line.split('|').collect::<Vec<_>>()[..] {
        ["Debian", "main", "amd64", suite, mirror] if !suite.ends_with("-updates") => {
            Some(Source { suite: suite.to_owned(), mirror: mirror.to_owned() })
        }
        _ => None,
    })
}

/// What a program of apt's prints; nothing where there is none.
async fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("cannot start {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_the_hosts_own_debian_and_no_supplement_to_it() {
        let targets = "NodeSource|main|amd64|nodistro|https://node\n\
            Debian|main|amd64|bookworm-updates|http://mirror/debian/\n\
            Debian-Security|main|amd64|bookworm-security|http://mirror/security/\n\
            Debian|contrib|amd64|bookworm|http://mirror/debian/\n\
            Debian|main|i386|bookworm|http://mirror/debian/\n\
            Debian|main|amd64|bookworm|http://mirror/debian/\n";
        let expected = Source { suite: "bookworm".to_owned(), mirror: "http://mirror/debian/".to_owned() };
        assert_eq!(first(targets), Some(expected));
        assert_eq!(first("Ubuntu|main|amd64|noble|http://mirror/ubuntu/\n"), None);
    }

    #[tokio::test]
    async fn what_fails_is_told_with_its_last_words() {
        let fails = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let progress = Progress::new(1);
        let script = r"for i in $(seq 20); do echo I: step $i >&2; done; printf '10%%\rE: no network\n' >&2; exit 3";
        let last = run(fails(script), &progress).await.expect("it runs").expect("last words");
        assert_eq!((last.len(), last[0].as_str(), last[SHOWN - 1].as_str()), (SHOWN, "I: step 10", "E: no network"));
        assert_eq!(run(fails("echo I: fine >&2"), &progress).await.expect("it runs"), None);
    }
}
