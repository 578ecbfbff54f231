//! A template to restore from, and a look at what is left behind.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use throughline::{Region, Sidecar, SidecarError};
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::image::{Image, ImageBuilder};
use throughline_sandbox::{Child, ChildEvent, Output, Sandbox};
use throughline_wire::exec::Exit;

/// How long anything may take before a test is called hung.
const WATCHDOG: Duration = Duration::from_secs(200);
/// Between two looks at something that nobody tells.
const LOOK: Duration = Duration::from_millis(2);

/// Writes its lineage down, as programs of the user's would.
pub const HOOK: &str = "mkdir -p /etc/throughline/restore.d && cd /etc/throughline/restore.d && \
    printf '#!/bin/sh\\necho $THROUGHLINE_EPOCH $THROUGHLINE_PARENT $THROUGHLINE_INDEX > /run/lineage\\n' > 10-lineage && \
    chmod 755 10-lineage";

/// Runs a test under the watchdog.
pub fn watched<T>(test: impl Future<Output = T>) -> Pin<Box<impl Future<Output = T>>> {
    // On the heap: tests hold whole sandboxes.
    Box::pin(async move { tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs") })
}

/// Looks until `done` says so; the watchdog is the test's.
pub async fn until<F: Future<Output = bool>>(mut done: impl FnMut() -> F) {
    while !done().await {
        tokio::time::sleep(LOOK).await;
    }
}

/// A new folder on tmpfs.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("throughline-test-").tempdir_in("/dev/shm").expect("a folder on tmpfs")
}

/// A name that no other test has.
pub fn name(test: &str) -> String {
    format!("{test}-{}", std::process::id())
}

/// The image with this build's agent.
pub async fn image() -> Image {
    let build = || ImageBuilder::new().build();
    tokio::task::spawn_blocking(build).await.expect("a builder").expect("an image")
}

/// A snapshot of a guest that has just booted, on the disk that the build's files are on. Its age is
/// anything from seconds to days.
pub async fn template() -> Bundle {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates");
    fs::create_dir_all(&all).expect("a folder for templates");
    let lock = File::create(all.join("lock")).expect("a lock");
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock));
    let _lock = lock.await.expect("a thread").expect("the lock");
    let image = image().await;
    // Another build may make other snapshots.
    let program = fs::metadata(std::env::current_exe().expect("a path")).expect("this program");
    let own = all.join(format!("{}-{}-{}", image.id(), program.len(), program.mtime()));
    if let Ok(bundle) = Bundle::open(&own) {
        return bundle;
    }
    for old in fs::read_dir(&all).expect("the templates").map(|entry| entry.expect("a template").path()) {
        if old.is_dir() {
            fs::remove_dir_all(old).expect("an old template goes");
        }
    }
    let sandbox = Sandbox::builder(image).create().await.expect("a booted sandbox");
    text(&sandbox, HOOK).await;
    sandbox.snapshot_and_stop(&own).await.expect("a template").0
}

/// A sandbox from the template.
pub async fn restored() -> Sandbox {
    Sandbox::restore(template().await).start().await.expect("a restored sandbox")
}

/// Leaves a sandbox to whoever takes it over; its name.
pub async fn let_go(sandbox: Sandbox) -> String {
    let name = sandbox.name().to_owned();
    sandbox.detach();
    drop(sandbox);
    unheld(&name).await;
    name
}

/// Waits until nobody drives a sandbox: tasks let go of the lease a moment after it was dropped.
pub async fn unheld(name: &str) {
    let current = places(name)[0].join("current");
    let region = Region::open(&current.join("region")).expect("a region");
    let held = || {
        let opened = Sidecar::open(&current.join("sidecar"), &region);
        matches!(opened, Err(SidecarError::Held { .. } | SidecarError::RegionHeld { .. }))
    };
    until(async || !held()).await;
}

/// Runs a shell script.
pub async fn run(sandbox: &Sandbox, script: &str) -> Output {
    sandbox.command("sh").args(["-c", script]).output().await.expect("a command's output")
}

/// Runs a shell script that succeeds and prints text.
pub async fn text(sandbox: &Sandbox, script: &str) -> String {
    let output = run(sandbox, script).await;
    assert_eq!(output.exit, Exit::Code(0), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

/// What a command printed, held against what it should print.
pub struct Reader {
    pub child: Child,
    /// Position of the next byte; unknown before the first, where the command was taken over.
    pub at: Option<u64>,
    pub bytes: Vec<u8>,
    pub exit: Option<Exit>,
}

impl Reader {
    /// Of a command that was just started.
    pub fn new(child: Child) -> Self {
        Self { child, at: Some(0), bytes: Vec::new(), exit: None }
    }

    /// Of a command with this label that nobody holds.
    pub fn adopt(sandbox: &Sandbox, label: &str) -> Self {
        let channels = sandbox.link().channels();
        let channel = channels.iter().find(|channel| channel.label == label);
        let channel = channel.unwrap_or_else(|| panic!("no channel {label} among {channels:?}"));
        let child = sandbox.adopt_command(channel.id).expect("a command to take over");
        Self { child, at: None, bytes: Vec::new(), exit: None }
    }

    /// The next piece of output; whether there was one.
    pub async fn step(&mut self) -> bool {
        loop {
            match self.child.events.next().await.expect("an event") {
                Some(ChildEvent::Stdout { at, data }) => {
                    assert_eq!(at, self.at.unwrap_or(at), "output is missing, or came twice");
                    self.at = Some(at + data.len() as u64);
                    self.bytes.extend(data);
                    return true;
                }
                Some(ChildEvent::Exited(exit)) => self.exit = Some(exit),
                Some(ChildEvent::Started { .. } | ChildEvent::Status(_)) => {}
                Some(ChildEvent::Stderr { data, .. }) => panic!("{}", String::from_utf8_lossy(&data)),
                None => return false,
            }
        }
    }

    /// Reads at least so many bytes more.
    pub async fn read(&mut self, bytes: usize) {
        let enough = self.bytes.len() + bytes;
        while self.bytes.len() < enough {
            assert!(self.step().await, "the output ended after {} bytes", self.bytes.len());
        }
    }

    /// Reads to the end.
    pub async fn finish(&mut self) {
        while self.step().await {}
    }
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(now.as_nanos()).expect("a clock before 2554")
}

/// Waits until a bundle is so old that a clock which stood still since would show it.
pub async fn aged(bundle: &Bundle, age: Duration) {
    let born = Duration::from_millis(bundle.manifest().created_ms);
    let age = age.saturating_sub(Duration::from_nanos(now()).saturating_sub(born));
    tokio::time::sleep(age).await;
}

/// The folders of a running sandbox: on tmpfs, and for sockets and logs.
pub fn places(name: &str) -> [PathBuf; 2] {
    let uid = rustix::process::getuid().as_raw();
    let runtime = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(folder) => folder.join("throughline"),
        None if uid == 0 => PathBuf::from("/run/throughline"),
        None => std::env::temp_dir().join(format!("throughline-{uid}")),
    };
    [PathBuf::from(format!("/dev/shm/throughline-{uid}")).join(name), runtime.join(name)]
}

/// Waits until nothing of a sandbox is left: no folder, and no process that this one started.
pub async fn gone(name: &str) {
    until(async || children().is_empty()).await;
    for place in places(name) {
        assert!(!place.exists(), "{} was left behind", place.display());
    }
}

/// The processes that this one started.
pub fn children() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("this process's threads");
    let children = tasks.map(|task| fs::read_to_string(task.expect("a thread").path().join("children")));
    children
        .flat_map(|text| text.unwrap_or_default().split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter(|pid| !pid.trim().is_empty())
        .collect()
}

/// Copies a bundle, or a sandbox's folder.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    let copied = std::process::Command::new("cp").args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to).status();
    assert!(copied.expect("cp").success());
}
