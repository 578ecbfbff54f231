//! Boot images: kept by content, built by many at once, and clear about what is missing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use throughline_sandbox::image::{Image, ImageBuilder, ImageError};

/// Shared by tests that need a kernel, so that it is downloaded once.
fn shared() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")
}

fn build(agent: &str) -> Image {
    ImageBuilder::new().folder(shared()).agent(agent).build().unwrap()
}

#[test]
fn an_image_is_built_once_and_named_by_its_content() {
    let first = build("#!/bin/sh\n# one\n");
    let modified = |image: &Image| fs::metadata(image.initramfs()).unwrap().modified().unwrap();
    let before = modified(&first);
    let again = build("#!/bin/sh\n# one\n");
    assert_eq!(first, again);
    assert_eq!(before, modified(&again), "it was not built again");
    assert_ne!(build("#!/bin/sh\n# two\n").id(), first.id());
    assert!(first.kernel_version().starts_with("linux-image-"), "{}", first.kernel_version());
}

#[test]
fn a_damaged_image_is_built_again() {
    let image = build("#!/bin/sh\n# damaged\n");
    let whole = fs::read(image.initramfs()).unwrap();
    fs::write(image.initramfs(), b"short").unwrap();
    let again = build("#!/bin/sh\n# damaged\n");
    assert_eq!(fs::read(again.initramfs()).unwrap(), whole);
}

#[test]
fn builders_at_once_agree_and_leave_nothing_behind() {
    build("#!/bin/sh\n# warm\n");
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&shared().join("kernels"), &folder.path().join("kernels"));
    let builder = ImageBuilder::new().folder(folder.path()).agent("#!/bin/sh\n");
    let images: Vec<Image> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| builder.build().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(images.iter().all(|image| image == &images[0]));
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.retain(|name| name != "kernels" && name != "busybox");
    assert_eq!(left, [images[0].id()]);
}

#[test]
fn a_missing_package_manager_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let builder = ImageBuilder::new().folder(folder.path()).package_manager("/nowhere/apt-get");
    let error = builder.build().unwrap_err();
    assert!(matches!(error, ImageError::PackageManagerMissing { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/apt-get"), "{error}");
}

/// The real package manager, behind a proxy that is not there.
#[test]
fn no_network_is_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("apt-get");
    let proxy = "-o Acquire::http::Proxy=http://127.0.0.1:9 -o Acquire::https::Proxy=http://127.0.0.1:9";
    fs::write(&script, format!("#!/bin/sh\nexec apt-get {proxy} \"$@\"\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let images = folder.path().join("images");
    let error = ImageBuilder::new().folder(&images).package_manager(&script).build().unwrap_err();
    assert!(matches!(error, ImageError::Offline { .. }), "{error}");
    let kernels: Vec<_> = fs::read_dir(images.join("kernels")).unwrap().collect();
    assert!(kernels.is_empty(), "{kernels:?}");
}

/// The inner half runs in a mount namespace with a file system of 1 MiB.
#[test]
fn no_space_is_told_and_leaves_nothing() {
    const SMALL: &str = "THROUGHLINE_TEST_SMALL";
    if let Some(folder) = std::env::var_os(SMALL).map(PathBuf::from) {
        let error = ImageBuilder::new().folder(&folder).agent("#!/bin/sh\n").build().unwrap_err();
        assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["kernels"]);
        return;
    }
    build("#!/bin/sh\n# warm\n");
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$1\" && mkdir \"$1/kernels\" && mount --bind \"$2\" \"$1/kernels\" \
                  && exec \"$3\" --exact no_space_is_told_and_leaves_nothing --nocapture";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([folder.path(), &shared().join("kernels"), &std::env::current_exe().unwrap()])
        .env(SMALL, folder.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
