//! What tests of processes that die have in common: steps at which they die, and a sandbox that shows what was lost.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Name, command, json, machines, places, printed, row, text, throughline, until};

/// Where processes write down their steps, and read at which one to die.
pub struct Steps(tempfile::TempDir);

impl Steps {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command, whose steps, and whose shims' steps, are noted here.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    /// The same, in which whoever comes to this step dies: somebody does, perhaps after the answer.
    pub fn run_and_die(&self, arguments: &[&str], step: &str) -> Output {
        self.forget();
        self.die(step);
        let output = self.run(arguments);
        until(|| self.came_to(step));
        self.live();
        output
    }

    /// Whether somebody has come to a step, and died there if that was asked for.
    pub fn came_to(&self, step: &str) -> bool {
        self.noted().iter().any(|noted| noted == step)
    }

    /// The same, under way.
    pub fn start(&self, arguments: &[&str]) -> Child {
        let mut run = Command::new(command());
        run.args(arguments).env("THROUGHLINE_STEPS", self.0.path()).stdin(Stdio::null());
        run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn forget(&self) {
        let _ = fs::remove_file(self.file("steps"));
    }

    pub fn noted(&self) -> Vec<String> {
        let noted = fs::read_to_string(self.file("steps")).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// From here on, whoever comes to this step dies.
    pub fn die(&self, step: &str) {
        fs::write(self.file("die"), format!("{step}\n")).unwrap();
    }

    /// From here on, whoever comes to this step stops itself.
    pub fn stop(&self, step: &str) {
        fs::write(self.file("stop"), format!("{step}\n")).unwrap();
    }

    /// From here on, nobody dies or stops.
    pub fn live(&self) {
        for file in ["die", "stop"] {
            let _ = fs::remove_file(self.file(file));
        }
    }

    /// The same step when the process that took it last comes to it again.
    pub fn next(&self, what: &str) -> String {
        let noted = self.noted();
        let last = noted.iter().rev().find_map(|step| step.strip_prefix(what)?.strip_prefix(' ')?.parse().ok());
        format!("{what} {}", last.unwrap_or(0_u32) + 1)
    }
}

/// A sandbox that counts, so that it can be seen whether it goes on.
pub struct Counting {
    pub name: Name,
    pub id: String,
}

impl Counting {
    pub fn new(name: Name, steps: &Steps, more: &[&str]) -> Self {
        let run = steps.run(&[&["run", "--memory", "128M", "--name", &name.0], more].concat());
        assert!(run.status.success(), "{}", text(&run.stderr));
        let script = "echo $$ >/root/counter; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done";
        let id = printed(["exec", "-d", &name.0, "--", "sh", "-c", script]).trim().to_owned();
        Self { name, id }
    }

    /// What was under way all the time has printed each line once, in order.
    pub fn lost_nothing(&self) {
        printed(["exec", &self.name.0, "--", "sh", "-c", "kill $(cat /root/counter)"]);
        let output = text(&throughline(["attach", &self.name.0, &self.id]).stdout);
        let expected: Vec<_> = (0..output.lines().count()).map(|i| format!("line {i}")).collect();
        assert!(!output.is_empty() && output.lines().eq(expected), "{output}");
    }

    /// It runs, on one machine, and nothing of what was under way is left.
    pub fn is_whole(&self, after: &str) {
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

pub fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// No draft, and a bundle only if it is whole. Whether there is one.
pub fn bundle(folder: &Path, name: &str, after: &str) -> bool {
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

/// Ends a process.
pub fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The process that drives a sandbox; another one, if it has died.
pub fn shim(name: &Name) -> i32 {
    i32::try_from(json(["--json", "inspect", &name.0])["shim"].as_i64().unwrap()).unwrap()
}

pub fn kill_shim(name: &Name) {
    kill(shim(name));
}

pub fn kill_machine(name: &Name) {
    let [machine] = machines(&name.0)[..] else { panic!("one machine") };
    kill(machine);
}

/// What is known of a sandbox's checkpoints.
pub fn checkpoints(name: &Name) -> serde_json::Value {
    json(["--json", "inspect", &name.0])["sandbox"]["checkpoints"].clone()
}

/// Puts on paper that the timelines that died had all lived for long. To be called while nobody drives the sandbox.
pub fn have_lived_for_long(name: &Name) {
    let paper = places(&name.0)[1].join("sandbox.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&paper).unwrap()).unwrap();
    record["checkpoints"]["short_lives"] = 0.into();
    let new = paper.with_file_name("sandbox.json.test");
    fs::write(&new, record.to_string()).unwrap();
    fs::rename(new, paper).unwrap();
}

/// A process's state, as a letter; `None` where it has ended.
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.chars().next().filter(|state| *state != 'Z')
}

/// Nothing is left of a sandbox that was removed.
pub fn is_gone(name: &Name, after: &str) {
    assert_eq!(machines(&name.0), [0; 0], "after {after}");
    assert!(row(&name.0).is_none(), "after {after}");
    let [memory, runtime] = places(&name.0);
    let claim = memory.with_file_name(format!(".{}", name.0));
    for place in [memory, runtime, claim] {
        assert!(!place.exists(), "after {after}: {} is left", place.display());
    }
}

/// What somebody was making that died is there, whole, or it is not; and goes. Whether it was there.
pub fn whole_or_none(name: &Name, after: &str) -> bool {
    // Its creator may have gone on without whoever asked.
    until(|| row(&name.0).is_none_or(|row| row["state"] != "unfinished"));
    let is_there = row(&name.0).is_some();
    if is_there {
        let answer = throughline(["exec", &name.0, "--", "echo", "whole"]);
        assert_eq!(text(&answer.stdout), "whole\n", "after {after}: {}", text(&answer.stderr));
        assert_eq!(machines(&name.0).len(), 1, "after {after}");
        printed(["rm", "--force", &name.0]);
    }
    is_gone(name, after);
    is_there
}

/// Waits until there is no zygote in memory whose process has died. Others may be making theirs.
pub fn no_zygote_is_left() {
    let held = |lock: File| matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    until(|| {
        let zygotes = fs::read_dir(places("any")[0].with_file_name("+zygotes")).into_iter().flatten().flatten();
        zygotes.map(|zygote| zygote.path()).all(|zygote| File::open(zygote.join("lock")).is_ok_and(held))
    });
}
