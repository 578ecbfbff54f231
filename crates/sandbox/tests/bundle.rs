//! Bundles without a guest: what is missing, cut or changed is named, and what was not completed is none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use throughline_sandbox::bundle::{
    Bundle, BundleError, Carried, DELTA, Draft, FileEntry, MANIFEST, Manifest, RAM, REGION, SIDECAR, STATE, VERSION,
};
use throughline_sandbox::engine::{Accelerator, Hardware, Machine};

const FILES: [&str; 5] = [STATE, RAM, DELTA, REGION, SIDECAR];

fn manifest() -> Manifest {
    let text = |text: &str| text.to_owned();
    Manifest {
        version: VERSION,
        created_ms: 1,
        machine: Machine {
            engine: text("qemu"),
            version: text("7.2.0"),
            machine_type: text("pc-q35-7.2"),
            cpu_model: text("max"),
            accelerator: Accelerator::Tcg,
        },
        image: text("image"),
        rootfs: None,
        kernel: text("kernel"),
        hardware: Hardware::default(),
        agent: 1,
        timeline: format!("{:032x}", 5),
        quiesced: true,
        carried: Carried::default(),
        files: BTreeMap::new(),
    }
}

/// Writes a small bundle, a file after another.
fn write(place: &Path) -> Result<Bundle, BundleError> {
    let draft = Draft::new(place)?;
    for (number, name) in (1..).zip(FILES) {
        let mut file = draft.create(name)?;
        file.write_all(&[number; 3000]).unwrap();
        file.set_len(20_000).unwrap();
    }
    draft.complete(manifest())
}

fn bundle() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("bundle");
    write(&place).unwrap();
    (folder, place)
}

/// Opens a bundle and looks at all of it, as a restore does.
fn accept(place: &Path) -> Result<(), BundleError> {
    let bundle = Bundle::open(place)?;
    FILES.iter().try_for_each(|file| bundle.check(file))
}

/// The error names the damaged file, and says this of it.
fn damaged(place: &Path, file: &str, words: &str) {
    let error = accept(place).unwrap_err();
    let BundleError::Damaged { file: found, .. } = &error else { panic!("{error}") };
    assert_eq!(found, file, "{error}");
    assert!(error.to_string().contains(file) && error.to_string().contains(words), "{error}");
}

#[test]
fn each_file_that_is_missing_cut_or_changed_is_named() {
    let (_folder, place) = bundle();
    accept(&place).unwrap();
    for name in FILES {
        let path = place.join(name);
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        damaged(&place, name, "missing");
        for length in [0, 1, whole.len() / 2, whole.len() - 1, whole.len() + 1] {
            let mut other = whole.clone();
            other.resize(length, 0);
            fs::write(&path, other).unwrap();
            damaged(&place, name, &format!("has {length} bytes, and had 20000"));
        }
        fs::write(&path, &whole).unwrap();
        accept(&place).unwrap();
        for at in (0..whole.len()).step_by(997) {
            for bit in [0x01, 0x80] {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[whole[at] ^ bit], at as u64).unwrap();
                damaged(&place, name, "checksum");
                file.write_all_at(&whole[at..=at], at as u64).unwrap();
            }
        }
    }
    accept(&place).unwrap();
}

#[test]
fn a_manifest_that_is_missing_cut_or_changed_anywhere_is_refused() {
    let (_folder, place) = bundle();
    let path = place.join(MANIFEST);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        damaged(&place, MANIFEST, "");
    }
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut other = whole.clone();
            other[at] ^= 1 << bit;
            fs::write(&path, other).unwrap();
            let error = Bundle::open(&place).err();
            // White space between the parts may change.
            assert!(matches!(error, Some(BundleError::Damaged { .. })), "bit {bit} of byte {at}: {error:?}");
        }
    }
    fs::write(&path, [whole, vec![b' '; 2 << 20]].concat()).unwrap();
    damaged(&place, MANIFEST, "no manifest has more than");
    fs::remove_file(&path).unwrap();
    let error = accept(&place).unwrap_err();
    assert!(matches!(error, BundleError::Absent(_)), "{error}");
    let error = Bundle::open(&place.join("no/where")).unwrap_err();
    assert!(matches!(error, BundleError::Absent(_)), "{error}");
}

#[test]
fn another_form_is_refused_whatever_else_it_says() {
    let (_folder, place) = bundle();
    let text = r#"{"version":3,"nothing":"that is known"}"#;
    let checksum = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    fs::write(place.join(MANIFEST), format!(r#"{{"manifest":{text},"checksum":{checksum}}}"#)).unwrap();
    let error = accept(&place).unwrap_err();
    assert!(matches!(error, BundleError::Version(3)), "{error}");
    assert!(error.to_string().contains("form 3") && error.to_string().contains("form 2"), "{error}");
}

#[test]
fn the_first_form_is_read() {
    let (_folder, place) = bundle();
    let mut first = Bundle::open(&place).unwrap().manifest().clone();
    first.version = 1;
    first.files.remove(DELTA);
    let text = serde_json::to_string(&first).unwrap();
    let checksum = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    fs::write(place.join(MANIFEST), format!(r#"{{"manifest":{text},"checksum":{checksum}}}"#)).unwrap();
    let bundle = Bundle::open(&place).unwrap();
    assert!(!bundle.has_delta() && bundle.manifest().version == 1);
}

#[test]
fn a_file_that_is_known_already_is_neither_read_nor_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = manifest();
    let known = FileEntry { bytes: 20_000, checksum: 5 };
    manifest.files.insert(RAM.to_owned(), known);
    let draft = Draft::new(&folder.path().join("bundle")).unwrap();
    for name in FILES {
        draft.create(name).unwrap().set_len(20_000).unwrap();
    }
    fs::set_permissions(draft.path(RAM), fs::Permissions::from_mode(0o400)).unwrap();
    let bundle = draft.complete(manifest).unwrap();
    assert_eq!(bundle.manifest().files[RAM], known);
    assert!(FILES.into_iter().all(|name| bundle.manifest().files.contains_key(name)));
}

#[test]
fn a_manifest_that_does_not_list_a_file_is_refused() {
    let (_folder, place) = bundle();
    let mut listed = Bundle::open(&place).unwrap().manifest().clone();
    listed.files.remove(RAM);
    let text = serde_json::to_string(&listed).unwrap();
    let checksum = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    fs::write(place.join(MANIFEST), format!(r#"{{"manifest":{text},"checksum":{checksum}}}"#)).unwrap();
    damaged(&place, MANIFEST, "does not list ram");
}

#[test]
fn every_difference_of_a_machine_is_named() {
    let (_folder, place) = bundle();
    let bundle = Bundle::open(&place).unwrap();
    let same = manifest().machine;
    bundle.check_machine(&same).unwrap();
    let here = Machine { version: "9.0.0".into(), accelerator: Accelerator::Kvm, cpu_model: "host".into(), ..same };
    let error = bundle.check_machine(&here).unwrap_err().to_string();
    for words in
        ["version is 7.2.0, and here it is 9.0.0", "model is max, and here it is host", "Tcg, and here it is Kvm"]
    {
        assert!(error.contains(words), "{error}");
    }
    assert!(!error.contains("machine type"), "{error}");
}

#[test]
fn a_draft_that_is_abandoned_or_fails_leaves_nothing_and_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let left = || fs::read_dir(folder.path()).unwrap().count();
    let place = folder.path().join("bundle");
    let draft = Draft::new(&place).unwrap();
    draft.create(RAM).unwrap();
    assert_eq!(left(), 1);
    drop(draft);
    assert_eq!(left(), 0);
    // A file is missing.
    let draft = Draft::new(&place).unwrap();
    draft.create(RAM).unwrap();
    draft.complete(manifest()).unwrap_err();
    assert_eq!(left(), 0);
    // Somebody was faster.
    let slow = Draft::new(&place).unwrap();
    for name in FILES {
        slow.create(name).unwrap();
    }
    write(&place).unwrap();
    let error = slow.complete(manifest()).unwrap_err();
    assert!(matches!(error, BundleError::Exists(_)), "{error}");
    assert_eq!(left(), 1);
    accept(&place).unwrap();
    let error = write(&place).unwrap_err();
    assert!(matches!(error, BundleError::Exists(_)), "{error}");
}

/// Runs the inner half, which writes a bundle, until it has made `calls` system calls; then kills it.
/// Whether it was still running.
#[expect(clippy::zombie_processes, reason = "it is waited for by its id, together with its threads")]
fn killed_after(calls: usize, place: &Path) -> bool {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "a_writer_killed_at_any_system_call_leaves_no_bundle_or_a_whole_one"]);
    let process = process.env(PLACE, place).stdout(Stdio::null()).spawn().unwrap();
    let process = Pid::from_raw(process.id().cast_signed());
    // Only the thread that writes is traced.
    let WaitStatus::Stopped(writer, Signal::SIGSTOP) = wait() else { panic!("the writer did not stop") };
    // Each call stops twice: before it, and after.
    for _ in 0..=calls * 2 {
        ptrace::syscall(writer, None).unwrap();
        match wait() {
            WaitStatus::Stopped(..) => {}
            WaitStatus::Exited(thread, 0) if thread == writer => {
                assert_eq!(wait(), WaitStatus::Exited(process, 0));
                return false;
            }
            other => panic!("{other:?}"),
        }
    }
    kill(process, Signal::SIGKILL).unwrap();
    while wait().pid() != Some(process) {}
    true
}

/// Waits for the next thing that happens to a child, or to a thread of one.
fn wait() -> WaitStatus {
    waitpid(None, Some(WaitPidFlag::__WALL)).unwrap()
}

const PLACE: &str = "THROUGHLINE_TEST_PLACE";

#[test]
fn a_writer_killed_at_any_system_call_leaves_no_bundle_or_a_whole_one() {
    if let Some(place) = std::env::var_os(PLACE) {
        ptrace::traceme().unwrap();
        raise(Signal::SIGSTOP).unwrap();
        write(Path::new(&place)).unwrap();
        return;
    }
    let (mut calls, mut drafts, mut whole) = (0, 0, 0);
    loop {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("bundle");
        let killed = killed_after(calls, &place);
        for entry in fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()) {
            if entry == place {
                accept(&place).unwrap();
                whole += 1;
            } else {
                drafts += 1;
                let error = Bundle::open(&entry).unwrap_err();
                assert!(matches!(error, BundleError::Absent(_)), "after {calls} calls: {error}");
            }
        }
        assert!(whole == 0 || place.exists(), "after {calls} calls it was not there, and had been before");
        if !killed {
            break;
        }
        calls += 1;
    }
    println!("{calls} kills: {drafts} left a draft, {whole} a whole bundle");
    assert!(drafts >= 20 && whole >= 2, "{calls} kills: {drafts} left a draft, {whole} a whole bundle");
}

#[test]
fn a_bundle_is_removed_whole_damaged_or_half_removed_and_nothing_else_is() {
    let (folder, place) = bundle();
    let left = || fs::read_dir(folder.path()).unwrap().count();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&place, &link).unwrap();
    let error = Bundle::remove(&link).unwrap_err();
    assert!(error.to_string().contains("link"), "{error}");
    accept(&place).unwrap();
    fs::remove_file(link).unwrap();
    let damage: [&dyn Fn(); 5] = [
        &|| {},
        &|| fs::create_dir_all(place.join("more/of/it")).unwrap(),
        &|| fs::remove_file(place.join(RAM)).unwrap(),
        &|| fs::write(place.join(MANIFEST), "{\"version\":4000000}").unwrap(),
        &|| FILES.iter().chain(&[MANIFEST]).for_each(|file| fs::remove_file(place.join(file)).unwrap()),
    ];
    for damage in damage {
        damage();
        Bundle::remove(&place).unwrap();
        assert_eq!(left(), 0);
        assert!(matches!(Bundle::remove(&place), Err(BundleError::Absent(_))));
        write(&place).unwrap();
    }
    // Without a manifest it is somebody's folder.
    fs::remove_file(place.join(MANIFEST)).unwrap();
    assert!(matches!(Bundle::remove(&place), Err(BundleError::Absent(_))));
    assert_eq!(fs::read_dir(&place).unwrap().count(), FILES.len());
}
