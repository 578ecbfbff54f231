//! Hosts that have little to give: few descriptors, no watches of files.

use std::fs;
use std::process::Command;
use std::time::Instant;

use crate::dying::shim;
use crate::support::{Name, command, places, printed, row, text, until};

/// The least time between two tries to accept a client, in milliseconds.
const BETWEEN_MS: u128 = 100;

/// The soft limit of a process's open files, and the hard one.
fn limits(pid: i32) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

fn prlimit(arguments: &[&str]) {
    let set = Command::new("prlimit").args(arguments).output().unwrap();
    assert!(set.status.success(), "{}", text(&set.stderr));
}

#[test]
fn vm_shim_raises_its_limit_and_one_without_descriptors_waits_for_some_and_does_not_spin() {
    let name = Name::new("limits");
    let mut run = Command::new("prlimit");
    let run = run.args(["--nofile=200:3000"]).arg(command()).args(["run", "--memory", "128M", "--name", &name.0]);
    let run = run.output().unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let shim = shim(&name);
    assert_eq!(limits(shim), ["3000", "3000"]);

    // To the first number that is free: there are higher ones. A client that has just gone may still have some.
    let starve = || {
        let open = (0..3000).find(|number| fs::symlink_metadata(format!("/proc/{shim}/fd/{number}")).is_err());
        prlimit(&[&format!("--pid={shim}"), &format!("--nofile={}:3000", open.unwrap())]);
    };
    let began = Instant::now();
    starve();
    let mut exec = Command::new(command());
    exec.args(["exec", &name.0, "--", "echo", "here"]);
    let exec = std::thread::scope(|all| {
        let waiting = all.spawn(move || exec.output().unwrap());
        let log = places(&name.0)[1].join("shim.log");
        let refused = || text(&fs::read(&log).unwrap()).matches("a client was not accepted").count();
        until(|| {
            starve();
            refused() > 3
        });
        let (tries, most) = (refused() as u128, began.elapsed().as_millis() / BETWEEN_MS + 1);
        assert!(tries <= most, "{tries} tries, where there was time for {most}");
        prlimit(&[&format!("--pid={shim}"), "--nofile=3000:3000"]);
        waiting.join().unwrap()
    });
    assert_eq!(text(&exec.stdout), "here\n", "{}", text(&exec.stderr));
}

#[test]
fn vm_sandbox_of_a_user_without_watches_keeps_its_console_small_all_the_same() {
    let name = Name::new("unwatched");
    let mut run = Command::new("unshare");
    let none = "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$@\"";
    let run = run.args(["--user", "--map-root-user", "sh", "-c", none, "sh"]).arg(command());
    let run = run.args(["run", "--memory", "128M", "--name", &name.0]).output().unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert_eq!(row(&name.0).unwrap()["state"], "running");
    let held = fs::read_dir(format!("/proc/{}/fd", shim(&name))).unwrap().flatten();
    let held: Vec<_> = held.filter_map(|file| fs::read_link(file.path()).ok()).collect();
    assert!(!held.iter().any(|file| file.to_string_lossy().contains("inotify")), "{held:?}");
    printed(["exec", &name.0, "--", "sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x >/dev/console"]);
    // Turned over.
    let older = places(&name.0)[1].join("console.old");
    until(|| older.exists());
}
