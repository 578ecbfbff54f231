//! Processes that stand still for a while, and clocks that jump: nothing is lost, and nobody waits for ever.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Name, command, json, machines, printed, text};

/// How long a process stands still: longer than most things take, shorter than any deadline.
const STOPPED: Duration = Duration::from_secs(5);
const YEAR: u64 = 365 * 24 * 3600;

fn start(arguments: &[&str]) -> Child {
    let mut start = Command::new(command());
    start.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn shim(name: &Name) -> i32 {
    i32::try_from(json(["--json", "inspect", &name.0])["shim"].as_i64().unwrap()).unwrap()
}

#[test]
fn vm_a_process_that_is_stopped_for_five_seconds_delays_what_it_does_and_breaks_nothing() {
    let name = Name::new("stopped");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let script = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let expected: String = (0..100).fold(String::new(), |text, i| text + &format!("line {i}\n"));
    let [machine] = machines(&name.0)[..] else { panic!("one machine") };
    for who in ["client", "shim", "machine", "machine in a snapshot", "shim in a snapshot"] {
        let follow = start(&["exec", &name.0, "--", "sh", "-c", script]);
        let snapshot = who.ends_with("snapshot").then(|| {
            let create = start(&["snapshot", "create", &name.0, place.to_str().unwrap()]);
            std::thread::sleep(Duration::from_millis(30));
            create
        });
        let pid = match who {
            "client" => i32::try_from(follow.id()).unwrap(),
            "shim" | "shim in a snapshot" => shim(&name),
            _ => machine,
        };
        signal(pid, Signal::STOP);
        std::thread::sleep(STOPPED);
        signal(pid, Signal::CONT);
        if let Some(snapshot) = snapshot {
            let taken = snapshot.wait_with_output().unwrap();
            assert!(taken.status.success(), "{who}: {}", text(&taken.stderr));
            printed(["snapshot", "verify", place.to_str().unwrap()]);
            std::fs::remove_dir_all(&place).unwrap();
        }
        let followed = follow.wait_with_output().unwrap();
        assert_eq!(text(&followed.stdout), expected, "{who}: {}", text(&followed.stderr));
        assert!(followed.status.success(), "{who}");
        assert_eq!(machines(&name.0), [machine], "{who}: the same machine");
    }
}

/// Seconds since 1970 in the guest, and on this host.
fn clocks(name: &Name) -> (u64, u64) {
    let theirs = printed(["exec", &name.0, "--", "date", "+%s"]).trim().parse().unwrap();
    (theirs, SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

#[test]
fn vm_a_clock_that_jumps_disturbs_nothing_and_is_right_after_the_next_restore() {
    let name = Name::new("clock");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let expected: String = (0..60).fold(String::new(), |text, i| text + &format!("line {i}\n"));
    // In the guest, forwards and backwards, while something flows.
    for jump in ["2040-01-01 00:00", "1999-01-01 00:00"] {
        let follow = start(&["exec", &name.0, "--", "sh", "-c", script]);
        printed(["exec", &name.0, "--", "date", "-s", jump]);
        let followed = follow.wait_with_output().unwrap();
        assert_eq!(text(&followed.stdout), expected, "{}", text(&followed.stderr));
    }
    let (theirs, ours) = clocks(&name);
    assert!(theirs.abs_diff(ours) > YEAR, "it is off");
    // A snapshot of a clock that is wrong.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    printed(["snapshot", "create", &name.0, place.to_str().unwrap()]);
    let restored = Name::new("clock-right");
    printed(["snapshot", "restore", place.to_str().unwrap(), "--name", &restored.0]);
    let (theirs, ours) = clocks(&restored);
    assert!(theirs.abs_diff(ours) < 60, "{theirs} where it is {ours}");
}
