//! The parts of an identity that may be tried on any machine: not its clock, pool and name.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use throughline::{Hostname, Identity};

use super::files::{Files, boot_id, hostname};
use super::{FilesError, HookError, hooks, machine_id};
use crate::reaper::{Reaper, Scope};
use crate::spawn::Spawner;

fn identity() -> Identity {
    Identity { seq: 1, epoch: 0xe, parent: 0xf, index: 7, clock_ns: 0, flags: 0, entropy: [0; 64], hostname: None }
}

/// Installs a hook. A child writes it: a descriptor of ours could be inherited by a process that another test
/// forks just then, and the file would be busy.
fn hook(folder: &Path, name: &str, script: &str) {
    let write = "printf '%s\n' '#!/bin/sh' \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let path = folder.join(name);
    let status = Command::new("sh").args(["-c", write]).arg(path).arg(script).status().unwrap();
    assert!(status.success());
}

async fn run(folder: &Path, limit: Duration) -> (Result<(), HookError>, usize) {
    let reaper = Reaper::new(Scope::Adopted);
    let spawner = Spawner::new(None, false);
    let identity = identity();
    let hooks = hooks::list(folder).unwrap();
    let result = tokio::select! {
        result = hooks::run(&hooks, &identity, &spawner, &reaper, limit) => result,
        ended = reaper.run() => panic!("{ended:?}"),
    };
    // A killed hook is still to be reaped.
    let rest = async {
        while reaper.running() > 0 {
            reaper.reap();
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), rest).await.unwrap();
    (result, reaper.running())
}

const LONG: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "current_thread")]
async fn hooks_run_in_order_and_know_the_lineage() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.txt");
    let line = format!(
        "echo $0 $THROUGHLINE_EPOCH $THROUGHLINE_PARENT $THROUGHLINE_INDEX $THROUGHLINE_HOSTNAME >>{}",
        trace.display()
    );
    hook(folder.path(), "20-second", &line);
    hook(folder.path(), "10-first", &line);
    fs::create_dir(folder.path().join("30-folder")).unwrap();
    run(folder.path(), LONG).await.0.unwrap();
    let (epoch, parent) = (format!("{:032x}", 0xe), format!("{:032x}", 0xf));
    let host = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    let line = |name| format!("{} {epoch} {parent} 7 {host}\n", folder.path().join(name).display());
    let expected = line("10-first") + &line("20-second");
    assert_eq!(fs::read_to_string(trace).unwrap(), expected);
    run(Path::new("/nonexistent"), LONG).await.0.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn a_hook_that_fails_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.txt");
    hook(folder.path(), "1", "exit 3");
    hook(folder.path(), "2", &format!("echo >{}", trace.display()));
    let error = run(folder.path(), LONG).await.0.unwrap_err();
    assert!(matches!(error, HookError::Failed { code: 3, .. }), "{error}");
    assert!(!trace.exists());
    fs::remove_file(folder.path().join("1")).unwrap();
    std::os::unix::fs::symlink("/dev/null", folder.path().join("1")).unwrap();
    let _ = run(folder.path(), LONG).await.0;
    assert!(trace.exists(), "a device is no hook");
    fs::remove_file(folder.path().join("1")).unwrap();
    hook(folder.path(), "0", "");
    let broken = "printf '#!/nonexistent' >\"$0\"";
    let path = folder.path().join("0");
    assert!(Command::new("sh").args(["-c", broken]).arg(path).status().unwrap().success());
    let error = run(folder.path(), LONG).await.0.unwrap_err();
    assert!(matches!(error, HookError::Start { .. }), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_hook_that_hangs_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    hook(folder.path(), "1", "sleep 1000");
    let (result, running) = run(folder.path(), Duration::from_millis(50)).await;
    assert!(matches!(result, Err(HookError::Late { .. })), "{result:?}");
    assert_eq!(running, 0);
}

#[test]
fn machine_ids_are_valid_and_follow_the_epoch() {
    assert_eq!(machine_id(0), "00000000000040008000000000000000");
    assert_eq!(machine_id(u128::MAX), "ffffffffffff4fffbfffffffffffffff");
    assert_ne!(machine_id(1), machine_id(2));
}

#[test]
fn boot_ids_look_like_the_kernels_and_are_no_machine_ids() {
    assert_eq!(boot_id(0), "00000000-0000-4000-8000-000000000000");
    assert_eq!(boot_id(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    let epoch = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
    assert_eq!(boot_id(epoch), "fedcba98-7654-4210-8123-456789abcdef");
    assert_ne!(boot_id(epoch).replace('-', ""), machine_id(epoch));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("boot_id");
    fs::write(&file, "").unwrap();
    // As whoever lies over the kernel's file, it stays the same file.
    let open = fs::File::open(&file).unwrap();
    let files = Files::find(folder.path(), folder.path());
    for epoch in [1, 2] {
        files.write_boot_id(epoch).unwrap();
        let mut text = [0; 37];
        std::os::unix::fs::FileExt::read_exact_at(&open, &mut text, 0).unwrap();
        assert_eq!(String::from_utf8_lossy(&text), format!("{}\n", boot_id(epoch)));
        assert_eq!(open.metadata().unwrap().len(), 37);
    }
}

#[test]
fn files_say_who_the_guest_is_whatever_lay_there() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run/throughline");
    let [id, host, epoch] = [folder.path().join("machine-id"), folder.path().join("hostname"), run.join("epoch")];
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    let write = |number| {
        let files = Files::find(folder.path(), &run);
        let name = hostname(&Identity { epoch: number, ..identity() });
        files.write_names(number, &name)?;
        files.write_epoch(number)?;
        Ok::<_, FilesError>(name)
    };
    let check = |number| {
        assert_eq!(read(&id), format!("{}\n", machine_id(number)));
        assert_eq!(read(&host), format!("throughline-{}\n", &machine_id(number)[..12]));
        assert_eq!(read(&epoch), format!("{number:032x}\n"));
    };
    write(1).unwrap();
    check(1);
    fs::write(&host, "a name that is longer than the one that will stand here\n").unwrap();
    assert_eq!(write(u128::MAX).unwrap(), "throughline-ffffffffffff");
    check(u128::MAX);
    // Neither followed nor waited for.
    let aim = folder.path().join("aim");
    fs::write(&aim, "untouched").unwrap();
    fs::remove_file(&id).unwrap();
    std::os::unix::fs::symlink(&aim, &id).unwrap();
    fs::remove_file(&host).unwrap();
    assert!(Command::new("mkfifo").arg(&host).status().unwrap().success());
    write(7).unwrap();
    check(7);
    assert_eq!(read(&aim), "untouched");
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["aim", "hostname", "machine-id", "run"], "a temporary file was left");
    let given = Identity { hostname: Hostname::new("web-2").ok(), ..identity() };
    Files::find(folder.path(), &run).write_names(1, &hostname(&given)).unwrap();
    assert_eq!(read(&host), "web-2\n");
    let error = Files::find(folder.path(), &host).write_epoch(1).unwrap_err();
    assert!(error.to_string().contains("hostname/epoch"), "{error}");
}

#[test]
fn one_preparation_names_several_identities_and_leaves_nothing_of_a_longer_name() {
    let folder = tempfile::tempdir().unwrap();
    let host = folder.path().join("hostname");
    // Also where the file that was found is the shortest of all.
    for found in ["", "a name as long as any that comes after it"] {
        fs::write(&host, found).unwrap();
        let files = Files::find(folder.path(), folder.path());
        for name in ["rehearsed-with-a-long-name", "web-1", "rehearsed-again", "web-22", "w"] {
            files.write_names(1, name).unwrap();
            assert_eq!(fs::read_to_string(&host).unwrap(), format!("{name}\n"));
        }
    }
}
