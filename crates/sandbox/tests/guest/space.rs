//! A place without room for a snapshot: a clear error, and the sandbox goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use throughline_sandbox::bundle::{Bundle, BundleError};
use throughline_sandbox::engine::EngineError;
use throughline_sandbox::{Sandbox, SandboxError, Stage};

use crate::support::{folder, template, text, watched};

const SMALL: &str = "THROUGHLINE_TEST_SMALL";

/// The inner half runs in a mount namespace of its own, with a small file system to write to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_snapshot_without_space_fails_clearly_and_the_sandbox_goes_on() {
    if let Some(folder) = std::env::var_os(SMALL).map(PathBuf::from) {
        return watched(fills_up(&folder)).await;
    }
    watched(async {
        template().await;
        // A mount is for root to make: here it is root of a namespace, where that is needed.
        let outside: &[&str] = if rustix::process::getuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
        let folder = folder();
        let script = "mount -t tmpfs none /dev/shm && mkdir -p \"$1/run\" \"$1/small\" && \
                      mount -t tmpfs -o size=200m none \"$1/small\" && export XDG_RUNTIME_DIR=\"$1/run\" && exec \"$2\" \
                      --exact space::vm_snapshot_without_space_fails_clearly_and_the_sandbox_goes_on --nocapture";
        let mut command = Command::new("unshare");
        command.args(outside).args(["--mount", "sh", "-c", script, "sh"]);
        command.arg(folder.path()).arg(std::env::current_exe().unwrap()).env(SMALL, folder.path().join("small"));
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && words.contains("1 passed"), "{words}");
    })
    .await;
}

async fn fills_up(small: &Path) {
    let sandbox = Sandbox::restore(template().await).start().await.unwrap();
    let place = small.join("bundle");
    // Before the copy of RAM, when it is complete, and when the guest stands still.
    for stage in [None, Some(Stage::Quieting), Some(Stage::Paused)] {
        let ballast = small.join("ballast");
        if stage.is_none() {
            fill(&ballast, 20 << 20);
        }
        let filling = ballast.clone();
        let observer = move |now| {
            if Some(now) == stage {
                fill(&filling, 0);
            }
        };
        let error = sandbox.snapshot_with(&place).observer(observer).take().await.unwrap_err();
        println!("{stage:?}: {error}");
        let typed = matches!(
            error,
            SandboxError::Bundle(BundleError::NoSpace(_)) | SandboxError::Engine(EngineError::NoSpace { .. })
        );
        let words = error.to_string();
        assert!(typed && words.contains("no space") && words.contains("make room"), "{stage:?}: {error:?}");
        assert!(words.contains(small.to_str().unwrap()), "{stage:?}: {error}");
        fs::remove_file(&ballast).unwrap();
        assert_eq!(fs::read_dir(small).unwrap().count(), 0, "nothing is left");
        assert_eq!(text(&sandbox, "echo on").await, "on");
    }
    sandbox.snapshot(&place).await.unwrap();
    Bundle::open(&place).unwrap();
    sandbox.kill().await.unwrap();
}

/// Takes all of the file system but so many bytes.
fn fill(ballast: &Path, free: u64) {
    let file = File::create(ballast).unwrap();
    let space = statvfs(ballast.parent().unwrap()).unwrap();
    let length = space.f_bavail * space.f_frsize - free;
    fallocate(&file, FallocateFlags::empty(), 0, length).unwrap();
}
