//! Processes that are killed at a random moment of what they do: the next command finds a whole sandbox or none.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::dying::{
    Counting, Steps, bundle, checkpoints, entries, have_lived_for_long, is_gone, kill, kill_machine, kill_shim,
    no_zygote_is_left, shim, state, whole_or_none,
};
use crate::support::{Name, command, json, machines, printed, row, text, throughline, until};

/// Kills of each kind.
const KILLS: usize = 6;

/// Comes somewhere in the first so many milliseconds.
fn moment(most: u64) {
    let (began, moment) = (Instant::now(), Duration::from_micros(fastrand::u64(0..1000 * most)));
    while began.elapsed() < moment {
        std::thread::yield_now();
    }
}

fn start(arguments: &[&str]) -> Child {
    let mut start = Command::new(command());
    start.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The processes that a process has started, and that have not ended.
fn started_by(process: &Child) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> = children.flat_map(|all| pids(&all)).collect();
    children.into_iter().filter(|pid| state(*pid).is_some()).collect()
}

fn pids(text: &str) -> Vec<i32> {
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Kills a command, and waits until what it had started has come to a sandbox of this name, or to its end.
fn kill_command(mut process: Child, name: &Name) {
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    // Nothing is started between the look and its end.
    kill_process(pid, Signal::STOP).unwrap();
    until(|| state(pid.as_raw_pid()).is_none_or(|state| state == 'T'));
    let creators = started_by(&process);
    process.kill().unwrap();
    process.wait().unwrap();
    let is_ready = || row(&name.0).is_some_and(|row| row["state"] != "unfinished");
    until(|| creators.iter().all(|creator| state(*creator).is_none()) || is_ready());
}

/// Kills what a command has started, if it comes to that, in the first so many milliseconds.
fn kill_creator(process: &mut Child, most: u64) {
    until(|| !started_by(process).is_empty() || process.try_wait().unwrap().is_some());
    let creators = started_by(process);
    moment(most);
    for creator in creators.into_iter().filter(|creator| state(*creator).is_some()) {
        kill(creator);
    }
    process.wait().unwrap();
}

#[test]
fn vm_a_shim_killed_at_any_moment_of_a_snapshot_leaves_a_whole_sandbox_and_no_half_bundle() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("random-snapshot"), &steps, &[]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let mut whole = 0;
    for _ in 0..KILLS {
        let shim = shim(&counting.name);
        let mut under_way = start(&["snapshot", "create", &counting.name.0, place.to_str().unwrap()]);
        moment(300);
        kill(shim);
        under_way.wait().unwrap();
        counting.is_whole("a random moment");
        whole += usize::from(bundle(folder.path(), "bundle", "a random moment"));
    }
    println!("{whole} of {KILLS} came to a snapshot");
    counting.lost_nothing();
}

#[test]
fn vm_whoever_is_killed_at_any_moment_of_a_fork_leaves_whole_children_or_none() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("random-fork"), &steps, &[]);
    let child = Name::new("random-fork-child");
    let mut born = 0;
    for _ in 0..KILLS {
        for who in ["the command", "the source's shim", "the child's shim"] {
            let source = shim(&counting.name);
            let mut fork = start(&["fork", &counting.name.0, &child.0]);
            match who {
                "the command" => {
                    moment(400);
                    kill_command(fork, &child);
                }
                "the source's shim" => {
                    moment(250);
                    kill(source);
                    fork.wait().unwrap();
                }
                _ => kill_creator(&mut fork, 250),
            }
            born += usize::from(whole_or_none(&child, who));
            counting.is_whole(who);
        }
    }
    println!("{born} of {} came to a child", 3 * KILLS);
    // What a dead command left is removed by the next fork, with its own.
    printed(["fork", &counting.name.0, &child.0]);
    no_zygote_is_left();
    counting.lost_nothing();
}

#[test]
fn vm_whoever_is_killed_at_any_moment_of_a_restore_leaves_a_whole_sandbox_or_none() {
    let steps = Steps::new();
    let mut counting = Counting::new(Name::new("random-restore"), &steps, &[]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let kept = folder.path().join("kept").to_str().unwrap().to_owned();
    printed(["snapshot", "create", "--stop", &counting.name.0, &kept]);
    printed(["rm", "--force", &counting.name.0]);
    let restore = ["snapshot", "restore", &kept, "--name", &counting.name.0];
    let mut ready = 0;
    for _ in 0..KILLS {
        let command = start(&restore);
        moment(300);
        kill_command(command, &counting.name);
        ready += usize::from(whole_or_none(&counting.name, "the command"));
        let mut command = start(&restore);
        kill_creator(&mut command, 250);
        ready += usize::from(whole_or_none(&counting.name, "the creator"));
    }
    println!("{ready} of {} came to a sandbox", 2 * KILLS);
    printed(["snapshot", "verify", &kept]);
    printed(restore);
    counting.id = json(["--json", "ps", &counting.name.0])[0]["id"].as_str().unwrap().to_owned();
    counting.lost_nothing();
}

#[test]
fn vm_a_shim_killed_at_any_moment_of_a_checkpoint_or_of_going_back_to_one_is_followed_by_one_that_goes_on() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("random-back"), &steps, &["--checkpoint", "1h"]);
    let name = &counting.name;
    until(|| !checkpoints(name)["last"].is_null());
    let mut taken = 0;
    for _ in 0..KILLS {
        // Whoever takes over takes one at once.
        kill_shim(name);
        let (before, shim) = (checkpoints(name)["last"].clone(), shim(name));
        moment(250);
        kill(shim);
        taken += usize::from(checkpoints(name)["last"] != before);
        counting.is_whole("a random moment of a checkpoint");
    }
    let epoch = || printed(["exec", &name.0, "--", "cat", "/run/throughline/epoch"]);
    let mut known = vec![epoch()];
    for _ in 0..KILLS {
        let (times, shim) = (checkpoints(name)["times"].as_u64(), shim(name));
        kill_machine(name);
        moment(400);
        kill(shim);
        until(|| state(shim).is_none());
        have_lived_for_long(name);
        counting.is_whole("a random moment of going back");
        assert!(checkpoints(name)["times"].as_u64() > times);
        let epoch = epoch();
        assert!(!known.contains(&epoch), "a timeline of its own");
        known.push(epoch);
    }
    println!("{taken} of {KILLS} came to a checkpoint");
    counting.lost_nothing();
}

#[test]
fn vm_whoever_is_killed_at_any_moment_of_a_removal_leaves_what_the_next_removal_removes() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("random-remove"), &steps, &[]);
    let name = &counting.name;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let kept = folder.path().join("kept").to_str().unwrap().to_owned();
    printed(["snapshot", "create", "--stop", &name.0, &kept]);
    printed(["rm", "--force", &name.0]);
    for round in 0..2 * KILLS {
        printed(["snapshot", "restore", &kept, "--name", &name.0]);
        let groups = json(["--json", "inspect", &name.0])["sandbox"]["machine"]["groups"].clone();
        let shim = shim(name);
        let mut remove = start(&["rm", "--force", &name.0]);
        moment(40);
        if round % 2 == 0 {
            remove.kill().unwrap();
        } else if state(shim).is_some() {
            kill(shim);
        }
        remove.wait().unwrap();
        // As it was, or ended.
        if row(&name.0).is_some_and(|row| row["state"] == "running") {
            let answer = throughline(["exec", &name.0, "--", "echo", "whole"]);
            assert!(answer.status.success() || machines(&name.0).is_empty(), "{}", text(&answer.stderr));
        }
        printed(["rm", "--force", &name.0]);
        is_gone(name, "a random moment of a removal");
        let left = |group: &&serde_json::Value| fs::exists(group.as_str().unwrap()).unwrap();
        assert_eq!(groups.as_array().unwrap().iter().find(left), None, "a control group is left");
    }
    assert_eq!(entries(folder.path()).len(), 1);
    printed(["snapshot", "verify", &kept]);
}
