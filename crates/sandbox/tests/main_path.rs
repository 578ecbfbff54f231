//! The main path on a real guest: boot, exec, snapshot with traffic, restore, again and again.

mod userland;

use std::time::Duration;

use throughline_sandbox::Sandbox;
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::image::ImageBuilder;
use throughline_wire::exec::Exit;

const WATCHDOG: Duration = Duration::from_mins(4);

async fn watched(test: impl Future<Output = ()>) {
    tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_main_path() {
    watched(async {
        let image = tokio::task::spawn_blocking(|| ImageBuilder::new().build()).await.unwrap().unwrap();
        let sandbox = Sandbox::builder(image).create().await.unwrap();
        println!("ready after {:?}", sandbox.timings().ready);
        let output = sandbox.command("sh").arg("-c").arg("echo out; echo err >&2; exit 3").output().await.unwrap();
        assert_eq!(output.exit, Exit::Code(3));
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
        let folder = tempfile::Builder::new().prefix("throughline-test-").tempdir_in("/dev/shm").unwrap();
        let (bundle, report) = sandbox.snapshot(&folder.path().join("one")).await.unwrap();
        println!("{report:?}");
        let output = sandbox.command("echo").arg("still").output().await.unwrap();
        assert_eq!(output.stdout, b"still\n");
        sandbox.kill().await.unwrap();
        let bundle = Bundle::open(bundle.folder()).unwrap();
        let started = std::time::Instant::now();
        let restored = Sandbox::restore(bundle).start().await.unwrap();
        println!("restored after {:?} {:?}", started.elapsed(), restored.timings());
        let output = restored.command("echo").arg("again").output().await.unwrap();
        assert_eq!(output.stdout, b"again\n");
        restored.kill().await.unwrap();
    })
    .await;
}

/// An archive with owners that the builder is not, as whoever builds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_main_path_any_userland() {
    watched(async {
        let folder = tempfile::Builder::new().prefix("throughline-test-").tempdir_in("/dev/shm").unwrap();
        let archive = userland::archive(folder.path(), userland::FEW);
        let build = move || ImageBuilder::new().rootfs(archive).build();
        let image = tokio::task::spawn_blocking(build).await.unwrap().unwrap();
        let sandbox = Sandbox::builder(image).create().await.unwrap();
        println!("ready after {:?}", sandbox.timings().ready);
        let output = sandbox.command("stat").args(["-c", "%U:%G %a", "/home/alice/own", "/bin/busybox"]);
        assert_eq!(output.output().await.unwrap().stdout, b"alice:staff 644\nroot:root 4755\n");
        let output = sandbox.command("sh").args(["-c", "echo hers too >> own"]).user("alice").output().await.unwrap();
        assert_eq!(output.exit, Exit::Code(0), "{}", String::from_utf8_lossy(&output.stderr));
        let (bundle, report) = sandbox.snapshot_and_stop(&folder.path().join("one")).await.unwrap();
        println!("{report:?}");
        let restored = Sandbox::restore(bundle).start().await.unwrap();
        println!("restored {:?}", restored.timings());
        let output = restored.command("cat").arg("/home/alice/own").output().await.unwrap();
        assert_eq!(output.stdout, b"hers\nhers too\n");
        restored.kill().await.unwrap();
    })
    .await;
}
