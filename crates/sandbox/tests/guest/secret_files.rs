//! Secrets that are given to a guest: there whenever something runs, and in no bundle.

use std::fs;
use std::path::{Path, PathBuf};

use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::{Sandbox, SandboxError, Stage};

use crate::host_death::{NAME, PLACE, killed_host, ready};
use crate::secrets::{found, pieces};
use crate::support::{Reader, folder, image, name, places, restored, template, text, watched};

const KEY: &str = "/run/secrets/key";
/// Not a secret: what the watcher knows of it.
const BEGINNING: &str = "begin-";

/// A secret that nobody has by accident.
fn secret() -> String {
    let mut bytes = [0; 64];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    bytes.iter().fold(BEGINNING.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// In how many places the files of a bundle have pieces of a secret.
fn leaks(bundle: &Bundle, secret: &str) -> usize {
    let pieces = pieces(&[secret.as_bytes()[BEGINNING.len()..].to_vec()]);
    bundle.manifest().files.keys().map(|file| found(bundle, file, &pieces)).sum()
}

async fn none(sandbox: &Sandbox) {
    assert_eq!(text(sandbox, "ls -A /run/secrets 2>/dev/null; :").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_secrets_are_there_whenever_something_runs_and_in_no_bundle() {
    watched(async {
        let (secret, folder) = (secret(), folder());
        let builder = Sandbox::builder(image().await).secret("key", secret.as_str()).secret("empty", "");
        let sandbox = builder.create().await.unwrap();
        assert_eq!(text(&sandbox, "cd /run/secrets; stat -c '%a %u %g' . key; cat empty").await, "755 0 0\n444 0 0");
        // No handler for SIGCHLD, whose frame would keep the registers of process 1; its children may have some.
        let masks = text(&sandbox, "grep SigCgt /proc/1/status; grep SigBlk /proc/self/status").await;
        let masks: Vec<_> = masks.split_whitespace().filter_map(|mask| u64::from_str_radix(mask, 16).ok()).collect();
        assert!(masks.len() == 2 && masks[0] & 1 << 16 == 0 && masks[1] == 0, "{masks:x?}");
        // Looks all the time, at no more than it may know; a guest that is thawed goes on in the middle of it.
        let watch = format!(
            "while [ ! -e /tmp/stop ]; do [ \"$(dd if={KEY} bs=1 count=6 2>/dev/null)\" = {BEGINNING} ] || echo missing; done"
        );
        let watcher = Reader::new(sandbox.command("sh").args(["-c", &watch]).label("watcher").spawn().await.unwrap());
        let read = format!("cat {KEY} >/dev/null; cat {KEY} | cat | wc -c; sed s/x/y/ {KEY}");
        for number in 0..3 {
            assert_eq!(text(&sandbox, &read).await, format!("{}\n{secret}", secret.len()));
            let (bundle, _) = sandbox.snapshot(&folder.path().join(number.to_string())).await.unwrap();
            assert_eq!(leaks(&bundle, &secret), 0, "snapshot {number}");
        }
        let zygote = sandbox.zygote().await.unwrap();
        assert_eq!(leaks(zygote.bundle(), &secret), 0);
        assert_eq!(text(&sandbox, &format!("cat {KEY}")).await, secret, "the source has it on");
        // Children have what is given to them.
        let child = zygote.spawn().start().await.unwrap();
        none(&child).await;
        child.kill().await.unwrap();
        let child = zygote.spawn().secret("other", "for a child").start().await.unwrap();
        assert_eq!(text(&child, "cd /run/secrets; ls; cat other").await, "other\nfor a child");
        child.kill().await.unwrap();
        let child = zygote.spawn().secret("key", secret.as_str()).start().await.unwrap();
        text(&child, "touch /tmp/stop").await;
        let mut inherited = Reader::adopt(&child, "watcher");
        inherited.finish().await;
        assert_eq!(String::from_utf8_lossy(&inherited.bytes), "", "the watcher in a child missed it");
        // The search would have found it.
        text(&child, &format!("cat {KEY} >/tmp/copy")).await;
        let (bundle, _) = child.snapshot_and_stop(&folder.path().join("copied")).await.unwrap();
        assert!(leaks(&bundle, &secret) > 0);

        text(&sandbox, "touch /tmp/stop").await;
        let mut watcher = watcher;
        watcher.finish().await;
        assert_eq!(String::from_utf8_lossy(&watcher.bytes), "", "the watcher missed it");
        let (bundle, _) = sandbox.snapshot_and_stop(&folder.path().join("stopped")).await.unwrap();
        assert_eq!(leaks(&bundle, &secret), 0, "the last snapshot");
        none(&Sandbox::restore(bundle).start().await.unwrap()).await;
    })
    .await;
}

/// Killed while the guest is quiet, and has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_secrets_are_there_again_after_the_host_process_died_in_the_middle_of_a_snapshot() {
    const VALUE: &str = "what the successor finds";
    if let (Some(name), Some(place)) = (std::env::var_os(NAME), std::env::var_os(PLACE)) {
        let restore = Sandbox::restore(template().await).name(name.into_string().unwrap()).secret("key", VALUE);
        let sandbox = restore.start().await.unwrap();
        let observer = |stage| {
            if stage == Stage::Paused {
                ready("now");
                loop {
                    std::thread::park();
                }
            }
        };
        drop(sandbox.snapshot_with(&PathBuf::from(place)).observer(observer).take().await);
        return std::future::pending().await;
    }
    watched(async {
        template().await;
        let (name, folder) = (name("secrets"), folder());
        let test =
            "secrets::secret_files::vm_secrets_are_there_again_after_the_host_process_died_in_the_middle_of_a_snapshot";
        let (inner, place) = (name.clone(), folder.path().join("bundle"));
        tokio::task::spawn_blocking(move || killed_host(test, &inner, &place)).await.unwrap();
        let sandbox = Sandbox::take_over(&name).await.unwrap();
        assert_eq!(text(&sandbox, &format!("cat {KEY}")).await, VALUE);
        // Nowhere on paper.
        let [memory, runtime] = places(&name);
        for file in fs::read_dir(&runtime).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            assert!(!holds(&file, VALUE), "{}", file.display());
        }
        assert_eq!(
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(memory.join("secrets/values")).unwrap()) & 0o777,
            0o600
        );
        sandbox.kill().await.unwrap();
        assert!(!memory.exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_secrets_are_there_again_after_going_back_to_a_checkpoint() {
    watched(async {
        let sandbox = Sandbox::restore(template().await).secret("key", "kept").start().await.unwrap();
        sandbox.checkpoint().await.unwrap();
        assert_eq!(text(&sandbox, &format!("cat {KEY}")).await, "kept");
        let back = sandbox.roll_back().await.unwrap();
        assert_eq!(text(&back, &format!("cat {KEY}")).await, "kept");
    })
    .await;
}

fn holds(file: &Path, value: &str) -> bool {
    fs::read(file).unwrap().windows(value.len()).any(|window| window == value.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_secrets_that_are_none_and_snapshots_that_would_have_them_are_refused() {
    watched(async {
        let long = vec![1; 65_537];
        let error = Sandbox::restore(template().await).secret("key", long).start().await.unwrap_err();
        assert!(matches!(error, SandboxError::Secret(_)), "{error}");
        let error = Sandbox::builder(image().await).secret("../key", "x").create().await.unwrap_err();
        assert!(matches!(error, SandboxError::Secret(_)), "{error}");
        none(&restored().await).await;
        let builder = Sandbox::builder(image().await).kernel_argument("throughline.test=no-quiesce").secret("key", "x");
        let mut sandbox = builder.create().await.unwrap();
        sandbox.quiet_deadline(std::time::Duration::from_millis(100));
        let folder = folder();
        let place = folder.path().join("bundle");
        let error = sandbox.snapshot_with(&place).allow_unquiesced().take().await.unwrap_err();
        assert!(matches!(error, SandboxError::SecretsNotQuiet(..)), "{error}");
        assert!(!place.exists());
        assert_eq!(text(&sandbox, &format!("cat {KEY}")).await, "x");
    })
    .await;
}
