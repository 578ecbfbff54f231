//! Creators that are killed at every step, and two at once: the name is free again, and no machine is left.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use throughline_sandbox::Given;
use throughline_sandbox::engine::Hardware;
use throughline_shim::start::{Keeping, Start};

use crate::support::{Name, command, machines, places, printed, row, text, throughline};

/// Kills at random moments of a boot, and of a restore.
const RANDOM: usize = 12;
/// Between two looks whether a creator has come to its step.
const LOOK: Duration = Duration::from_micros(100);

/// A process that creates a sandbox.
fn creator(start: &Start) -> Child {
    let mut child = Command::new(command());
    let mut child =
        child.arg("shim").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = serde_json::to_vec(start).unwrap();
    line.push(b'\n');
    child.stdin.take().unwrap().write_all(&line).unwrap();
    child
}

/// Kills a creator as soon as it has come so far.
fn killed(start: &Start, mut so_far: impl FnMut() -> bool) {
    let mut creator = creator(start);
    while !so_far() {
        assert!(creator.try_wait().unwrap().is_none(), "the creator ended of itself");
        std::thread::sleep(LOOK);
    }
    creator.kill().unwrap();
    creator.wait().unwrap();
}

/// Nothing of a sandbox is left but, where its creator was killed when it was ready, the sandbox. Whether it was.
fn as_if_nothing_had_been(name: &Name) -> bool {
    let ready = row(&name.0).is_some_and(|row| {
        assert_eq!(row["state"], "running", "{row}");
        printed(["rm", "--force", &name.0]);
        true
    });
    assert_eq!(machines(&name.0), [0; 0], "a machine is left");
    let [memory, runtime] = places(&name.0);
    let claim = memory.parent().unwrap().join(format!(".{}", name.0));
    for place in [memory, runtime, claim] {
        assert!(!place.exists(), "{} is left", place.display());
    }
    ready
}

fn create(name: &Name) -> Start {
    let hardware = Hardware { memory_mib: 128, ..Hardware::default() };
    let (name, image) = (Some(name.0.clone()), "default".to_owned());
    Start::Create { name, image, hardware, given: Given::default(), keeping: Keeping::default() }
}

fn has_at_least(path: &Path, bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|data| data.len() >= bytes)
}

#[test]
fn vm_main_path_a_creator_killed_at_any_step_leaves_its_name_free_and_no_machine() {
    let name = Name::new("creator");
    let [memory, runtime] = places(&name.0);
    let claim = memory.parent().unwrap().join(format!(".{}", name.0));
    let current = memory.join("current");
    let steps = [
        (claim, 0),
        (memory.clone(), 0),
        (runtime.clone(), 0),
        (current.join("region"), 0),
        (current.join("sidecar"), 1),
        (current.join("ram"), 1),
        (runtime.join("qmp"), 0),
        (runtime.join("monitor.log"), 0),
        // Begun by the creator, and finished by what becomes the machine's monitor.
        (runtime.join("monitor.pid"), 1),
        (runtime.join("monitor.pid"), 37),
        (runtime.join("console.log"), 1),
    ];
    for (path, bytes) in &steps {
        killed(&create(&name), || has_at_least(path, *bytes));
        assert!(!as_if_nothing_had_been(&name), "{}", path.display());
    }
    killed(&create(&name), || !machines(&name.0).is_empty());
    // The next one of the name needs no help, and has no other machine.
    let output = throughline(["run", "--name", &name.0, "--memory", "128M", "--", "echo", "here"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("here\n".to_owned(), String::new()));
    assert_eq!(machines(&name.0).len(), 1);
    assert_eq!(row(&name.0).unwrap()["pid"], machines(&name.0)[0]);

    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let bundle = folder.path().join("bundle");
    printed(["snapshot", "create", "--stop", &name.0, bundle.to_str().unwrap()]);
    printed(["wait", &name.0]);
    printed(["rm", &name.0]);
    let (given, keeping) = (Given::default(), Keeping::default());
    let restore = Start::Restore { name: Some(name.0.clone()), bundle: bundle.clone(), given, keeping };
    let (mut ready, mut early) = (0, 0);
    for round in 0..2 * RANDOM {
        let (start, most) = if round % 2 == 0 { (create(&name), 2_500) } else { (restore.clone(), 250) };
        let (began, moment) = (Instant::now(), Duration::from_millis(fastrand::u64(0..most)));
        killed(&start, || began.elapsed() > moment);
        if round % 4 == 3 && row(&name.0).is_none() {
            printed(["snapshot", "restore", bundle.to_str().unwrap(), "--name", &name.0]);
            assert_eq!(machines(&name.0).len(), 1);
        }
        if as_if_nothing_had_been(&name) { ready += 1 } else { early += 1 }
    }
    println!("{early} were killed before their sandbox was ready, {ready} after it");
    assert!(early > 0);
}

#[test]
fn vm_main_path_of_two_that_create_one_name_at_once_one_gets_it_and_the_other_is_told() {
    let name = Name::new("twice");
    for _ in 0..10 {
        let run = || {
            let mut run = Command::new(command());
            run.args(["--json", "run", "--memory", "128M", "--name", &name.0, "--", "echo", "mine"]);
            run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut outputs = [run(), run()].map(|run| run.wait_with_output().unwrap());
        outputs.sort_by_key(|output| output.status.code());
        let [won, lost] = outputs;
        assert_eq!((won.status.code(), text(&won.stdout)), (Some(0), "mine\n".to_owned()), "{}", text(&won.stderr));
        assert_eq!(lost.status.code(), Some(125));
        let error: serde_json::Value = serde_json::from_str(&text(&lost.stderr)).unwrap();
        assert_eq!(error["error"]["kind"], "taken", "{error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(&name.0), "{error}");
        assert_eq!(machines(&name.0).len(), 1);
        printed(["rm", "--force", &name.0]);
    }
}

/// A sandbox on paper whose machine is said to be this very test.
pub fn on_paper(name: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let [memory, runtime] = places(name);
    fs::create_dir_all(memory.join("current")).unwrap();
    fs::create_dir_all(&runtime).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(include_str!("fixtures/sandbox.json")).unwrap();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    record["name"] = name.into();
    record["machine"]["pid"] = std::process::id().into();
    record["machine"]["start_time"] = fields.split(' ').nth(19).unwrap().parse::<u64>().unwrap().into();
    record["machine"]["boot"] = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().into();
    change(&mut record);
    fs::write(runtime.join("sandbox.json"), record.to_string()).unwrap();
}

pub fn another_boot(record: &mut serde_json::Value) {
    record["machine"]["boot"] = "0b1ea5e5-0000-4000-8000-000000000000".into();
}

#[test]
fn what_is_left_after_a_restart_of_the_host_or_by_a_reused_pid_is_dead_and_removed_without_harm() {
    let name = Name::new("stale");
    // So it would live.
    printed(["ls"]);
    on_paper(&name.0, |_| ());
    assert_eq!(row(&name.0).unwrap()["state"], "running");
    let another_start = |record: &mut serde_json::Value| record["machine"]["start_time"] = 1.into();
    let changes: [fn(&mut serde_json::Value); 2] = [another_boot, another_start];
    for change in changes {
        on_paper(&name.0, change);
        let row = row(&name.0).unwrap();
        assert_eq!((&row["state"], &row["pid"]), (&"dead".into(), &serde_json::Value::Null), "{row}");
        for arguments in [["--json", "exec", &name.0, "--", "true"].as_slice(), &["--json", "wait", &name.0]] {
            let error = crate::support::refused(arguments);
            assert_eq!(error["kind"], "ended", "{error}");
            assert!(error["message"].as_str().unwrap().contains("restarted"), "{error}");
        }
        let error = crate::support::refused(&["--json", "run", "--name", &name.0]);
        assert_eq!(error["kind"], "taken", "{error}");
        printed(["rm", &name.0]);
        assert!(places(&name.0).iter().all(|place| !place.exists()));
    }
    // Half of one: the memory went with the restart, the folder of the logs did not.
    on_paper(&name.0, another_boot);
    fs::remove_dir_all(&places(&name.0)[0]).unwrap();
    assert_eq!(row(&name.0).unwrap()["state"], "dead");
    printed(["rm", &name.0]);
    assert!(row(&name.0).is_none());
}
