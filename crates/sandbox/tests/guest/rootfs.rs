//! Any userland as the guest's root, and kernels of one's own.

use std::path::Path;

use throughline_sandbox::image::{Image, ImageBuilder, ImageError, Images};
use throughline_sandbox::{Sandbox, SandboxError};

use crate::support::{copy_folder, folder, image, text, watched};
use crate::userland::{FEW, archive};

/// A store of its own, with the kernel that there is.
async fn store(folder: &Path) -> Images {
    let shared = image().await.kernel().ancestors().nth(2).expect("the images' folder").to_path_buf();
    let images = folder.join("images");
    copy_folder(&shared.join("kernels"), &images.join("kernels"));
    Images::new().folder(images).snapshots(folder.join("snapshots"))
}

async fn build(images: &Images, name: &str, builder: ImageBuilder) -> Image {
    let (images, name) = (images.clone(), name.to_owned());
    tokio::task::spawn_blocking(move || images.build(&name, &builder)).await.expect("a builder").expect("an image")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_userland_is_the_root_of_all_that_the_user_runs() {
    watched(async {
        let folder = tempfile::tempdir().unwrap();
        let images = store(folder.path()).await;
        let image = build(&images, "own", ImageBuilder::new().rootfs(archive(folder.path(), FEW))).await;
        let sandbox = Sandbox::builder(image).create().await.unwrap();
        for (script, expected) in [
            ("stat -c '%u:%g %a' /home/alice/own /bin/busybox /etc / /tmp | tr '\\n' ' '", "1500:1600 644 0:0 4755 0:0 755 0:0 755 0:0 1777"),
            ("ls -d /lib /init /proc/stale /disk /memory 2>/dev/null", ""),
            ("for place in / /proc /sys /dev /dev/pts /dev/shm /run /tmp; do grep -q \" $place \" /proc/mounts || echo $place; done", ""),
            ("awk '$2 == \"/\" { print $3 }' /proc/mounts", "overlay"),
            ("head -c 8 /proc/sys/kernel/hostname; cat /proc/sys/kernel/hostname | cmp - /etc/hostname; wc -c < /etc/machine-id", "throughl33"),
            ("test -s /run/throughline/epoch && grep -c localhost /etc/hosts && cat /etc/resolv.conf", "2\nnameserver 10.0.2.3"),
            ("echo $PATH $HOME $PWD", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root /"),
            ("echo changed > /etc/passwd.new && rm /data && cat /etc/passwd.new; ls /data 2>&1 | tail -c 10", "changed\ndirectory"),
            // Of 256 MiB, the kernel takes less than a fifth.
            ("awk '/MemTotal/ { print ($2 > 210000) }' /proc/meminfo", "1"),
            // The kernel refuses it to whoever is in a chroot.
            ("unshare -U true && echo allowed", "allowed"),
            // And a /proc in it where something lies over part of every other one.
            ("unshare -Urmpf --mount-proc true && echo allowed", "allowed"),
            ("cmp /run/throughline/boot_id /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/boot_id | tr -d '\\n0-9a-f'", "----"),
        ] {
            let said = text(&sandbox, &format!("{script}; true")).await;
            assert_eq!(said, expected, "{script}");
        }
        let output = sandbox.command("sh").args(["-c", "id; pwd; echo $HOME"]).user("alice").output().await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, "uid=1500(alice) gid=1600(staff) groups=10(wheel),1600(staff)\n/home/alice\n/home/alice\n");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_userland_and_what_lies_over_it_outlive_restores_as_long_as_the_image() {
    watched(async {
        let folder = folder();
        let images = store(folder.path()).await;
        let image = build(&images, "own", ImageBuilder::new().rootfs(archive(folder.path(), FEW))).await;
        let sandbox = Sandbox::builder(image.clone()).create().await.unwrap();
        let sum = text(&sandbox, "echo one > /etc/one; rm /home/alice/own; mkdir /new; md5sum < /data").await;
        let refused = |images: &Images, name: &str| images.remove(name).unwrap_err().to_string();
        assert!(refused(&images, "own").contains("a sandbox that runs"), "{}", refused(&images, "own"));
        let place = folder.path().join("snapshots/first");
        let (bundle, _) = sandbox.snapshot_and_stop(&place).await.unwrap();
        assert_eq!(bundle.manifest().rootfs.as_ref(), image.rootfs());
        assert!(refused(&images, "own").contains("the snapshot first"), "{}", refused(&images, "own"));

        let restored = Sandbox::restore(bundle.clone()).images(images.clone()).start().await.unwrap();
        let kept =
            "cat /etc/one; ls -d /new /home/alice/own 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches; md5sum < /data";
        let expected = format!("one\n/new\n{sum}");
        assert_eq!(text(&restored, kept).await, expected);
        text(&restored, "rm /data; echo two > /etc/two").await;
        // A snapshot of a running one: it goes on with its disk, as does its copy.
        let (second, _) = restored.snapshot(&folder.path().join("snapshots/second")).await.unwrap();
        assert!(text(&restored, "cat /etc/two; md5sum < /bin/busybox").await.starts_with("two\n"));
        restored.kill().await.unwrap();
        let again = Sandbox::restore(second).images(images.clone()).start().await.unwrap();
        assert_eq!(text(&again, "cat /etc/one /etc/two; ls /data 2>/dev/null; true").await, "one\ntwo");
        again.kill().await.unwrap();

        std::fs::remove_dir_all(folder.path().join("snapshots")).unwrap();
        let kept = folder.path().join("kept");
        let bundle = {
            let sandbox = Sandbox::builder(image).create().await.unwrap();
            sandbox.snapshot_and_stop(&kept).await.unwrap().0
        };
        images.remove("own").unwrap();
        let error = Sandbox::restore(bundle).images(images).start().await.unwrap_err();
        assert!(matches!(error, SandboxError::ImageMissing { .. }), "{error}");
        assert!(error.to_string().contains("userland.tar"), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_userland_larger_than_the_guests_memory_is_read_whole() {
    const MIB: usize = 112;
    watched(async {
        let folder = tempfile::tempdir().unwrap();
        let images = store(folder.path()).await;
        let image = build(&images, "large", ImageBuilder::new().rootfs(archive(folder.path(), MIB))).await;
        assert!(image.bytes() > (MIB << 20) as u64);
        let sandbox = Sandbox::builder(image).memory_mib(96).create().await.unwrap();
        let script = "head -c 1048576 /data | md5sum; tail -c 1048576 /data | md5sum; cat /data | wc -c";
        let said = text(&sandbox, script).await;
        let lines: Vec<_> = said.lines().collect();
        assert_eq!((lines[0], lines[2]), (lines[1], (MIB << 20).to_string().as_str()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_kernel_of_ones_own_boots() {
    watched(async {
        let folder = tempfile::tempdir().unwrap();
        let images = store(folder.path()).await;
        let kernels = folder.path().join("images/kernels");
        let kernel = std::fs::read_dir(&kernels).unwrap().next().unwrap().unwrap().path();
        let builder = ImageBuilder::new().kernel(kernel.join("vmlinuz")).modules(&kernel);
        let image = build(&images, "kernel", builder.rootfs(archive(folder.path(), FEW))).await;
        let sandbox = Sandbox::builder(image.clone()).create().await.unwrap();
        let release = text(&sandbox, "uname -r").await;
        assert_eq!(image.kernel_version(), format!("{release} (vmlinuz)"));
        sandbox.kill().await.unwrap();
        assert!(matches!(images.open("none"), Err(ImageError::Absent { .. })));
    })
    .await;
}
