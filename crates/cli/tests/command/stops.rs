//! Processes that stand still for a while: nothing is lost, and nobody waits for ever.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::dying::{Steps, shim, state};
use crate::support::{Name, command, machines, printed, row, text, until};

/// How long a process stands still: longer than most things take, shorter than any deadline.
const STOPPED: Duration = Duration::from_secs(5);

fn start(arguments: &[&str]) -> Child {
    let mut start = Command::new(command());
    start.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn vm_a_process_that_is_stopped_for_five_seconds_delays_what_it_does_and_breaks_nothing() {
    let (name, steps) = (Name::new("stopped"), Steps::new());
    assert!(steps.run(&["run", "--memory", "128M", "--name", &name.0]).status.success());
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let script = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let expected: String = (0..100).fold(String::new(), |text, i| text + &format!("line {i}\n"));
    let shim = shim(&name);
    let [machine] = machines(&name.0)[..] else { panic!("one machine") };
    for who in ["client", "shim", "machine", "machine in a snapshot", "shim in a snapshot"] {
        let follow = start(&["exec", &name.0, "--", "sh", "-c", script]);
        let snapshot = who.ends_with("snapshot").then(|| {
            // The guest stands still, and its state has yet to be saved.
            steps.stop(&steps.next("shim paused"));
            let create = start(&["snapshot", "create", &name.0, place.to_str().unwrap()]);
            until(|| state(shim) == Some('T'));
            steps.live();
            create
        });
        let pid = match who {
            "client" => i32::try_from(follow.id()).unwrap(),
            "shim" | "shim in a snapshot" => shim,
            _ => machine,
        };
        signal(pid, Signal::STOP);
        if pid != shim {
            signal(shim, Signal::CONT);
        }
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

#[test]
fn vm_fork_of_all_or_nothing_that_is_broken_off_leaves_no_child() {
    let (name, steps) = (Name::new("broken-off"), Steps::new());
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let children = [1, 2].map(|number| Name(format!("{}-{number}", name.0)));
    // Both are there, and have not said so yet.
    steps.stop("shim ready 1");
    let mut fork = steps.start(&["fork", &name.0, "-n", "2", "--all-or-nothing"]);
    let stopped = || steps.noted().iter().filter(|step| *step == "shim ready 1").count() == 2;
    until(|| stopped() && children.iter().all(|child| row(&child.0).is_some()));
    signal(i32::try_from(fork.id()).unwrap(), Signal::INT);
    let mut said = BufReader::new(fork.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.next().unwrap().contains("broken off"));
    steps.live();
    for child in &children {
        let [machine] = machines(&child.0)[..] else { panic!("one machine") };
        signal(parent(machine), Signal::CONT);
    }
    let said: Vec<_> = said.collect();
    assert!(said.len() == 2 && said.iter().all(|line| line.contains("ended, because")), "{said:?}");
    assert_eq!(fork.wait().unwrap().code(), Some(125));
    for child in &children {
        assert!(row(&child.0).is_none() && machines(&child.0).is_empty(), "{}", child.0);
    }
}

fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}
