//! Processes that stand still for a while: nothing is lost, and nobody waits for ever.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::dying::{Counting, Steps, checkpoints, kill_machine, shim, state};
use crate::pools::{Pool, children, filled, standing};
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

/// Stopped members of a group that is orphaned are hung up.
#[test]
fn vm_a_shim_and_a_keeper_that_stand_still_when_whoever_began_them_is_killed_go_on() {
    let (name, steps) = (Name::new("stopped-orphan"), Steps::new());
    let pool = Pool(format!("stopped-orphan-{}", std::process::id()));
    let killed = |arguments: &[&str], step: &str| {
        steps.stop(step);
        let mut begins = steps.start(arguments);
        let begun = || children(begins.id().into()).first().map(|pid| i32::try_from(*pid).unwrap());
        until(|| begun().and_then(state) == Some('T'));
        let begun = begun().unwrap();
        steps.live();
        begins.kill().unwrap();
        begins.wait().unwrap();
        signal(begun, Signal::CONT);
        begun
    };
    let begun = killed(&["run", "--memory", "128M", "--name", &name.0], "shim listen 1");
    until(|| row(&name.0).is_some_and(|row| row["state"] == "running"));
    assert_eq!(shim(&name), begun);
    let begun = killed(&["pool", "create", &name.0, &pool.0, "-n", "1"], "command zygote 1");
    filled(&pool.0, 1);
    assert_eq!(standing(&pool.0).unwrap()["pid"], begun);
}

fn all(pids: &[i32], number: Signal) {
    for pid in pids {
        signal(*pid, number);
    }
}

/// Processes stand still for a while, or what stands still already does.
fn stand_still(pids: &[i32]) {
    all(pids, Signal::STOP);
    std::thread::sleep(STOPPED);
    all(pids, Signal::CONT);
}

fn ends_well(child: Child, who: &str) {
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{who}: {}", text(&ended.stderr));
}

#[test]
fn vm_fork_waits_for_processes_that_are_stopped_for_five_seconds() {
    let (source, steps) = (Steps::new(), Steps::new());
    let counting = Counting::new(Name::new("stopped-fork"), &source, &[]);
    let shim = shim(&counting.name);
    let [machine] = machines(&counting.name.0)[..] else { panic!("one machine") };
    let children = [1, 2].map(|number| Name(format!("{}-{number}", counting.name.0)));
    // The source's shim in the middle of it; then its machine, which has yet to save its state.
    source.stop(&source.next("shim paused"));
    let fork = start(&["fork", &counting.name.0, &children[0].0]);
    until(|| state(shim) == Some('T'));
    source.live();
    stand_still(&[]);
    signal(machine, Signal::STOP);
    signal(shim, Signal::CONT);
    stand_still(&[machine]);
    ends_well(fork, "source");
    // A child's shim before it lets its guest run; then its machine, with an identity to take on.
    steps.stop("shim identify 1");
    let fork = steps.start(&["fork", &counting.name.0, &children[1].0]);
    until(|| machines(&children[1].0).first().is_some_and(|machine| state(parent(*machine)) == Some('T')));
    steps.live();
    let [machine] = machines(&children[1].0)[..] else { panic!("one machine") };
    stand_still(&[]);
    signal(machine, Signal::STOP);
    signal(parent(machine), Signal::CONT);
    stand_still(&[machine]);
    ends_well(fork, "child");
    for name in children {
        Counting { name, id: counting.id.clone() }.lost_nothing();
    }
    counting.lost_nothing();
}

#[test]
fn vm_checkpoint_and_going_back_to_it_wait_for_processes_that_are_stopped_for_five_seconds() {
    let steps = Steps::new();
    let counting = Counting::new(Name::new("stopped-back"), &steps, &["--checkpoint", "500ms"]);
    let (name, shim) = (&counting.name, shim(&counting.name));
    let last = || checkpoints(name)["last"].clone();
    for step in ["shim paused", "shim identify"] {
        let before = last();
        let [mut machine] = machines(&name.0)[..] else { panic!("one machine") };
        until(|| !last().is_null());
        if step == "shim identify" {
            steps.stop(&steps.next(step));
            kill_machine(name);
            until(|| state(shim) == Some('T'));
            machine = machines(&name.0)[0];
        } else {
            until(|| {
                steps.stop(&steps.next(step));
                state(shim) == Some('T')
            });
        }
        steps.live();
        let exec = start(&["exec", &name.0, "--", "true"]);
        stand_still(&[]);
        signal(machine, Signal::STOP);
        signal(shim, Signal::CONT);
        stand_still(&[machine]);
        ends_well(exec, step);
        until(|| last() != before);
        assert_eq!(machines(&name.0), [machine], "after {step}");
    }
    assert_eq!((self::shim(name), checkpoints(name)["times"].clone()), (shim, 1.into()));
    counting.lost_nothing();
}

#[test]
fn vm_pool_take_waits_for_processes_that_are_stopped_for_five_seconds() {
    let counting = Counting::new(Name::new("stopped-pool"), &Steps::new(), &[]);
    let pool = Pool(format!("stopped-pool-{}", std::process::id()));
    printed(["pool", "create", &counting.name.0, &pool.0, "-n", "2"]);
    let keeper = standing(&pool.0).unwrap()["pid"].as_u64().unwrap();
    let of = |pid: u64| children(pid).into_iter().map(|pid| i32::try_from(pid).unwrap()).collect::<Vec<_>>();
    for who in ["keeper", "shims", "machines"] {
        filled(&pool.0, 2);
        // The shim of the one taken before ends a moment after its removal.
        until(|| children(keeper).len() == 2);
        let name = Name::new(&format!("stopped-{who}"));
        let stopped = match who {
            "keeper" => vec![i32::try_from(keeper).unwrap()],
            "shims" => of(keeper),
            _ => children(keeper).into_iter().flat_map(of).collect(),
        };
        assert!(!stopped.is_empty(), "{who}");
        all(&stopped, Signal::STOP);
        let take = start(&["pool", "take", &pool.0, &name.0]);
        stand_still(&stopped);
        ends_well(take, who);
        Counting { name, id: counting.id.clone() }.lost_nothing();
    }
    counting.lost_nothing();
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

/// What a command says that is broken off, and its exit code, once those whom it waits for go on.
fn broken_off(mut command: Child, by: Signal, going_on: impl FnOnce()) -> Option<i32> {
    signal(i32::try_from(command.id()).unwrap(), by);
    let mut said = BufReader::new(command.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.next().unwrap().contains("broken off"));
    going_on();
    assert_eq!(said.next(), None);
    command.wait().unwrap().code()
}

#[test]
fn vm_run_that_is_broken_off_before_its_command_begins_leaves_no_sandbox() {
    let (name, steps) = (Name::new("broken-run"), Steps::new());
    // It is there, and has not said so; it has, and does not answer.
    for step in ["shim ready 1", "shim draft 1"] {
        steps.stop(step);
        let run = ["run", "--memory", "128M", "--checkpoint", "1h", "--name", &name.0, "--", "sleep", "1000"];
        let run = steps.start(&run);
        until(|| steps.noted().iter().any(|noted| noted == step) && row(&name.0).is_some());
        let [machine] = machines(&name.0)[..] else { panic!("one machine") };
        let shim = parent(machine);
        until(|| state(shim) == Some('T'));
        let code = broken_off(run, Signal::INT, || {
            steps.live();
            signal(shim, Signal::CONT);
        });
        assert_eq!(code, Some(130), "{step}");
        assert!(row(&name.0).is_none() && machines(&name.0).is_empty(), "{step}");
        steps.forget();
    }
}

#[test]
fn vm_snapshot_restore_that_is_broken_off_leaves_no_sandbox() {
    let (source, name, steps) = (Name::new("restore-source"), Name::new("broken-restore"), Steps::new());
    printed(["run", "--memory", "128M", "--name", &source.0]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    let place = place.to_str().unwrap();
    printed(["snapshot", "create", "--stop", &source.0, place]);
    for (number, code) in [(Signal::INT, 130), (Signal::HUP, 129)] {
        // It is there, and has not said so.
        steps.stop("shim ready 1");
        let restore = steps.start(&["snapshot", "restore", "--name", &name.0, place]);
        until(|| steps.came_to("shim ready 1") && row(&name.0).is_some());
        let [machine] = machines(&name.0)[..] else { panic!("one machine") };
        let shim = parent(machine);
        until(|| state(shim) == Some('T'));
        let ended = broken_off(restore, number, || {
            steps.live();
            signal(shim, Signal::CONT);
        });
        assert_eq!(ended, Some(code));
        assert!(row(&name.0).is_none() && machines(&name.0).is_empty(), "{number:?}");
        steps.forget();
    }
}

#[test]
fn vm_pool_create_that_is_broken_off_leaves_no_pool() {
    let (name, steps) = (Name::new("broken-pool"), Steps::new());
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let pool = format!("{}-pool", name.0);
    steps.stop("command zygote 1");
    let create = steps.start(&["pool", "create", &name.0, &pool]);
    let mut keeper = None;
    until(|| {
        let all = crate::pools::children(create.id().into());
        keeper = all.into_iter().map(|pid| i32::try_from(pid).unwrap()).find(|pid| state(*pid) == Some('T'));
        keeper.is_some()
    });
    let code = broken_off(create, Signal::INT, || {
        steps.live();
        signal(keeper.unwrap(), Signal::CONT);
    });
    assert_eq!(code, Some(130));
    assert!(!printed(["pool", "ls"]).contains(&pool));
    let folder = crate::support::places(&pool)[1].with_file_name("+pools").join(&pool);
    assert!(!folder.exists());
    assert_eq!(printed(["exec", &name.0, "--", "echo", "on"]), "on\n");
}

fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}
