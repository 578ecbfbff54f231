//! Processes that die at every step of what they do: the next command finds a whole sandbox or none.

use std::collections::BTreeSet;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::dying::{
    Counting, Steps, bundle, checkpoints, entries, have_lived_for_long, is_gone, kill, kill_machine, kill_shim,
    no_zygote_is_left, shim, state, whole_or_none,
};
use crate::support::{Name, json, machines, printed, row, text, throughline, until};

/// The steps that were noted, but of those that repeat one another (`checked` is one for each file) the first.
fn different(noted: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let repeated = |step: &String| step.contains(" checked ") || step.contains(" removed ");
    let mut fresh = |step: &String| !repeated(step) || seen.insert(step.rsplit_once(' ').unwrap().0.to_owned());
    noted.iter().filter(|step| fresh(step)).cloned().collect()
}

/// The same step, as a process counts it that has done nothing else.
fn numbered_anew(step: &str, all: &[String]) -> String {
    let (what, _) = step.rsplit_once(' ').unwrap();
    let first = all.iter().find(|other| other.rsplit_once(' ').unwrap().0 == what).unwrap();
    let number = |step: &str| step.rsplit_once(' ').unwrap().1.parse::<u32>().unwrap();
    format!("{what} {}", number(step) - number(first) + 1)
}

#[test]
fn vm_a_shim_that_dies_at_any_step_of_a_snapshot_leaves_a_whole_sandbox_and_no_half_bundle() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("abort-snapshot"), &steps, &[]);
    let name = &counting.name.0;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let create = ["snapshot", "create", name, place.to_str().unwrap()];
    steps.forget();
    printed(create);
    let noted = steps.noted();
    assert!(bundle(folder.path(), "bundle", "nothing"));
    assert!(noted.len() >= 12 && noted.iter().all(|step| step.starts_with("shim ")), "{noted:?}");
    let mut whole = 0;
    for after in &different(&noted) {
        // A new shim counts from one again.
        kill_shim(&counting.name);
        let died = steps.run_and_die(&create, &numbered_anew(after, &noted));
        assert!(!died.status.success(), "{after}: nobody died");
        counting.is_whole(after);
        whole += usize::from(bundle(folder.path(), "bundle", after));
    }
    assert!((1..noted.len()).contains(&whole), "before it has its name it is none, and then it is whole");
    counting.lost_nothing();
}

#[test]
fn vm_a_shim_that_dies_at_any_step_of_a_snapshot_that_stops_leaves_the_sandbox_or_the_bundle() {
    let steps = Steps::new();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let name = Name::new("abort-stop");
    let mut counting = Counting::new(name, &steps, &[]);
    let stop = ["snapshot", "create", "--stop", &counting.name.0.clone(), place.to_str().unwrap()];
    steps.forget();
    printed(stop);
    // The bundle is what all others begin with.
    let (noted, kept) = (steps.noted(), folder.path().join("kept"));
    fs::rename(&place, &kept).unwrap();
    assert!(noted.iter().any(|step| step.starts_with("shim stopped")), "{noted:?}");
    let mut ends = [0; 2];
    for after in &different(&noted) {
        printed(["rm", "--force", &counting.name.0]);
        let restored = steps.run(&["snapshot", "restore", kept.to_str().unwrap(), "--name", &counting.name.0]);
        assert!(restored.status.success(), "{}", text(&restored.stderr));
        kill_shim(&counting.name);
        let _ = steps.run_and_die(&stop, &numbered_anew(after, &noted));
        let is_there = place.exists();
        if is_there {
            // What is asked next finds that it has ended.
            let _ = throughline(["exec", &counting.name.0, "--", "true"]);
            until(|| machines(&counting.name.0).is_empty());
            printed(["snapshot", "verify", place.to_str().unwrap()]);
            fs::remove_dir_all(&place).unwrap();
        } else {
            counting.is_whole(after);
        }
        ends[usize::from(is_there)] += 1;
        assert_eq!(entries(folder.path()), BTreeSet::from(["kept".to_owned()]), "after {after}");
    }
    assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
    printed(["rm", "--force", &counting.name.0]);
    printed(["snapshot", "restore", kept.to_str().unwrap(), "--name", &counting.name.0]);
    counting.id = json(["--json", "ps", &counting.name.0])[0]["id"].as_str().unwrap().to_owned();
    counting.lost_nothing();
}

#[test]
fn vm_whoever_dies_at_any_step_of_a_fork_leaves_whole_children_or_none() {
    let (source, steps) = (Steps::new(), Steps::new());
    let counting = Counting::new(Name::new("abort-fork"), &source, &[]);
    let child = Name::new("abort-fork-child");
    let fork = ["fork", &counting.name.0, &child.0];
    let forked = steps.run(&fork);
    assert!(forked.status.success(), "{}", text(&forked.stderr));
    let noted = steps.noted();
    printed(["rm", "--force", &child.0]);
    assert!(noted.iter().any(|step| step.starts_with("command ")) && noted.len() > 8, "{noted:?}");
    let mut born = 0;
    for after in &different(&noted) {
        let _ = steps.run_and_die(&fork, after);
        born += usize::from(whole_or_none(&child, after));
        counting.is_whole(after);
    }
    assert!((1..noted.len()).contains(&born), "{born} of {}", noted.len());
    // What a dead command left is removed by the next fork, with its own.
    printed(fork);
    no_zygote_is_left();
    counting.lost_nothing();
}

#[test]
fn vm_whoever_dies_at_any_step_of_a_restore_leaves_a_whole_sandbox_or_none() {
    let (steps, source, name) = (Steps::new(), Name::new("abort-source"), Name::new("abort-restore"));
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let place = place.to_str().unwrap();
    printed(["run", "--memory", "128M", "--name", &source.0]);
    printed(["snapshot", "create", "--stop", &source.0, place]);
    let restore = ["snapshot", "restore", place, "--name", &name.0];
    let restored = steps.run(&restore);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    let noted = steps.noted();
    assert!(noted.iter().all(|step| step.starts_with("shim ")) && noted.len() > 6, "{noted:?}");
    printed(["rm", "--force", &name.0]);
    let mut born = 0;
    for after in &different(&noted) {
        let _ = steps.run_and_die(&restore, after);
        born += usize::from(whole_or_none(&name, after));
    }
    assert!((1..noted.len()).contains(&born), "{born} of {}", noted.len());
    printed(["snapshot", "verify", place]);
}

#[test]
fn vm_a_machine_that_is_killed_in_the_middle_of_a_snapshot_is_dead_or_goes_back_and_leaves_no_half_bundle() {
    let steps = Steps::new();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    for (number, step) in ["draft", "quiet", "paused", "saved"].into_iter().enumerate() {
        for more in [&[][..], &["--checkpoint", "1h"]] {
            let counting = Counting::new(Name::new(&format!("abort-machine-{number}-{}", more.len())), &steps, more);
            let name = &counting.name.0;
            until(|| more.is_empty() || !checkpoints(&counting.name)["last"].is_null());
            let shim = shim(&counting.name);
            let noted = steps.noted().iter().filter(|noted| noted.starts_with(&format!("shim {step} "))).count();
            steps.stop(&format!("shim {step} {}", noted + 1));
            let create = steps.start(&["snapshot", "create", name, place.to_str().unwrap()]);
            until(|| state(shim) == Some('T'));
            steps.live();
            kill_machine(&counting.name);
            kill_process(Pid::from_raw(shim).unwrap(), Signal::CONT).unwrap();
            let taken = create.wait_with_output().unwrap();
            let whole = bundle(folder.path(), "bundle", step);
            assert_eq!(taken.status.code(), Some(if whole { 0 } else { 125 }), "{step}: {}", text(&taken.stderr));
            if more.is_empty() {
                until(|| row(name).unwrap()["state"] == "exited");
                assert_eq!(machines(name), [0; 0], "{step}");
            } else {
                until(|| checkpoints(&counting.name)["times"] == 1);
                counting.is_whole(step);
            }
            printed(["rm", "--force", name]);
            is_gone(&counting.name, step);
            steps.forget();
        }
    }
}

#[test]
fn vm_a_child_whose_shim_dies_before_it_says_that_it_is_there_is_taken_back_with_the_others() {
    let (source, steps) = (Steps::new(), Steps::new());
    let counting = Counting::new(Name::new("abort-all"), &source, &[]);
    let child = Name::new("abort-all-child");
    let fork = ["fork", &counting.name.0, &child.0, "--all-or-nothing"];
    steps.die("shim ready 1");
    let failed = steps.run(&fork[..3]);
    assert_eq!(failed.status.code(), Some(125), "{}", text(&failed.stderr));
    assert!(whole_or_none(&child, "its shim"), "a child whose shim died is a sandbox");
    let failed = steps.run(&fork);
    steps.live();
    assert_eq!(failed.status.code(), Some(125), "{}", text(&failed.stderr));
    assert!(!whole_or_none(&child, "its shim"), "it is there");
    counting.lost_nothing();
}

#[test]
fn vm_a_snapshot_whose_removal_was_broken_off_is_no_snapshot_and_can_be_removed() {
    let (steps, name) = (Steps::new(), Name::new("abort-rm"));
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let place = place.to_str().unwrap();
    printed(["snapshot", "create", "--stop", &name.0, place]);
    steps.die("command unbundled 2");
    assert!(!steps.run(&["snapshot", "rm", place]).status.success(), "nobody died");
    steps.live();
    let refused = throughline(["snapshot", "restore", place]);
    assert_eq!(refused.status.code(), Some(125), "{}", text(&refused.stderr));
    printed(["snapshot", "rm", place]);
    assert_eq!(entries(folder.path()), BTreeSet::new());
    assert_eq!(throughline(["snapshot", "rm", place]).status.code(), Some(125));
}

#[test]
fn vm_a_shim_that_dies_at_any_step_of_going_back_to_a_checkpoint_goes_back_all_the_same() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("abort-back"), &steps, &["--checkpoint", "1h"]);
    let name = &counting.name.0;
    let checkpoints = || checkpoints(&counting.name);
    until(|| !checkpoints()["last"].is_null());
    let epoch = || printed(["exec", name, "--", "cat", "/run/throughline/epoch"]);
    steps.forget();
    let mut known = vec![epoch()];
    kill_machine(&counting.name);
    until(|| checkpoints()["times"] == 1);
    known.push(epoch());
    // With the checkpoint that is taken as soon as it is back.
    let first = checkpoints()["last"].clone();
    until(|| checkpoints()["last"] != first || steps.noted().iter().any(|step| step.contains(" published ")));
    let noted: Vec<_> = steps.noted().into_iter().filter(|step| step.starts_with("shim ")).collect();
    assert!(noted.iter().any(|step| step.contains("gone over")) && noted.len() >= 8, "{noted:?}");
    for after in &different(&noted) {
        // A new shim, which takes a checkpoint first; and then goes back.
        let before = checkpoints();
        kill_shim(&counting.name);
        have_lived_for_long(&counting.name);
        steps.forget();
        assert!(steps.run(&["exec", name, "--", "true"]).status.success());
        until(|| checkpoints()["last"] != before["last"]);
        let shim = shim(&counting.name);
        let (what, _) = after.rsplit_once(' ').unwrap();
        steps.die(&steps.next(what));
        kill_machine(&counting.name);
        until(|| state(shim).is_none());
        steps.live();
        counting.is_whole(after);
        known.push(epoch());
        assert!(checkpoints()["times"].as_u64() > before["times"].as_u64(), "after {after}");
    }
    let different: BTreeSet<_> = known.iter().collect();
    assert_eq!(different.len(), known.len(), "each is a timeline of its own: {known:?}");
    counting.lost_nothing();
}

#[test]
fn vm_checkpoint_a_shim_and_its_machine_killed_at_any_step_of_one_go_back_to_the_one_before() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("abort-both"), &steps, &["--checkpoint", "300ms"]);
    let name = &counting.name.0;
    let taken = || {
        let before = checkpoints(&counting.name)["last"].clone();
        until(|| checkpoints(&counting.name)["last"] != before);
    };
    taken();
    steps.forget();
    taken();
    taken();
    let noted: BTreeSet<_> = steps.noted().iter().map(|step| step.rsplit_once(' ').unwrap().0.to_owned()).collect();
    assert!(noted.len() >= 8 && noted.contains("shim published"), "{noted:?}");
    for (round, step) in noted.iter().enumerate() {
        printed(["exec", name, "--", "sh", "-c", &format!("echo {round} >/root/round")]);
        taken();
        taken();
        let shim = shim(&counting.name);
        until(|| {
            steps.stop(&steps.next(step));
            state(shim) == Some('T')
        });
        steps.live();
        kill_machine(&counting.name);
        kill(shim);
        until(|| state(shim).is_none());
        have_lived_for_long(&counting.name);
        steps.forget();
        let back = steps.run(&["exec", name, "--", "cat", "/root/round"]);
        assert_eq!(text(&back.stdout), format!("{round}\n"), "after {step}: {}", text(&back.stderr));
        counting.is_whole(step);
    }
    assert_eq!(checkpoints(&counting.name)["times"], noted.len());
    counting.lost_nothing();
}

#[test]
fn vm_whoever_dies_at_any_step_of_a_removal_leaves_what_the_next_removal_removes() {
    let (template, steps) = (Steps::new(), Steps::new());
    let counting = Counting::new(Name::new("abort-remove"), &template, &[]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let kept = folder.path().join("kept");
    printed(["snapshot", "create", "--stop", &counting.name.0, kept.to_str().unwrap()]);
    let name = Name::new("abort-removed");
    let restore = || {
        let restored = steps.run(&["snapshot", "restore", kept.to_str().unwrap(), "--name", &name.0]);
        assert!(restored.status.success(), "{}", text(&restored.stderr));
        steps.forget();
    };
    let remove = ["rm", "--force", &name.0];
    restore();
    assert!(steps.run(&remove).status.success());
    let noted = steps.noted();
    assert!(noted.iter().any(|step| step.starts_with("command wipe")), "{noted:?}");
    assert!(noted.iter().any(|step| step.starts_with("shim concluded")), "{noted:?}");
    for after in &noted {
        restore();
        steps.die(after);
        let removed = steps.run(&remove);
        // What a shim still writes down when it has told the end is removed with the rest, or before.
        let late = removed.status.success() && after.starts_with("shim record");
        assert!(late || steps.came_to(after), "after {after}: nobody died");
        steps.live();
        printed(remove);
        is_gone(&name, after);
    }
}
