//! Processes that die at every step of what they do: the next command finds a whole sandbox or none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::{Name, command, json, machines, places, printed, row, text, throughline, until};

/// Kills at random moments of each operation.
const RANDOM: u64 = 6;

/// Where processes write down their steps, and read at which one to die.
struct Steps(tempfile::TempDir);

impl Steps {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command, whose steps, and whose shims' steps, are noted here.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut run = Command::new(command());
        run.args(arguments).env("THROUGHLINE_STEPS", self.0.path()).stdin(Stdio::null()).output().unwrap()
    }

    fn forget(&self) {
        let _ = fs::remove_file(self.file("steps"));
    }

    fn noted(&self) -> Vec<String> {
        let noted = fs::read_to_string(self.file("steps")).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// From here on, whoever comes to this step dies.
    fn die(&self, step: &str) {
        fs::write(self.file("die"), format!("{step}\n")).unwrap();
    }

    fn live(&self) {
        let _ = fs::remove_file(self.file("die"));
    }
}

/// A sandbox that counts, so that it can be seen whether it goes on.
struct Counting {
    name: Name,
    id: String,
}

impl Counting {
    fn new(name: Name, steps: &Steps, more: &[&str]) -> Self {
        let run = steps.run(&[&["run", "--memory", "128M", "--name", &name.0], more].concat());
        assert!(run.status.success(), "{}", text(&run.stderr));
        let script = "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); sleep 0.05; done";
        let id = printed(["exec", "-d", &name.0, "--", "sh", "-c", script]).trim().to_owned();
        Self { name, id }
    }

    /// What was under way all the time has printed each line once, in order.
    fn lost_nothing(&self) {
        printed(["exec", &self.name.0, "--", "sh", "-c", "kill $(pgrep -f 'echo line' | head -1); true"]);
        let output = text(&throughline(["attach", &self.name.0, &self.id]).stdout);
        let expected: Vec<_> = (0..output.lines().count()).map(|i| format!("line {i}")).collect();
        assert!(!output.is_empty() && output.lines().eq(expected), "{output}");
    }

    /// It runs, on one machine, and nothing of what was under way is left.
    fn is_whole(&self, after: &str) {
        let answer = throughline(["exec", &self.name.0, "--", "sh", "-c", "cat /proc/uptime"]);
        assert!(answer.status.success(), "after {after}: {}", text(&answer.stderr));
        assert_eq!(row(&self.name.0).unwrap()["state"], "running", "after {after}");
        assert_eq!(machines(&self.name.0).len(), 1, "after {after}");
        // A checkpoint may be under way.
        until(|| {
            let sandbox = &json(["--json", "inspect", &self.name.0])["sandbox"];
            let under_way = ["snapshot", "stopping"].iter().any(|field| !sandbox[field].is_null());
            let checkpoint = sandbox["checkpoints"]["last"]["folder"].as_str();
            let allowed: BTreeSet<_> =
                ["current", "runtime"].into_iter().chain(checkpoint).map(str::to_owned).collect();
            !under_way && entries(&places(&self.name.0)[0]) == allowed
        });
    }
}

fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// No draft, and a bundle only if it is whole. Whether there is one.
fn bundle(folder: &Path, name: &str, after: &str) -> bool {
    let found: Vec<_> = entries(folder).into_iter().collect();
    assert!(found.is_empty() || found == [name], "after {after}: {found:?}");
    let place = folder.join(name);
    if !place.exists() {
        return false;
    }
    printed(["snapshot", "verify", place.to_str().unwrap()]);
    fs::remove_dir_all(place).unwrap();
    true
}

/// What a shim's process is to a sandbox, killed at a random moment.
fn kill_shim(name: &Name) {
    let shim = json(["--json", "inspect", &name.0])["shim"].as_i64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(shim).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

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
        steps.die(&numbered_anew(after, &noted));
        let died = steps.run(&create);
        steps.live();
        assert!(!died.status.success(), "{after}: nobody died");
        counting.is_whole(after);
        whole += usize::from(bundle(folder.path(), "bundle", after));
    }
    assert!((1..noted.len()).contains(&whole), "before it has its name it is none, and then it is whole");
    for number in 0..RANDOM {
        let mut under_way = Command::new(command()).args(create).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(number * 23));
        kill_shim(&counting.name);
        under_way.wait().unwrap();
        counting.is_whole("a random moment");
        bundle(folder.path(), "bundle", "a random moment");
    }
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
        steps.die(&numbered_anew(after, &noted));
        let _ = steps.run(&stop);
        steps.live();
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
    let zygotes = places(&counting.name.0)[0].with_file_name("+zygotes");
    let fork = ["fork", &counting.name.0, &child.0];
    let forked = steps.run(&fork);
    assert!(forked.status.success(), "{}", text(&forked.stderr));
    let noted = steps.noted();
    printed(["rm", "--force", &child.0]);
    assert!(noted.iter().any(|step| step.starts_with("command ")) && noted.len() > 8, "{noted:?}");
    let mut born = 0;
    for after in &different(&noted) {
        steps.die(after);
        let _ = steps.run(&fork);
        steps.live();
        // Its creator may have died, or gone on without whoever asked.
        until(|| row(&child.0).is_none_or(|row| row["state"] != "unfinished"));
        if row(&child.0).is_some() {
            let answer = throughline(["exec", &child.0, "--", "echo", "whole"]);
            assert_eq!(text(&answer.stdout), "whole\n", "after {after}: {}", text(&answer.stderr));
            born += 1;
        }
        printed(["rm", "--force", &child.0]);
        assert_eq!(machines(&child.0), [0; 0], "after {after}");
        for place in places(&child.0) {
            assert!(!place.exists(), "after {after}: {} is left", place.display());
        }
        counting.is_whole(after);
    }
    assert!((1..noted.len()).contains(&born), "{born} of {}", noted.len());
    // What a dead command left is removed by the next fork, with its own.
    printed(fork);
    assert!(!zygotes.exists());
    counting.lost_nothing();
}

#[test]
fn vm_a_shim_that_dies_at_any_step_of_going_back_to_a_checkpoint_goes_back_all_the_same() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("abort-back"), &steps, &["--checkpoint", "1h"]);
    let name = &counting.name.0;
    let checkpoints = || json(["--json", "inspect", name])["sandbox"]["checkpoints"].clone();
    until(|| !checkpoints()["last"].is_null());
    let epoch = || printed(["exec", name, "--", "cat", "/run/throughline/epoch"]);
    let kill_machine = || {
        let [machine] = machines(name)[..] else { panic!("one machine") };
        let pid = rustix::process::Pid::from_raw(machine).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    };
    steps.forget();
    let mut known = vec![epoch()];
    kill_machine();
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
        steps.forget();
        assert!(steps.run(&["exec", name, "--", "true"]).status.success());
        until(|| checkpoints()["last"] != before["last"]);
        let shim = json(["--json", "inspect", name])["shim"].clone();
        let (what, _) = after.rsplit_once(' ').unwrap();
        let so_far = steps.noted().iter().rev().find(|step| step.starts_with(&format!("{what} "))).cloned();
        let so_far: u32 = so_far.map_or(0, |step| step.rsplit_once(' ').unwrap().1.parse().unwrap());
        steps.die(&format!("{what} {}", so_far + 1));
        kill_machine();
        until(|| !alive(&shim));
        steps.live();
        counting.is_whole(after);
        known.push(epoch());
        assert!(checkpoints()["times"].as_u64() > before["times"].as_u64(), "after {after}");
    }
    let different: BTreeSet<_> = known.iter().collect();
    assert_eq!(different.len(), known.len(), "each is a timeline of its own: {known:?}");
    counting.lost_nothing();
}

/// Whether a shim of this process id runs.
fn alive(shim: &serde_json::Value) -> bool {
    let stat = fs::read_to_string(format!("/proc/{shim}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
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
        let _ = steps.run(&remove);
        steps.live();
        printed(remove);
        assert_eq!(machines(&name.0), [0; 0], "after {after}");
        assert!(row(&name.0).is_none(), "after {after}");
        for place in places(&name.0) {
            assert!(!place.exists(), "after {after}: {} is left", place.display());
        }
    }
}
