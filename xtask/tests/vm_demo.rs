//! The demos, small: they pass, they fail when a part of the product is switched off, and they leave nothing behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const WATCHDOG: Duration = Duration::from_mins(4);
/// Where a Debian may have to be made first.
const WATCHDOG_OF_FORKS: Duration = Duration::from_mins(9);

/// A demo under way; ended with the value.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        // It cleans up after itself when it is asked to end; after a failed test nobody waits for that.
        if let Ok(None) = self.0.try_wait() {
            let _ = kill_process(pid(&self.0), Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).expect("a process")
}

impl Demo {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("demo").args(arguments);
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the demo"))
    }

    /// Waits for its end: how it ended, and the lines that it printed.
    fn end(self) -> (ExitStatus, Vec<String>) {
        self.end_within(WATCHDOG)
    }

    fn end_within(mut self, watchdog: Duration) -> (ExitStatus, Vec<String>) {
        let lines = lines(self.0.stdout.take().expect("its output"));
        let deadline = Instant::now() + watchdog;
        let errors = lines_until_end(&lines_of_errors(&mut self), deadline);
        let printed = lines_until_end(&lines, deadline);
        let status = self.0.wait().expect("its end");
        eprintln!("{}\n{}", errors.join("\n"), printed.join("\n"));
        assert_eq!(left_by(&self.0), Vec::<PathBuf>::new());
        (status, printed)
    }
}

fn lines_of_errors(demo: &mut Demo) -> mpsc::Receiver<String> {
    lines(demo.0.stderr.take().expect("its progress"))
}

fn lines(from: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(from).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

fn lines_until_end(lines: &mpsc::Receiver<String>, deadline: Instant) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => all.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the demo hangs after {all:?}"),
        }
    }
}

/// What a demo left: files of its own, and processes of its sandboxes.
fn left_by(demo: &Child) -> Vec<PathBuf> {
    let own = [format!("throughline-demo-{}-", demo.id()), format!("demo-{}-", demo.id())];
    let user = format!("throughline-{}", rustix::process::getuid().as_raw());
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| PathBuf::from("/run"), PathBuf::from);
    let temporary = std::env::temp_dir();
    let folders = ["/dev/shm".into(), Path::new("/dev/shm").join(&user), runtime.join("throughline"), temporary];
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let ours = |name: &str| own.iter().any(|prefix| name.starts_with(prefix));
    let mut left: Vec<_> =
        entries.filter(|entry| ours(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect();
    let processes = std::fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
    left.extend(processes.filter(|process| {
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        own.iter().any(|name| line.contains(name.as_str()))
    }));
    left
}

/// The last line of `--json`.
fn result(printed: &[String]) -> Value {
    serde_json::from_str(printed.last().expect("a result")).expect("one object")
}

fn findings(printed: &[String]) -> String {
    printed.iter().filter(|line| line.contains("finding")).cloned().collect()
}

#[test]
fn vm_demo_loses_nothing_over_two_restores() {
    let (status, printed) = Demo::start(&["--json", "--restores", "2"]).end();
    let result = result(&printed);
    assert!(status.success(), "{result}");
    for (name, expected) in [("restores", 2), ("lost", 0), ("doubled", 0), ("reordered", 0)] {
        assert_eq!(result[name], expected, "{name}");
    }
    assert_eq!(result["exec_complete"], true);
    for positive in ["carried_bytes", "boot_ms", "memory_bytes"] {
        assert!(result[positive].as_f64().is_some_and(|value| value > 0.0), "{positive}");
    }
    for spread in ["snapshot_pause_ms", "restore_ms"] {
        let [median, worst] = ["median", "worst"].map(|name| result[spread][name].as_f64().expect("a time"));
        assert!(0.0 < median && median <= worst, "{spread}");
    }
    let timelines: Vec<Value> =
        printed[..printed.len() - 1].iter().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(timelines.len(), 3);
    for timeline in &timelines[..2] {
        for channel in 0..2 {
            for way in ["to_guest", "to_host"] {
                assert!(timeline["carried"][channel][way].as_u64().is_some_and(|bytes| bytes > 0), "{timeline}");
            }
        }
    }
}

#[test]
fn vm_demo_without_scrubbing_finds_what_leaked() {
    let (status, printed) = Demo::start(&["--json", "--restores", "1", "--break", "scrub"]).end();
    assert_eq!(status.code(), Some(1));
    assert!(findings(&printed).contains("leaked"), "{printed:?}");
}

#[test]
fn vm_demo_without_the_sidecar_finds_what_is_lost() {
    let (status, printed) = Demo::start(&["--json", "--restores", "1", "--break", "sidecar"]).end();
    assert_eq!(status.code(), Some(1));
    assert!(result(&printed)["lost"].as_u64().is_some_and(|lost| lost > 0), "{printed:?}");
}

#[test]
fn vm_demo_without_carry_over_finds_what_is_lost() {
    let (status, printed) = Demo::start(&["--json", "--restores", "1", "--break", "carry"]).end();
    assert_eq!(status.code(), Some(1));
    assert!(result(&printed)["lost"].as_u64().is_some_and(|lost| lost > 0), "{printed:?}");
}

/// Runs the demo of the fork with three children: how it ended, its lines about children, and its result.
fn fork(broken: &[&str]) -> (ExitStatus, Vec<String>, Value) {
    let arguments = [&["fork", "--json", "--children", "3"], broken].concat();
    let (status, mut printed) = Demo::start(&arguments).end_within(WATCHDOG_OF_FORKS);
    let result = result(&printed);
    printed.pop();
    (status, printed, result)
}

#[test]
fn vm_demo_fork_children_go_on_from_one_preparation_and_answer_differently() {
    let (status, printed, result) = fork(&[]);
    assert!(status.success(), "{printed:?} {result}");
    for name in ["children", "right", "different"] {
        assert_eq!(result[name], 3, "{name}");
    }
    assert_eq!(result["passed"], true);
    for positive in ["boot_ms", "afresh_ms", "fork_ms", "stand_still_ms", "all_ms", "ratio", "zygote_bytes"] {
        assert!(result[positive].as_f64().is_some_and(|value| value > 0.0), "{positive}");
    }
    let children: Vec<Value> = printed.iter().map(|line| serde_json::from_str(line).expect("an object")).collect();
    assert_eq!(children.iter().map(|child| child["child"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    for child in &children {
        let number = |name: &str| child[name].as_f64().expect("a number");
        assert!(0.0 < number("ready_ms") && number("ready_ms") < number("answer_ms"), "{child}");
        assert!(number("memory_bytes") > 0.0 && number("line") >= 10.0, "{child}");
        assert_eq!(child["from_byte"], children[0]["from_byte"]);
    }
}

#[test]
fn vm_demo_fork_finds_children_that_are_alike_and_a_byte_that_is_lost() {
    let (status, printed, result) = fork(&["--break", "alike"]);
    assert_eq!((status.code(), &result["different"]), (Some(1), &Value::from(2)));
    assert!(findings(&printed).contains("child 1, child 2"), "{printed:?}");
    let (status, printed, result) = fork(&["--break", "byte"]);
    assert_eq!((status.code(), &result["right"]), (Some(1), &Value::from(2)));
    assert!(findings(&printed).contains("child 2: the line that ends at byte"), "{printed:?}");
}

#[test]
fn vm_demo_leaves_nothing_when_it_is_interrupted() {
    // In the middle of a boot, and with traffic on the way.
    for moment in ["boot", "timeline 0: snapshot"] {
        interrupted(&["--restores", "1"], moment, WATCHDOG);
    }
}

#[test]
fn vm_demo_fork_leaves_nothing_when_it_is_interrupted() {
    // In the middle of the preparation, of the fork, and of the children.
    for moment in ["preparation", "fork", "has answered"] {
        interrupted(&["fork", "--children", "4"], moment, WATCHDOG_OF_FORKS);
    }
}

fn interrupted(arguments: &[&str], moment: &str, watchdog: Duration) {
    let mut demo = Demo::start(arguments);
    let progress = lines_of_errors(&mut demo);
    let deadline = Instant::now() + watchdog;
    let next = || progress.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    while !next().expect("progress").contains(moment) {}
    kill_process(pid(&demo.0), Signal::INT).expect("an interrupt");
    lines_until_end(&progress, deadline);
    assert_eq!(demo.0.wait().expect("its end").code(), Some(2));
    assert_eq!(left_by(&demo.0), Vec::<PathBuf>::new(), "{moment}");
}
