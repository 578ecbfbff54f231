//! Boot images: kept by content, built by many at once, and clear about what is missing.

mod userland;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use throughline_sandbox::Sandbox;
use throughline_sandbox::engine::Net;
use throughline_sandbox::image::{BuildStep, Image, ImageBuilder, ImageError, Images, Progress};

/// Shared by tests that need a kernel, so that it is downloaded once.
fn shared() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")
}

/// Downloads the kernel, unless it is there. One test at a time: what a download moves and removes is not to be copied
/// by another one meanwhile.
fn warm() {
    fs::create_dir_all(shared()).unwrap();
    let lock = fs::File::create(shared().with_extension("lock")).unwrap();
    lock.lock().unwrap();
    ImageBuilder::new().folder(shared()).agent("#!/bin/sh\n# warm\n").build().unwrap();
}

fn build(agent: &str) -> Image {
    warm();
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

/// A store of its own, with the kernel that there is.
fn store(folder: &Path) -> Images {
    warm();
    copy_folder(&shared().join("kernels"), &folder.join("kernels"));
    Images::new().folder(folder).snapshots(folder.join("snapshots"))
}

fn script(text: &str) -> ImageBuilder {
    ImageBuilder::new().agent(format!("#!/bin/sh\n# {text}\n"))
}

#[test]
fn a_name_is_an_image_until_another_one_gets_it_or_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(folder.path());
    let names = || -> Vec<_> {
        let list = images.list().unwrap();
        list.into_iter().map(|entry| (entry.name.unwrap_or_default(), entry.image.id().to_owned())).collect()
    };
    let absent = |name: &str| matches!(images.open(name), Err(ImageError::Absent { .. }));
    assert!(names().is_empty() && absent("one"));
    let first = images.build("one", &script("first")).unwrap();
    assert_eq!(images.open("one").unwrap(), first);
    assert_eq!(images.open(first.id()).unwrap(), first);
    assert_eq!(images.build("two", &script("first")).unwrap(), first);
    // An image goes with its last name.
    let second = images.build("one", &script("second")).unwrap();
    assert_eq!(names(), [("one".into(), second.id().into()), ("two".into(), first.id().into())]);
    assert!(matches!(images.remove(first.id()), Err(ImageError::Needed { user, .. }) if user == "the name two"));
    images.remove("two").unwrap();
    assert!(absent("two") && absent(first.id()));
    let third = images.build("one", &script("third")).unwrap();
    assert_eq!(names(), [("one".into(), third.id().into())]);
    // One without a name, as builders without a store make them.
    let nameless = script("nameless").folder(folder.path()).build().unwrap();
    assert_eq!(names()[1], (String::new(), nameless.id().into()));
    assert_eq!(images.open(&nameless.id()[..8]).unwrap(), nameless);
    assert!(absent(&nameless.id()[..7]));
    images.remove(&nameless.id()[..12]).unwrap();
    assert_eq!(names().len(), 1);
    assert!(images.open("two").unwrap_err().to_string().contains("(there are: one)"));
    for bad in ["../x", "", nameless.id()] {
        assert!(matches!(images.build(bad, &script("bad")), Err(ImageError::Name(_))), "{bad}");
    }
    // One that lost a file is told, and can be removed or built again.
    fs::remove_file(third.kernel()).unwrap();
    assert!(matches!(images.open("one"), Err(ImageError::Damaged { .. })));
    assert_eq!(images.build("one", &script("third")).unwrap(), third);
    fs::remove_file(third.kernel()).unwrap();
    images.remove("one").unwrap();
    assert!(absent("one"));
    assert!(matches!(images.open_or_build("none", &script("third")), Err(ImageError::Absent { .. })));
    let made = images.open_or_build(Images::DEFAULT, &script("default")).unwrap();
    assert_eq!(images.open(Images::DEFAULT).unwrap(), made);
}

#[test]
fn an_image_gets_the_agent_of_the_release_that_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(folder.path());
    fs::create_dir(folder.path().join("tree")).unwrap();
    fs::write(folder.path().join("tree/file"), "").unwrap();
    for (name, rootfs) in [("plain", false), ("own", true)] {
        let builder = |text: &str| {
            let builder = script(text);
            if rootfs { builder.rootfs(folder.path().join("tree")) } else { builder }
        };
        let old = images.build(name, &builder("old")).unwrap();
        assert_eq!(images.open_or_build(name, &script("old")).unwrap(), old);
        let new = images.open_or_build(name, &script("a new and longer one")).unwrap();
        assert_eq!(images.open(name).unwrap(), new);
        assert!(images.open(old.id()).is_err(), "the old one is gone");
        // To the byte what a builder makes of the same.
        let initramfs = fs::read(new.initramfs()).unwrap();
        images.remove(name).unwrap();
        let built = images.build(name, &builder("a new and longer one")).unwrap();
        assert_eq!((built.id(), built.rootfs()), (new.id(), new.rootfs()));
        assert!(fs::read(built.initramfs()).unwrap() == initramfs);
    }
}

#[tokio::test]
async fn a_network_needs_an_image_that_drives_a_card() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(folder.path());
    let image = images.build("plain", &script("agent")).unwrap();
    assert!(image.has_network());
    // As an earlier release wrote it.
    let path = image.kernel().parent().unwrap().join("image.json");
    let mut described: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    described.as_object_mut().unwrap().remove("network").unwrap();
    fs::write(&path, described.to_string()).unwrap();
    let image = images.open("plain").unwrap();
    let refused = Sandbox::builder(image).net(Net::User).create().await.unwrap_err().to_string();
    assert!(refused.contains("throughline image build"), "{refused}");
}

#[test]
fn an_archive_keeps_owners_modes_and_capabilities_and_gives_the_same_image_again() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(&folder.path().join("images"));
    let archive = userland::archive(folder.path(), userland::FEW);
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let to = Arc::clone(&seen);
    let builder = ImageBuilder::new().rootfs(&archive).progress(move |progress| to.lock().unwrap().push(progress));
    let image = images.build("own", &builder).unwrap();
    let steps: Vec<_> = seen.lock().unwrap().iter().map(|progress| progress.step).collect();
    assert!(steps.contains(&BuildStep::Digest) && steps.ends_with(&[BuildStep::Assemble]), "{steps:?}");
    let rootfs = image.rootfs_file().unwrap();
    let told = |path: &str| {
        let dump = Command::new("dump.erofs").arg(format!("--path={path}")).arg(&rootfs).output().unwrap();
        String::from_utf8(dump.stdout).unwrap()
    };
    let own = told("/home/alice/own");
    assert!(own.contains("Uid: 1500   Gid: 1600") && !own.contains("Xattr size: 0\n"), "{own}");
    assert!(own.contains("Timestamp: 2001-09-09 01:46:40"), "{own}");
    assert!(told("/bin/busybox").contains("Uid: 0   Gid: 0"), "{}", told("/bin/busybox"));
    image.verify().unwrap();
    // Compressed, it is the same; and nothing else is left of the building.
    for program in ["gzip", "xz"] {
        let packed = Command::new(program).arg("-k").arg(&archive).status().unwrap();
        assert!(packed.success());
        let packed = if program == "gzip" { "tar.gz" } else { "tar.xz" };
        let again = images.build("again", &ImageBuilder::new().rootfs(archive.with_extension(packed))).unwrap();
        assert_eq!(again.id(), image.id(), "{program}");
    }
    let mut left: Vec<_> =
        fs::read_dir(images.place()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, [".lock", image.id(), "kernels", "names"]);
    let bytes = fs::read(&rootfs).unwrap();
    fs::write(&rootfs, [&bytes[..4096], &[1], &bytes[4097..]].concat()).unwrap();
    assert!(image.verify().unwrap_err().to_string().contains("damaged"));
}

#[test]
fn a_folder_becomes_a_userland_and_what_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(&folder.path().join("images"));
    let place = |name: &str| folder.path().join(name);
    let build = |source: &Path| images.build("own", &ImageBuilder::new().rootfs(source));
    fs::create_dir_all(place("tree/bin")).unwrap();
    fs::copy("/bin/busybox", place("tree/bin/sh")).unwrap();
    let image = build(&place("tree")).unwrap();
    assert_eq!(image.rootfs().unwrap().source, "tree");

    fs::create_dir(place("empty")).unwrap();
    fs::create_dir_all(place("layers/blobs")).unwrap();
    fs::write(place("layers/manifest.json"), "[]").unwrap();
    fs::write(place("text"), "no archive").unwrap();
    let tar = |name: &str, of: &str| {
        let made = Command::new("tar").arg("-cf").arg(place(name)).arg("-C").arg(place(of)).arg(".").status();
        assert!(made.unwrap().success());
    };
    tar("layers.tar", "layers");
    tar("whole.tar", "tree");
    let whole = fs::read(place("whole.tar")).unwrap();
    fs::write(place("cut.tar"), &whole[..whole.len() / 2]).unwrap();
    let refused = |name: &str| build(&place(name)).unwrap_err().to_string();
    for (name, reason) in [
        ("nowhere", "No such file"),
        ("empty", "it is empty"),
        ("layers", "docker export"),
        ("layers.tar", "docker export"),
        ("text", "neither a folder nor a tar archive"),
        ("cut.tar", "Unexpected EOF"),
    ] {
        assert!(refused(name).contains(reason), "{name}: {}", refused(name));
    }
    assert_eq!(images.open("own").unwrap(), image, "the image of that name is as it was");
}

#[test]
fn an_archive_writes_nothing_outside_of_its_image() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(&folder.path().join("images"));
    let (victim, archive) = (folder.path().join("victim"), folder.path().join("bad.tar"));
    fs::create_dir(&victim).unwrap();
    fs::write(folder.path().join("file"), "payload").unwrap();
    let tar = |arguments: &[&str]| {
        let mut tar = Command::new("tar");
        tar.args(["-P", "-C"]).arg(folder.path()).arg("-f").arg(&archive).args(arguments);
        assert!(tar.status().unwrap().success());
    };
    // A way up, a place in the host, and a link to lead there.
    std::os::unix::fs::symlink(&victim, folder.path().join("link")).unwrap();
    let outside = format!("--transform=s,^file$,{}/absolute,", victim.display());
    tar(&["-c", "--transform=s,^file$,../../victim/up,", "file"]);
    assert!(images.build("bad", &ImageBuilder::new().rootfs(&archive)).is_err());
    tar(&["-c", &outside, "file"]);
    tar(&["-r", "link"]);
    tar(&["-r", "--transform=s,^file$,link/linked,", "file"]);
    // Refused or not: what matters is where it writes.
    let _ = images.build("bad", &ImageBuilder::new().rootfs(&archive));
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
    assert!(!folder.path().join("images/victim").exists());
}

#[test]
fn a_kernel_that_does_not_fit_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let images = store(folder.path());
    let kernel = fs::read_dir(folder.path().join("kernels")).unwrap().next().unwrap().unwrap().path();
    let (file, modules) = (kernel.join("vmlinuz"), folder.path().join("modules"));
    let error = |builder: ImageBuilder| images.build("own", &builder).unwrap_err();
    let chosen = || ImageBuilder::new().kernel(&file).modules(&modules);

    assert!(matches!(error(ImageBuilder::new().kernel("/bin/busybox")), ImageError::NotAKernel { .. }));
    assert!(matches!(error(ImageBuilder::new().modules(&modules)), ImageError::ModulesAlone));
    let none = error(ImageBuilder::new().kernel(&file)).to_string();
    assert!(none.contains("/lib/modules has no modules for it"), "{none}");
    copy_folder(&kernel, &modules);
    fs::remove_file(modules.join("erofs.ko")).unwrap();
    let missing = error(chosen());
    assert!(matches!(&missing, ImageError::ModuleMissing { module, .. } if module == "erofs"), "{missing}");
    // Had built in, it is not missed.
    fs::write(modules.join("modules.builtin"), "kernel/fs/erofs/erofs.ko\n").unwrap();
    images.build("own", &chosen()).unwrap();
    let console = fs::read(modules.join("virtio_console.ko")).unwrap();
    let at = console.windows(9).position(|bytes| bytes == b"vermagic=").unwrap() + 9;
    let other = [&console[..at], b"5.10.0", &console[at + 6..]].concat();
    fs::write(modules.join("virtio_console.ko"), other).unwrap();
    let other = error(chosen()).to_string();
    assert!(other.contains("virtio_console.ko was made for 5.10.0"), "{other}");
}

/// Without the programs that make file systems, in a place where nothing else is missing.
#[test]
fn a_missing_program_is_named_with_its_package() {
    const BARE: &str = "THROUGHLINE_TEST_BARE";
    if let Some(folder) = std::env::var_os(BARE).map(PathBuf::from) {
        let images = Images::new().folder(folder.join("images"));
        let error = images.build("own", &ImageBuilder::new().rootfs(folder)).unwrap_err().to_string();
        assert!(error.contains("mkfs.erofs was not found") && error.contains("erofs-utils"), "{error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    store(&folder.path().join("images"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_missing_program_is_named_with_its_package", "--nocapture"])
        .env(BARE, folder.path())
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
