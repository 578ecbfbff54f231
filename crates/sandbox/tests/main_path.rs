//! The main path on a real guest: boot, exec, snapshot with traffic, restore, again and again.

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
