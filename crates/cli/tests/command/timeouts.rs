//! `exec --timeout` of a guest that does not answer: it ends, and so does the command, as soon as the guest goes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::dying::{checkpoints, kill_machine, kill_shim, shim, state};
use crate::support::{Name, command, json, printed, row, text, throughline, throughline_with, until};

/// Makes a mark first, and another one at its end; runs for long in between.
const SCRIPT: &str = "touch /root/begun; echo begun; while [ ! -e /root/go ]; do usleep 10000; done; touch /root/done";

/// An `exec` of that, in this way, which has begun.
fn begun(how: &[&str], name: &Name) -> Child {
    let mut exec = Command::new(command());
    let exec = exec.arg("exec").args(how).args([&name.0, "--", "sh", "-c", SCRIPT]).stdin(Stdio::piped());
    let mut exec = exec.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(exec.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "begun");
    exec
}

/// A new shim takes a checkpoint first of all.
fn checkpoint(name: &Name) {
    let before = checkpoints(name)["last"].clone();
    kill_shim(name);
    until(|| checkpoints(name)["last"] != before);
}

/// Once a guest goes on, nothing is left of the commands that were told to end: none runs on, or is begun late.
fn nothing_is_left(name: &Name) {
    until(|| json(["--json", "ps", &name.0]) == serde_json::json!([]));
    let running = "grep -l 'u[s]leep' /proc/[0-9]*/cmdline 2>/dev/null || :";
    let ended = || printed(["exec", &name.0, "--", "sh", "-c", running]).is_empty();
    until(ended);
    // Whatever was begun after that, and waits for it, would make its mark now.
    printed(["exec", &name.0, "--", "touch", "/root/go"]);
    until(ended);
}

fn marks(name: &Name) -> String {
    printed(["exec", &name.0, "--", "ls", "/root"])
}

#[test]
fn vm_exec_whose_time_is_up_before_a_paused_guest_answers_ends_and_its_command_is_never_begun() {
    let name = Name::new("timeout-paused");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    printed(["pause", &name.0]);
    // Many: the guest would be quick to end one that it began.
    std::thread::scope(|all| {
        for number in 0..16 {
            let how = [&["--timeout", "1s"][..], &["--timeout", "2s", "-i"], &["--timeout", "1s", "-d"]][number % 3];
            let (name, mark) = (&name.0, format!("/root/{number}"));
            all.spawn(move || {
                let command = [name, "--", "touch", &mark];
                let ended = throughline_with(&[&["exec"], how, &command].concat(), b"input");
                let said = text(&ended.stderr);
                assert_eq!(ended.status.code(), Some(124), "{how:?}: {said}");
                assert!(said.contains("the command was not started"), "{how:?}: {said}");
            });
        }
    });
    printed(["resume", &name.0]);
    nothing_is_left(&name);
    assert_eq!(marks(&name), "go\n");
}

#[test]
fn vm_exec_whose_time_is_up_while_the_guest_is_paused_ends_and_so_does_its_command() {
    let name = Name::new("timeout-running");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let mut exec = begun(&["--timeout", "5s", "-i"], &name);
    printed(["pause", &name.0]);
    // More than is taken: no word more has room on its way.
    let mut input = exec.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || std::io::Write::write_all(&mut input, &vec![7; 8 << 20]));
    let ended = exec.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap_err();
    assert_eq!(ended.status.code(), Some(124), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("was told to end, but the guest does not answer"), "{}", text(&ended.stderr));
    printed(["resume", &name.0]);
    nothing_is_left(&name);
    assert_eq!(marks(&name), "begun\ngo\n");
}

#[test]
fn vm_exec_that_is_broken_off_before_a_paused_guest_answers_ends_and_its_command_is_never_begun() {
    let name = Name::new("broken-off-paused");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    printed(["pause", &name.0]);
    for (number, signal) in [Signal::INT, Signal::TERM, Signal::HUP].into_iter().enumerate() {
        let mut exec = Command::new(command());
        let mark = format!("/root/{number}");
        let exec = exec.args(["exec", &name.0, "--", "touch", &mark]).stderr(Stdio::piped()).spawn().unwrap();
        let asked = format!("touch {mark}");
        let is_it = |entry: &serde_json::Value| entry["label"] == asked.as_str() && entry["attached"] == true;
        until(|| json(["--json", "ps", &name.0]).as_array().unwrap().iter().any(is_it));
        kill_process(Pid::from_child(&exec), signal).unwrap();
        let ended = exec.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(128 + signal.as_raw()));
        assert!(text(&ended.stderr).contains("before the command was started"), "{}", text(&ended.stderr));
    }
    printed(["resume", &name.0]);
    nothing_is_left(&name);
    assert_eq!(marks(&name), "go\n");
}

/// The shim is stopped: nobody greets.
#[test]
fn vm_exec_whose_time_is_up_before_the_shim_answers_ends() {
    let name = Name::new("timeout-shim");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let shim = Pid::from_raw(shim(&name)).unwrap();
    kill_process(shim, Signal::STOP).unwrap();
    until(|| state(shim.as_raw_pid()) == Some('T'));
    let ended = throughline(["exec", "--timeout", "300ms", &name.0, "--", "touch", "/root/begun"]);
    kill_process(shim, Signal::CONT).unwrap();
    assert_eq!(ended.status.code(), Some(124), "{}", text(&ended.stderr));
    assert_eq!(printed(["exec", &name.0, "--", "ls", "/root"]), "");
}

/// It comes back paused: nobody tells whether the command was reached. That it was the program's own is not forgotten.
#[test]
fn vm_exec_that_is_ended_while_its_guest_comes_back_paused_ends_and_so_does_its_command() {
    let name = Name::new("timeout-back");
    printed(["run", "--memory", "128M", "--name", &name.0, "--checkpoint", "1h"]);
    until(|| !checkpoints(&name)["last"].is_null());
    let mut execs = ["40s", "1h"].map(|time| begun(&["--timeout", time], &name));
    checkpoint(&name);
    printed(["pause", &name.0]);
    kill_machine(&name);
    let mut said = execs.each_mut().map(|exec| BufReader::new(exec.stderr.take().unwrap()).lines().map(Result::unwrap));
    for said in &mut said {
        let back = said.next().unwrap();
        assert!(back.contains("is back at its last checkpoint"), "{back}");
    }
    // Before, nobody knows that it is wanted no longer: it is told that it may go on.
    let followed = |command: &&serde_json::Value| command["attached"] == true;
    until(|| json(["--json", "ps", &name.0]).as_array().unwrap().iter().filter(followed).count() == 2);
    let pid = Pid::from_child(&execs[1]);
    kill_process(pid, Signal::INT).unwrap();
    for ((mut exec, mut said), (code, why)) in
        execs.into_iter().zip(said).zip([(124, "the time is up"), (130, "broken off")]).rev()
    {
        assert_eq!(exec.wait().unwrap().code(), Some(code));
        let last = said.next().unwrap();
        assert!(last.contains(why) && last.contains("was not reached"), "{last}");
    }
    printed(["resume", &name.0]);
    nothing_is_left(&name);
    assert_eq!(marks(&name), "begun\ngo\n");
}

/// It dies again before anybody has told that the command was reached.
#[test]
fn vm_exec_goes_on_where_its_machine_dies_again_while_it_comes_back() {
    let name = Name::new("dies-again");
    printed(["run", "--memory", "128M", "--name", &name.0, "--checkpoint", "1h"]);
    let mut exec = begun(&[], &name);
    checkpoint(&name);
    printed(["pause", &name.0]);
    let mut said = BufReader::new(exec.stderr.take().unwrap()).lines().map(Result::unwrap);
    for times in 1..=2 {
        kill_machine(&name);
        let back = said.next().unwrap();
        assert!(back.contains("is back at its last checkpoint"), "{back}");
        // It comes back paused, and is asked for the command.
        let followed = |command: &serde_json::Value| command["attached"] == true;
        until(|| {
            let is_back = checkpoints(&name)["times"] == times && row(&name.0).unwrap()["state"] == "paused";
            is_back && json(["--json", "ps", &name.0]).as_array().unwrap().iter().any(followed)
        });
    }
    printed(["resume", &name.0]);
    printed(["exec", &name.0, "--", "touch", "/root/go"]);
    assert_eq!(exec.wait().unwrap().code(), Some(0), "{:?}", said.collect::<Vec<_>>());
    assert_eq!(marks(&name), "begun\ndone\ngo\n");
}

#[test]
fn vm_exec_heeds_no_signal_that_whoever_started_it_has_ignored() {
    let name = Name::new("ignored");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let script = "trap 'echo heard' HUP; trap 'exit 3' INT; echo begun; while read line; do echo $line; done";
    let mut exec = Command::new("sh");
    exec.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(command());
    exec.args(["exec", "-i", &name.0, "--", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut exec = exec.spawn().unwrap();
    let mut input = exec.stdin.take().unwrap();
    let mut lines = BufReader::new(exec.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "begun");
    kill_process(Pid::from_child(&exec), Signal::HUP).unwrap();
    for line in ["one", "two"] {
        std::io::Write::write_all(&mut input, format!("{line}\n").as_bytes()).unwrap();
        assert_eq!(lines.next().unwrap(), line);
    }
    kill_process(Pid::from_child(&exec), Signal::INT).unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(3), "{:?}", lines.collect::<Vec<_>>());
}
