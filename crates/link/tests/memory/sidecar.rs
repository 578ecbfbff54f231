//! Sidecars: one driver per region, and no copies.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Other, again, folder, role, small, wait_for_the_end};
use throughline::{Origin, Region, Sidecar, SidecarError, SidecarFault, Timeline};
use throughline_ring::{Class, Geometry, Side};
use throughline_shmem::Words;
use throughline_shmem::sync::Ordering;

const PID_WORD: usize = 16;
const STARTED_WORD: usize = 17;
const CHECK_WORD: usize = 15;

fn create(folder: &Path) -> (Region, Sidecar) {
    let region = Region::create(&folder.join("region"), &small()).unwrap();
    let sidecar = Sidecar::create(&folder.join("sidecar"), &region).unwrap();
    (region, sidecar)
}

fn open(folder: &Path) -> Result<Sidecar, SidecarError> {
    Sidecar::open(&folder.join("sidecar"), &Region::open(&folder.join("region")).unwrap())
}

/// Copies a whole folder, as a user would.
fn copied(from: &Path, to: &Path) -> PathBuf {
    let to = to.join("copy");
    assert!(Command::new("cp").arg("-r").args([from, &to]).status().unwrap().success());
    to
}

fn overwrite(folder: &Path, word: usize, value: u64) {
    let file = OpenOptions::new().write(true).open(folder.join("sidecar")).unwrap();
    file.write_all_at(&value.to_le_bytes(), word as u64 * 8).unwrap();
}

#[test]
fn a_sidecar_exists_whole_and_keeps_its_words_for_the_next_process() {
    let folder = folder();
    let (region, sidecar) = create(folder.path());
    let found = fs::metadata(folder.path().join("sidecar")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    assert_eq!(found.len(), region.layout().sidecar_bytes());
    assert_eq!(std::os::unix::fs::MetadataExt::blocks(&found) * 512, found.len(), "nothing of it is sparse");
    let timeline = sidecar.timeline();
    assert_eq!((timeline.origin, timeline.parent, sidecar.event_pending()), (Origin::Created, 0, false));
    let at = region.layout().record(Side::Host, 1);
    sidecar.words().store(at, 77, Ordering::Release);
    drop(sidecar);
    let next = open(folder.path()).unwrap();
    assert_eq!(next.timeline(), timeline);
    assert_eq!(next.words().load(at, Ordering::Acquire), 77);
}

#[test]
fn a_second_attacher_is_refused_with_the_name_of_the_first() {
    let folder = folder();
    let (_region, _sidecar) = create(folder.path());
    let refused = open(folder.path()).unwrap_err();
    let SidecarError::Held { holder: Some(holder), .. } = &refused else { panic!("{refused}") };
    assert_eq!(holder.pid, std::process::id());
    assert!(holder.started > 0 && holder.is_running());
    let text = refused.to_string();
    assert!(text.contains(&format!("is held by process {} (running for ", std::process::id())), "{text}");
}

#[test]
fn a_killed_holder_loses_the_lease_at_once() {
    if let Some(at) = role() {
        let _sidecar = open(Path::new(&at)).unwrap();
        println!("held");
        return wait_for_the_end();
    }
    let folder = folder();
    drop(create(folder.path()));
    let mut holder =
        Other::start(again(&[], "sidecar::a_killed_holder_loses_the_lease_at_once", folder.path().to_str().unwrap()));
    holder.wait_for("held");
    let refused = open(folder.path()).unwrap_err();
    assert!(
        matches!(&refused, SidecarError::Held { holder: Some(found), .. } if found.pid == holder.pid()),
        "{refused}"
    );
    holder.kill();
    let SidecarError::Held { holder: Some(dead), .. } = refused else { unreachable!() };
    assert!(!dead.is_running());
    drop(open(folder.path()).unwrap());
}

#[test]
fn a_lease_does_not_travel_into_programs_that_the_holder_starts() {
    let folder = folder();
    let (region, sidecar) = create(folder.path());
    let mut cat = Command::new("cat");
    cat.arg("-");
    let child = Other::start(cat);
    drop((region, sidecar));
    drop(open(folder.path()).unwrap());
    drop(child);
}

#[test]
fn a_holder_that_is_gone_is_told_apart() {
    let folder = folder();
    let (_region, sidecar) = create(folder.path());
    // The same pid, given again.
    let started = sidecar.words().load(STARTED_WORD, Ordering::Acquire);
    sidecar.words().store(STARTED_WORD, started + 1, Ordering::Release);
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(text.contains(&format!("process {} (which is gone", std::process::id())), "{text}");
    // Beyond the largest pid that a kernel gives.
    sidecar.words().store(PID_WORD, 1 << 22 | 1, Ordering::Release);
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("process 4194305 (which is gone"), "{text}");
    sidecar.words().store(PID_WORD, 0, Ordering::Release);
    let text = open(folder.path()).unwrap_err().to_string();
    assert!(text.contains("just attaching"), "{text}");
}

#[test]
fn a_copied_folder_is_refused_and_the_original_goes_on() {
    let (folder, elsewhere) = (folder(), folder());
    let (_region, sidecar) = create(folder.path());
    let copy = copied(folder.path(), elsewhere.path());
    let refused = open(&copy).unwrap_err();
    assert!(matches!(refused, SidecarError::Copied { .. }), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("copy/region") && text.contains("inode"), "{text}");
    assert!(text.contains("throughline snapshot restore"), "{text}");
    drop(sidecar);
    drop(open(folder.path()).unwrap());
    // A folder that is moved stays the same sandbox.
    let moved = elsewhere.path().join("moved");
    fs::rename(folder.path(), &moved).unwrap();
    drop(open(&moved).unwrap());
}

#[test]
fn a_second_sidecar_is_refused_however_it_was_made() {
    let folder = folder();
    let (region, sidecar) = create(folder.path());
    let second = folder.path().join("second");
    let refused = Sidecar::create(&second, &region).unwrap_err();
    assert!(matches!(refused, SidecarError::RegionHeld { .. }), "{refused}");
    fs::copy(folder.path().join("sidecar"), &second).unwrap();
    let refused = Sidecar::open(&second, &region).unwrap_err();
    assert!(matches!(refused, SidecarError::RegionHeld { .. }), "{refused}");
    drop(sidecar);
    let refused = Sidecar::open(&second, &region).unwrap_err();
    assert!(refused.to_string().contains("second is a copy"), "{refused}");
    fs::remove_file(&second).unwrap();
    let (first, _) = region.layout().side_pages(Side::Host);
    region.words().store(first, 1, Ordering::Relaxed);
    let refused = Sidecar::create(&second, &region).unwrap_err();
    assert!(matches!(refused, SidecarError::Used { .. }), "{refused}");
    assert!(!second.exists());
}

#[test]
fn a_rebound_copy_is_a_timeline_of_its_own() {
    let (folder, elsewhere) = (folder(), folder());
    let (region, sidecar) = create(folder.path());
    let at = region.layout().record(Side::Host, 0);
    sidecar.words().store(at, 5, Ordering::Release);
    let copy = copied(folder.path(), elsewhere.path());
    let parent = sidecar.timeline().epoch;
    let timeline = Timeline { epoch: Sidecar::new_epoch().unwrap(), parent, index: 3, origin: Origin::Forked };
    let copied_region = Region::open(&copy.join("region")).unwrap();
    let rebound = Sidecar::rebind(&copy.join("sidecar"), &copied_region, timeline).unwrap();
    assert!(rebound.event_pending());
    assert!(matches!(open(&copy), Err(SidecarError::Held { .. })));
    drop(rebound);
    let next = open(&copy).unwrap();
    assert_eq!((next.timeline(), next.words().load(at, Ordering::Acquire)), (timeline, 5));
    assert!(next.event_pending());
    next.take_event();
    drop(next);
    assert!(!open(&copy).unwrap().event_pending());
    // Who died in the middle of rebinding left a wrong check word; it is done again.
    overwrite(&copy, CHECK_WORD, 0);
    let text = open(&copy).unwrap_err().to_string();
    assert!(text.contains("header is damaged"), "{text}");
    drop(Sidecar::rebind(&copy.join("sidecar"), &copied_region, timeline).unwrap());
    drop(open(&copy).unwrap());
}

#[test]
fn a_damaged_sidecar_is_refused_with_what_was_found() {
    let folder = folder();
    drop(create(folder.path()));
    let path = folder.path().join("sidecar");
    let good = fs::read(&path).unwrap();
    let text_with = |word: usize, value: u64| {
        fs::write(&path, &good).unwrap();
        overwrite(folder.path(), word, value);
        open(folder.path()).unwrap_err().to_string()
    };
    let magic = text_with(0, 0x1234);
    assert!(magic.contains("0x0000000000001234") && magic.contains("this is no sidecar"), "{magic}");
    let version = text_with(1, 9 << 32 | 4);
    assert!(version.contains("made in version 9.4, and this program reads 1.x"), "{version}");
    for word in 3..=CHECK_WORD {
        let found = u64::from_le_bytes(good[word * 8..][..8].try_into().unwrap());
        let text = text_with(word, found ^ 0x10);
        assert!(text.contains("header is damaged"), "word {word}: {text}");
    }
    fs::write(&path, &good).unwrap();
    drop(open(folder.path()).unwrap());
    for (found, words) in [(0, "whole number of pages"), (100, "whole number of pages"), (4096, "asks for 12288")] {
        fs::write(&path, &good[..found]).unwrap();
        let text = open(folder.path()).unwrap_err().to_string();
        assert!(text.contains(&format!("has {found} bytes")) && text.contains(words), "{text}");
    }
}

#[test]
fn a_sidecar_of_another_region_is_refused() {
    let (one, two) = (folder(), folder());
    drop(create(one.path()));
    let (other, sidecar) = create(two.path());
    drop(sidecar);
    let refused = Sidecar::open(&one.path().join("sidecar"), &other).unwrap_err();
    assert!(matches!(refused, SidecarError::OtherRegion { .. }), "{refused}");
    let timeline = Timeline { epoch: 1, parent: 0, index: 0, origin: Origin::Restored };
    let refused = Sidecar::rebind(&one.path().join("sidecar"), &other, timeline).unwrap_err();
    assert!(matches!(refused, SidecarError::OtherRegion { .. }), "{refused}");
    let large = Geometry::new(vec![Class { opener: Side::Host, count: 100, ring_bytes: 4096 }]).unwrap();
    let large = Region::create_memfd("large", &large).unwrap();
    let refused = Sidecar::open(&one.path().join("sidecar"), &large).unwrap_err();
    assert!(matches!(refused, SidecarError::Fault { reason: SidecarFault::Size { .. }, .. }), "{refused}");
}

#[test]
fn memfds_serve_two_processes_without_a_folder() {
    let region = Region::create_memfd("region", &small()).unwrap();
    let (sidecar, file) = Sidecar::create_memfd("sidecar", &region).unwrap();
    assert!(matches!(Sidecar::from_fd(&file, &region), Err(SidecarError::Held { .. })));
    drop(sidecar);
    drop(Sidecar::from_fd(&file, &region).unwrap());
}
