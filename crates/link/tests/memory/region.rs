//! Regions as files: what is made, and what is refused with which words.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{folder, small};
use throughline::{BackingError, Doorbell, Link, Region, RegionError, Sidecar};
use throughline_ring::{Geometry, Header, Layout, MAJOR, Version};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

fn message(opened: Result<Region, RegionError>) -> String {
    opened.unwrap_err().to_string()
}

/// A region file with bytes changed.
fn changed(folder: &Path, at: u64, bytes: &[u8]) -> PathBuf {
    let path = folder.join("changed");
    let _ = fs::remove_file(&path);
    drop(Region::create(&path, &small()).unwrap());
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(bytes, at).unwrap();
    path
}

#[test]
fn a_region_is_private_sparse_and_opens_as_it_was_created() {
    let folder = folder();
    let path = folder.path().join("region");
    let created = Region::create(&path, &Geometry::default()).unwrap();
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert_eq!(found.len(), created.layout().region_bytes());
    assert_eq!(found.blocks() * 512, (created.layout().control_words() * 8) as u64, "rings are sparse");
    let opened = Region::open(&path).unwrap();
    assert_eq!(opened.header(), created.header());
    assert_eq!(opened.file_id(), created.file_id());
    created.words().store(600, 42, Ordering::Release);
    assert_eq!(opened.words().load(600, Ordering::Acquire), 42);
    let other = Region::create(&folder.path().join("other"), &Geometry::default()).unwrap();
    assert_ne!(other.header().region, created.header().region);
}

#[test]
fn a_region_in_a_memfd_keeps_its_size_and_travels_by_descriptor() {
    let created = Region::create_memfd("test", &small()).unwrap();
    let file = created.as_fd().unwrap().try_clone_to_owned().unwrap();
    assert!(File::from(file.try_clone().unwrap()).set_len(4096).is_err());
    assert!(File::from(file.try_clone().unwrap()).set_len(1 << 30).is_err());
    let opened = Region::from_fd(file).unwrap();
    assert_eq!(opened.header(), created.header());
}

#[test]
fn creating_says_why_it_cannot_and_leaves_nothing() {
    let folder = folder();
    let path = folder.path().join("region");
    let no_memory = message(Region::create(Path::new("/proc/region"), &small()));
    assert!(no_memory.contains("/proc lies on a file system of type 0x9fa0"), "{no_memory}");
    assert!(no_memory.contains("needs tmpfs (0x1021994); use a folder below /dev/shm"), "{no_memory}");
    let no_folder = message(Region::create(&folder.path().join("none/region"), &small()));
    assert!(no_folder.contains("none") && no_folder.contains("No such file"), "{no_folder}");
    fs::write(&path, b"mine").unwrap();
    let exists = Region::create(&path, &small()).unwrap_err();
    assert!(matches!(exists, RegionError::Backing(BackingError::Exists { .. })), "{exists}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_wrong_size_is_refused_with_both_sizes() {
    let folder = folder();
    let expected = Layout::new(&small()).region_bytes();
    let path = changed(folder.path(), 0, b"");
    let resize = |bytes| OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    for found in [0, 1, 4095, expected - 1, expected + 3] {
        resize(found);
        let text = message(Region::open(&path));
        assert!(text.contains(&format!("has {found} bytes")) && text.contains("whole number of pages"), "{text}");
    }
    for found in [4096, expected - 4096, expected + 4096] {
        // A new header, because the cuts above have emptied it.
        let path = changed(folder.path(), 0, b"");
        OpenOptions::new().write(true).open(&path).unwrap().set_len(found).unwrap();
        let text = message(Region::open(&path));
        assert!(text.contains(&format!("has {found} bytes")) && text.contains(&expected.to_string()), "{text}");
    }
}

#[test]
fn a_wrong_magic_version_or_geometry_is_refused_with_what_was_found() {
    let folder = folder();
    let open = |at, bytes: &[u8]| message(Region::open(&changed(folder.path(), at, bytes)));
    let magic = open(0, b"ELEPHANT");
    assert!(magic.contains("not a Throughline region") && magic.contains("0x544e414850454c45"), "{magic}");
    let version = open(8, &(7u64 << 32 | 3).to_le_bytes());
    assert!(version.contains("version 7.3, and this program reads 1.x"), "{version}");
    let geometry = open(8 * 9, &5000u64.to_le_bytes());
    assert!(geometry.contains("header is damaged"), "{geometry}");
    for text in [magic, version, geometry] {
        assert!(text.contains("changed"), "names the file: {text}");
    }
}

#[tokio::test]
async fn a_region_of_any_minor_version_of_the_major_is_served() {
    for minor in [0, 1, u32::MAX] {
        let folder = folder();
        let path = folder.path().join("region");
        let created = Region::create(&path, &small()).unwrap();
        let mut header = Header::read(created.words()).unwrap();
        header.version.minor = minor;
        header.write(created.words());
        drop(created);
        let region = Region::open(&path).unwrap();
        assert_eq!(Header::read(region.words()).unwrap().version, Version { major: MAJOR, minor });
        let sidecar = Sidecar::create(&folder.path().join("sidecar"), &region).unwrap();
        let (here, there) = Doorbell::eventfd_pair().unwrap();
        let host = Link::host(region, sidecar).doorbell(here).attach().unwrap();
        let guest = Link::guest(Region::open(&path).unwrap()).doorbell(there).listen(1).attach().unwrap();
        let mut listener = guest.listener(1).unwrap();
        let say = async { host.connect_messages(1).await.unwrap().send(b"of another minor").await.unwrap() };
        let hear = async { listener.accept().await.unwrap().messages().unwrap().recv().await.unwrap().unwrap() };
        let exchange = async { tokio::join!(say, hear).1 };
        let heard = tokio::time::timeout(Duration::from_secs(30), exchange).await.unwrap();
        assert_eq!(heard, b"of another minor");
    }
}

#[test]
fn what_is_no_file_is_refused_by_its_kind() {
    let folder = folder();
    let made = changed(folder.path(), 0, b"");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&made, &link).unwrap();
    assert!(message(Region::open(&link)).contains("cannot open"), "a symbolic link");
    let pipe = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(message(Region::open(&pipe)).contains("is a pipe, and should be a regular file"));
    assert!(message(Region::open(&folder.path().join("none"))).contains("No such file"));
    let (socket, _peer) = UnixStream::pair().unwrap();
    assert!(message(Region::from_fd(OwnedFd::from(socket))).contains("is a socket"));
}

#[test]
fn a_descriptor_whose_file_can_be_cut_is_refused() {
    let folder = folder();
    let path = changed(folder.path(), 0, b"");
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    assert!(message(Region::from_fd(file.into())).contains("seal the memfd with F_SEAL_SHRINK"));
}

#[test]
fn a_region_has_one_guest_process() {
    let first = Region::create_memfd("test", &small()).unwrap();
    let second = Region::from_fd(first.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let lease = first.guest_lease().unwrap().unwrap();
    assert!(second.guest_lease().unwrap_err().to_string().contains("has a guest already"));
    drop(lease);
    assert!(second.guest_lease().unwrap().is_some());
}
