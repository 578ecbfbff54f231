//! Where bundles and sandboxes lie: bundles anywhere, a sandbox's own folder nowhere else.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use throughline::{Region, Sidecar, SidecarError};
use throughline_sandbox::bundle::{Bundle, BundleError, MANIFEST, RAM, REGION, SIDECAR, STATE};
use throughline_sandbox::engine::EngineError;
use throughline_sandbox::{PlaceError, Sandbox, SandboxError};
use xxhash_rust::xxh3::xxh3_64;

use crate::support::{copy_folder, folder, gone, name, places, restored, template, text, watched};

const FILES: [&str; 4] = [STATE, RAM, REGION, SIDECAR];

/// The template comes from a disk; its copies lie on tmpfs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_restores_a_bundle_that_moved_and_one_that_is_deleted_meanwhile() {
    let test = async {
        let folder = folder();
        let [first, second] = ["first", "a folder, with a strange=name"].map(|name| folder.path().join(name));
        copy_folder(template().await.folder(), &first);
        let before = contents(&first);
        let sandbox = Sandbox::restore(Bundle::open(&first).unwrap()).start().await.unwrap();
        text(&sandbox, "dd if=/dev/urandom of=/tmp/changed bs=1M count=4 2>/dev/null").await;
        fs::rename(&first, &second).unwrap();
        assert_eq!(contents(&second), before, "a restored sandbox does not change its bundle");
        let moved = Sandbox::restore(Bundle::open(&second).unwrap()).start().await.unwrap();
        fs::remove_dir_all(&second).unwrap();
        // Both go on, and can be saved: all that they need is theirs.
        for (sandbox, place) in [(sandbox, "third"), (moved, "fourth")] {
            text(&sandbox, "cat /bin/busybox > /tmp/copy; sync").await;
            let (bundle, _) = sandbox.snapshot(&folder.path().join(place)).await.unwrap();
            sandbox.kill().await.unwrap();
            let sandbox = Sandbox::restore(bundle).start().await.unwrap();
            text(&sandbox, "cmp /bin/busybox /tmp/copy").await;
        }
    };
    watched(Box::pin(test)).await;
}

/// Names, lengths, times of change and checksums.
fn contents(folder: &Path) -> Vec<String> {
    let bundle = Bundle::open(folder).unwrap();
    for file in FILES {
        bundle.check(file).unwrap();
    }
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut seen: Vec<_> = entries
        .map(|entry| {
            let data = entry.metadata().unwrap();
            format!("{} {} {:?}", entry.file_name().display(), data.len(), data.modified().unwrap())
        })
        .collect();
    seen.sort();
    seen
}

/// A bundle whose damage only a restore can see; every other kind has a test without a guest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_damaged_bundle_is_refused_before_the_guest_runs_and_leaves_nothing() {
    watched(async {
        let name = name("damaged");
        let folder = folder();
        let place = folder.path().join("bundle");
        copy_folder(template().await.folder(), &place);
        for file in FILES {
            let path = place.join(file);
            let at = flip(&path);
            let bundle = Bundle::open(&place).unwrap();
            let error = Sandbox::restore(bundle).name(&name).start().await.unwrap_err();
            let SandboxError::Bundle(BundleError::Damaged { file: found, reason }) = &error else { panic!("{error}") };
            assert_eq!((found.as_str(), reason.contains("checksum")), (file, true), "{error}");
            gone(&name).await;
            assert_eq!(flip(&path), at);
        }
        let sandbox = Sandbox::restore(Bundle::open(&place).unwrap()).name(&name).start().await.unwrap();
        assert_eq!(text(&sandbox, "echo whole").await, "whole");
    })
    .await;
}

/// Changes one bit of the file's data, in its middle; doing it twice changes nothing.
fn flip(path: &Path) -> u64 {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(middle)).unwrap_or(0) + 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.set_modified(modified).unwrap();
    at
}

/// Manifests that are whole, and speak of another machine than this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_bundle_of_another_machine_is_refused_with_what_differs() {
    watched(async {
        let name = name("other");
        let folder = folder();
        let place = folder.path().join("bundle");
        copy_folder(template().await.folder(), &place);
        let path = place.join(MANIFEST);
        let whole = fs::read_to_string(&path).unwrap();
        let manifest = Bundle::open(&place).unwrap().manifest().clone();
        let machine = &manifest.machine;
        let cases = [
            (format!("\"{}\"", machine.machine_type), "\"pc-q35-2.4\"", "machine type is pc-q35-2.4"),
            (format!("\"version\":\"{}\"", machine.version), "\"version\":\"1.0\"", "version is 1.0"),
            (format!("\"{}\"", machine.cpu_model), "\"486\"", "processor model is 486"),
            (
                format!("\"memory_mib\":{}", manifest.hardware.memory_mib),
                "\"memory_mib\":128",
                "the machine has 134217728",
            ),
            (format!("\"agent\":{}", manifest.agent), "\"agent\":99", "speaks protocol 99"),
        ];
        for (from, to, words) in cases {
            fs::write(&path, seal(&whole, &from, to)).unwrap();
            let error = Sandbox::restore(Bundle::open(&place).unwrap()).name(&name).start().await.unwrap_err();
            let typed = matches!(
                error,
                SandboxError::Bundle(BundleError::OtherMachine(_))
                    | SandboxError::Engine(EngineError::Refused { .. })
                    | SandboxError::Agent { .. }
            );
            assert!(typed && error.to_string().contains(words), "{to}: {error}");
            gone(&name).await;
        }
    })
    .await;
}

/// A manifest with another text, and the checksum of that.
fn seal(sealed: &str, from: &str, to: &str) -> String {
    let sealed: serde_json::Value = serde_json::from_str(sealed).unwrap();
    let text = sealed["manifest"].to_string();
    // The fields have no fixed order here; the checksum is of the text that follows.
    assert!(text.contains(from), "{from} in {text}");
    let text = text.replacen(from, to, 1);
    format!("{{\"manifest\":{text},\"checksum\":{}}}", xxh3_64(text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_folder_of_a_running_sandbox_has_one_driver_and_no_copies() {
    watched(async {
        let name = name("folder");
        let sandbox = Sandbox::restore(template().await).name(&name).start().await.unwrap();
        let current = places(&name)[0].join("current");
        let region = Region::open(&current.join("region")).unwrap();
        let error = Sidecar::open(&current.join("sidecar"), &region).unwrap_err();
        assert!(matches!(error, SidecarError::Held { .. }), "{error}");
        assert!(error.to_string().contains(&format!("held by process {} ", std::process::id())), "{error}");

        let copies = folder();
        let copy = copies.path().join("current");
        copy_folder(&current, &copy);
        let region = Region::open(&copy.join("region")).unwrap();
        let error = Sidecar::open(&copy.join("sidecar"), &region).unwrap_err();
        assert!(matches!(error, SidecarError::Copied { .. }), "{error}");
        assert!(error.to_string().contains("throughline snapshot restore"), "{error}");

        let taken = Sandbox::restore(template().await).name(&name).start().await.unwrap_err();
        assert!(matches!(taken, SandboxError::Place(PlaceError::Taken(_))), "{taken}");
        assert_eq!(text(&sandbox, "echo unharmed").await, "unharmed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_snapshot_replaces_nothing_that_is_there() {
    watched(async {
        let sandbox = restored().await;
        let folder = folder();
        let (place, new) = (folder.path().join("bundle"), folder.path().join("in/a/new/folder"));
        fs::create_dir(&place).unwrap();
        let error = sandbox.snapshot(&place).await.unwrap_err();
        assert!(matches!(error, SandboxError::Bundle(BundleError::Exists(_))), "{error}");
        // What comes into being while the snapshot is taken stays as well.
        fs::remove_dir(&place).unwrap();
        let meanwhile = place.clone();
        let observer = move |_| drop(fs::write(&meanwhile, "somebody else's"));
        let error = sandbox.snapshot_with(&place).observer(observer).take().await.unwrap_err();
        assert!(matches!(error, SandboxError::Bundle(BundleError::Exists(_))), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(fs::read(&place).unwrap(), b"somebody else's");
        sandbox.snapshot(&new).await.unwrap();
        assert!(Bundle::open(&new).is_ok());
    })
    .await;
}
