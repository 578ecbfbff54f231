//! A full file system is a typed error, and never a dead process. Runs on a tmpfs of its own, in a
//! mount namespace of its own.

use std::path::Path;
use std::process::Command;

use crate::common::{again, folder, role};
use throughline::{BackingError, Region, RegionError, Sidecar, SidecarError};
use throughline_ring::{Geometry, Side};
use throughline_shmem::{AllocateError, Words};

fn mount(options: &str, at: &Path) {
    let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
    assert!(done.unwrap().success());
}

#[test]
fn a_full_file_system_refuses_and_never_kills() {
    if let Some(at) = role() {
        return on_a_small_tmpfs(Path::new(&at));
    }
    let folder = folder();
    let root = rustix::process::geteuid().is_root();
    let namespace = if root { &["unshare", "-m"] } else { &["unshare", "-Urm"] };
    let test = "full::a_full_file_system_refuses_and_never_kills";
    let status = again(namespace, test, folder.path().to_str().unwrap()).status().unwrap();
    assert!(status.success(), "{status}");
}

fn on_a_small_tmpfs(at: &Path) {
    let path = at.join("region");
    let geometry = Geometry::default();
    mount("size=64k,mode=700", at);
    let refused = Region::create(&path, &geometry).unwrap_err();
    assert!(matches!(refused, RegionError::Backing(BackingError::NoSpace { .. })), "{refused}");
    assert!(refused.to_string().contains("region") && refused.to_string().contains("is full"), "{refused}");
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 0);

    // Room for the region's first pages (212 KiB), half a sidecar more.
    mount("remount,size=256k", at);
    let region = Region::create(&path, &geometry).unwrap();
    let refused = Sidecar::create(&at.join("sidecar"), &region).unwrap_err();
    assert!(matches!(refused, SidecarError::Backing(BackingError::NoSpace { .. })), "{refused}");
    assert_eq!(std::fs::read_dir(at).unwrap().count(), 1);

    // And for the sidecar (108 KiB) and one small ring.
    mount("remount,size=400k", at);
    let _sidecar = Sidecar::create(&at.join("sidecar"), &region).unwrap();
    let slot = region.layout().slots()[0];
    let words = slot.ring_bytes as usize / 8;
    let (there, back) = (slot.ring_at(Side::Host), slot.ring_at(Side::Guest));
    region.words().allocate(there, words).unwrap();
    let refused = region.words().allocate(back, words);
    assert_eq!(refused, Err(AllocateError::NoSpace { bytes: slot.ring_bytes }));
    assert!(refused.unwrap_err().to_string().contains("no space for 65536 more bytes"));
    // What was allocated can be touched, to the last word.
    std::fs::write(at.join("filler"), vec![1; 1 << 20]).unwrap_err();
    region.words().zero(there, words);
    region.words().release(there, words).unwrap();
    region.words().allocate(back, words).unwrap();
    region.words().zero(back, words);

    a_sparse_copy_is_refused(at, &path);
}

/// A copy may have holes where the original had zeros, and touching a hole needs memory.
fn a_sparse_copy_is_refused(at: &Path, path: &Path) {
    let copy = at.join("copy");
    std::fs::remove_file(at.join("filler")).unwrap();
    let copied = Command::new("cp").arg("--sparse=always").args([path, &copy]).status().unwrap();
    assert!(copied.success());
    std::fs::write(at.join("filler"), vec![1; 1 << 20]).unwrap_err();
    let refused = Region::open(&copy).unwrap_err();
    assert!(matches!(refused, RegionError::Backing(BackingError::NoSpace { .. })), "{refused}");
}
