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

/// Runs the test of this name once more, in a mount namespace of its own: with an empty /dev/shm, and a small file
/// system besides.
async fn inside(test: &'static str) {
    template().await;
    // A mount is for root to make: here it is root of a namespace, where that is needed.
    let outside: &[&str] = if rustix::process::getuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let folder = folder();
    let script = "mount -t tmpfs none /dev/shm && mkdir -p \"$1/run\" \"$1/small\" && \
                  mount -t tmpfs -o size=200m none \"$1/small\" && export XDG_RUNTIME_DIR=\"$1/run\" && exec \"$2\" \
                  --exact \"$3\" --nocapture";
    let mut command = Command::new("unshare");
    command.args(outside).args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(folder.path()).arg(std::env::current_exe().unwrap()).arg(test);
    command.env(SMALL, folder.path().join("small"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("1 passed"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_snapshot_without_space_fails_clearly_and_the_sandbox_goes_on() {
    watched(async {
        match std::env::var_os(SMALL).map(PathBuf::from) {
            Some(small) => fills_up(&small).await,
            None => inside("space::vm_snapshot_without_space_fails_clearly_and_the_sandbox_goes_on").await,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_without_memory_fails_clearly_and_the_others_go_on() {
    watched(async {
        if std::env::var_os(SMALL).is_none() {
            return inside("space::vm_fork_without_memory_fails_clearly_and_the_others_go_on").await;
        }
        let sandbox = Sandbox::restore(template().await).start().await.unwrap();
        let shm = Path::new("/dev/shm");
        let (ballast, all) =
            (shm.join("ballast"), Path::new("/dev/shm").join(sandbox.memory().parent().unwrap().parent().unwrap()));
        let sandboxes = || fs::read_dir(&all).unwrap().filter(|entry| !hidden(entry.as_ref().unwrap())).count();
        // No room for a zygote.
        fill(&ballast, 4 << 20);
        let error = sandbox.zygote().await.unwrap_err().to_string();
        assert!(error.contains("no space") && error.contains("make room"), "{error}");
        fs::remove_file(&ballast).unwrap();
        let zygote = sandbox.zygote().await.unwrap();
        // Room for some children, and then for hardly one.
        for free in [3 << 20, 0] {
            fill(&ballast, free);
            let (mut born, mut failed) = (Vec::new(), Vec::new());
            for child in zygote.spawn_many(12).await {
                match child {
                    Ok(child) => born.push(child),
                    Err(error) => failed.push(error.to_string()),
                }
            }
            println!("{free} bytes free: {} children, the others: {failed:?}", born.len());
            assert!(!failed.is_empty());
            for error in failed {
                assert!(error.contains("space") || error.contains("memory"), "{error}");
            }
            assert_eq!(sandboxes(), 1 + born.len(), "those that failed left nothing");
            fs::remove_file(&ballast).unwrap();
            for child in born {
                assert_eq!(text(&child, "echo on").await, "on");
                child.kill().await.unwrap();
            }
        }
        for child in zygote.spawn_many(2).await {
            child.unwrap().kill().await.unwrap();
        }
        assert_eq!(text(&sandbox, "echo on").await, "on");
        sandbox.kill().await.unwrap();
    })
    .await;
}

/// Claims, zygotes: what is no sandbox.
fn hidden(entry: &fs::DirEntry) -> bool {
    b".+".contains(&entry.file_name().as_encoded_bytes()[0])
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
