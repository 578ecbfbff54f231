//! Bundles of guests that were loaded from one: what differs, over the image that they have in common.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use throughline_sandbox::bundle::{Bundle, BundleError, DELTA, RAM};
use throughline_sandbox::{Sandbox, SandboxError, Zygote};

use crate::checkpoints::die;
use crate::support::{copy_folder, folder, image, let_go, restored, text, watched};

/// Whatever is more is copied whole.
const MOST: u64 = 8 << 20;

fn inode(bundle: &Bundle) -> u64 {
    std::fs::metadata(bundle.folder().join(RAM)).unwrap().ino()
}

/// Freezes a child, and holds what that came to against what was under it.
async fn frozen(child: Sandbox, image: u64) -> Zygote {
    let zygote = child.freeze().await.unwrap();
    let report = zygote.report().unwrap();
    assert!(report.copied + report.corrected < MOST, "{report:?}");
    assert!(zygote.bundle().has_delta());
    assert_eq!(inode(zygote.bundle()), image, "it has the image of its parent");
    zygote
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_main_path_fork_child_is_as_cheap_a_template_as_its_parent_to_any_depth() {
    watched(async {
        let root = Sandbox::builder(image().await).create().await.unwrap();
        let mut zygote = root.freeze().await.unwrap();
        let below = inode(zygote.bundle());
        for generation in 0..4 {
            let child = zygote.spawn().start().await.unwrap();
            // The image has lost all names that the zygote gave it.
            drop(zygote);
            let script =
                format!("cd /tmp; head -c 1000000 /dev/urandom > {generation}; md5sum {generation} >> sums; sync");
            text(&child, &script).await;
            zygote = frozen(child, below).await;
            for file in zygote.bundle().manifest().files.keys() {
                zygote.bundle().check(file).unwrap();
            }
        }
        for child in zygote.spawn_many(2).await {
            let checked = text(&child.unwrap(), "cd /tmp; md5sum -c sums").await;
            assert_eq!(checked, "0: OK\n1: OK\n2: OK\n3: OK");
        }
        // One that has become another guest altogether has an image of its own, which is whole again.
        let child = zygote.spawn().start().await.unwrap();
        text(&child, "cd /tmp; head -c 20000000 /dev/urandom > 4; md5sum 4 >> sums").await;
        let whole = child.freeze().await.unwrap();
        drop(zygote);
        assert!(!whole.bundle().has_delta() && inode(whole.bundle()) != below);
        let child = whole.spawn().start().await.unwrap();
        assert_eq!(text(&child, "cd /tmp; md5sum -c sums").await, "0: OK\n1: OK\n2: OK\n3: OK\n4: OK");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_snapshots_over_one_image_go_on_without_each_other_and_are_checked() {
    watched(async {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let place = |name: &str| memory.path().join(name);
        let (first, _) = restored().await.snapshot(&place("first")).await.unwrap();
        let sandbox = Sandbox::restore(first.clone()).start().await.unwrap();
        text(&sandbox, "echo second > /tmp/word").await;
        let (second, report) = sandbox.snapshot(&place("second")).await.unwrap();
        assert!(second.has_delta() && inode(&second) == inode(&first), "{report:?}");
        // What it changes from here on is in neither.
        text(&sandbox, "echo third > /tmp/word; head -c 4000000 /dev/urandom > /tmp/more").await;
        drop(sandbox);
        Bundle::remove(first.folder()).unwrap();
        let word = async |place: &Path| {
            let sandbox = Sandbox::restore(Bundle::open(place).unwrap()).start().await?;
            Ok::<_, SandboxError>(text(&sandbox, "cat /tmp/word; ls /tmp/more 2>&1 || :").await)
        };
        let expected = "second\nls: /tmp/more: No such file or directory";
        assert_eq!(word(second.folder()).await.unwrap(), expected);
        // A copy is as good, wherever it lies.
        let elsewhere = folder();
        copy_folder(second.folder(), &elsewhere.path().join("copy"));
        assert_eq!(word(&elsewhere.path().join("copy")).await.unwrap(), expected);
        let delta = elsewhere.path().join("copy").join(DELTA);
        let mut bytes = std::fs::read(&delta).unwrap();
        bytes[1000] ^= 1;
        std::fs::write(&delta, bytes).unwrap();
        let error = word(&elsewhere.path().join("copy")).await.unwrap_err();
        let named = matches!(&error, SandboxError::Bundle(BundleError::Damaged { file, .. }) if file == DELTA);
        assert!(named, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_what_is_known_of_the_image_is_of_the_one_that_it_went_back_to_whoever_takes_it_over() {
    watched(async {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let sandbox = restored().await;
        // Its checkpoint is whole.
        text(&sandbox, "head -c 20000000 /dev/urandom > /tmp/much").await;
        sandbox.checkpoint().await.unwrap();
        die(&sandbox).await;
        let back = sandbox.roll_back().await.unwrap();
        drop(sandbox);
        let sandbox = Sandbox::take_over(&let_go(back).await).await.unwrap();
        let (bundle, _) = sandbox.snapshot(&memory.path().join("bundle")).await.unwrap();
        assert!(bundle.has_delta());
        for file in bundle.manifest().files.keys() {
            bundle.check(file).unwrap();
        }
        sandbox.kill().await.unwrap();
    })
    .await;
}
