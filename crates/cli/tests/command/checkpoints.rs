//! `--checkpoint`: a machine that dies comes back, and whoever follows its commands is told how far it went back.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use crate::dying::{Steps, checkpoints, is_gone, kill_machine, kill_shim, shim, state};
use crate::support::{Name, command, json, machines, places, printed, row, text, throughline, until};

const LINES: usize = 40;
fn follow(name: &Name, script: &str) -> Child {
    let mut exec = Command::new(command());
    let exec = exec.args(["exec", &name.0, "--", "sh", "-c", script]).stdin(Stdio::null());
    exec.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a checkpoint that is taken from now on.
fn checkpoint(name: &Name) {
    let before = checkpoints(name)["last"].clone();
    until(|| checkpoints(name)["last"] != before);
}

/// The numbers of lines count up, but for jumps back; how many there were.
fn jumps(output: &str) -> usize {
    let numbers: Vec<usize> = output.lines().map(|line| line.strip_prefix("line ").unwrap().parse().unwrap()).collect();
    assert_eq!((numbers[0], *numbers.last().unwrap()), (0, LINES - 1));
    let jumps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1);
    jumps.inspect(|pair| assert!(pair[1] <= pair[0], "lines are missing: {pair:?}")).count()
}

#[test]
fn vm_main_path_checkpoint_a_dead_machine_comes_back_and_a_command_is_followed_on() {
    let name = Name::new("checkpoint");
    printed(["run", "--name", &name.0, "--checkpoint", "400ms"]);
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7");
    let mut followed = follow(&name, &script);
    let mut lines = BufReader::new(followed.stdout.take().unwrap());
    let mut output = String::new();
    lines.read_line(&mut output).unwrap();
    checkpoint(&name);
    kill_machine(&name);
    lines.read_to_string(&mut output).unwrap();
    let ended = followed.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(7), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("is back at its last checkpoint"), "{}", text(&ended.stderr));
    assert!(jumps(&output) <= 1, "{output}");
    let known = checkpoints(&name);
    assert_eq!(known["times"], 1);
    assert_eq!(known["lost"]["reason"]["signal"], 9, "{known}");

    // The shim dies with it: the next command brings it back.
    checkpoint(&name);
    kill_shim(&name);
    kill_machine(&name);
    until(|| row(&name.0).unwrap()["state"] == "lost");
    assert_eq!(printed(["exec", &name.0, "--", "echo", "back"]), "back\n");
    assert_eq!(
        (checkpoints(&name)["times"].clone(), row(&name.0).unwrap()["state"].clone()),
        (2.into(), "running".into())
    );
    // One that is lost may be removed, and an end that is wanted is one.
    assert_eq!(json(["--json", "kill", &name.0])["state"], "exited");
    assert_eq!(machines(&name.0), [0; 0]);
}

#[test]
fn vm_checkpoint_a_command_that_was_begun_after_it_is_gone_and_a_dead_machine_without_one_is_dead() {
    let name = Name::new("checkpoint-since");
    printed(["run", "--name", &name.0, "--checkpoint", "1h"]);
    until(|| !checkpoints(&name)["last"].is_null());
    let mut followed = follow(&name, "echo begun; sleep 1000");
    let mut lines = BufReader::new(followed.stdout.take().unwrap());
    lines.read_line(&mut String::new()).unwrap();
    kill_machine(&name);
    let ended = followed.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(125));
    assert!(text(&ended.stderr).contains("was begun after it, and is gone"), "{}", text(&ended.stderr));
    assert_eq!(printed(["exec", &name.0, "--", "echo", "back"]), "back\n");
    printed(["rm", "--force", &name.0]);

    let name = Name::new("checkpoint-none");
    printed(["run", "--name", &name.0]);
    printed(["exec", &name.0, "--", "sh", "-c", "echo last words > /dev/console"]);
    let followed = follow(&name, "sleep 1000");
    until(|| json(["--json", "ps", &name.0]).as_array().is_some_and(|commands| !commands.is_empty()));
    kill_machine(&name);
    let ended = followed.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(125));
    let told = text(&ended.stderr);
    assert!(told.contains("ended by signal 9") && told.contains("last words"), "{told}");
    assert_eq!(row(&name.0).unwrap()["state"], "exited");
    let refused = throughline(["exec", &name.0, "--", "true"]);
    assert!(text(&refused.stderr).contains("last words"), "{}", text(&refused.stderr));
}

#[test]
fn vm_checkpoint_of_a_paused_sandbox_comes_back_paused_and_one_that_does_not_come_back_says_so() {
    let (name, steps) = (Name::new("checkpoint-paused"), Steps::new());
    assert!(steps.run(&["run", "--memory", "128M", "--name", &name.0, "--checkpoint", "1h"]).status.success());
    until(|| !checkpoints(&name)["last"].is_null());
    printed(["pause", &name.0]);
    for dies in [false, true] {
        let (times, shim) = (checkpoints(&name)["times"].as_u64().unwrap(), shim(&name));
        if dies {
            // It is back, and runs for a moment.
            steps.die(&steps.next("shim ready"));
        }
        kill_machine(&name);
        if dies {
            until(|| state(shim).is_none());
            steps.live();
        }
        until(|| checkpoints(&name)["times"] == times + 1);
        until(|| row(&name.0).unwrap()["state"] == "paused");
        let refused = throughline(["snapshot", "create", &name.0, "/dev/shm/none"]);
        assert!(text(&refused.stderr).contains("is paused; resume it first"), "{}", text(&refused.stderr));
    }
    printed(["resume", &name.0]);
    assert_eq!(printed(["exec", &name.0, "--", "echo", "on"]), "on\n");
    checkpoint(&name);
    let last = checkpoints(&name)["last"]["folder"].as_str().unwrap().to_owned();
    std::fs::remove_file(places(&name.0)[0].join(last).join("state")).unwrap();
    kill_machine(&name);
    until(|| row(&name.0).unwrap()["state"] == "exited");
    let refused = text(&throughline(["exec", &name.0, "--", "true"]).stderr);
    assert!(refused.contains("; 5 tries to go back to the last checkpoint came to nothing"), "{refused}");
    assert!(refused.contains("state is damaged: it is missing"), "{refused}");
}

#[test]
fn vm_checkpoint_survives_commands_and_shims_that_cannot_go_back_to_it_and_each_says_why() {
    let name = Name::new("checkpoint-later");
    printed(["run", "--memory", "128M", "--name", &name.0, "--checkpoint", "1h"]);
    until(|| !checkpoints(&name)["last"].is_null());
    // No emulator, for a command that finds shim and machine dead.
    kill_shim(&name);
    kill_machine(&name);
    until(|| row(&name.0).unwrap()["state"] == "lost");
    for _ in 0..2 {
        let mut exec = Command::new(command());
        let exec = exec.args(["--json", "exec", &name.0, "--", "true"]).env("PATH", "/nonexistent");
        let refused = exec.stdin(Stdio::null()).output().unwrap();
        let told = text(&refused.stderr);
        assert!(told.contains("does not come back from its last checkpoint"), "{told}");
        assert!(told.contains("was not found; install it") && told.contains("\"lost\""), "{told}");
        assert_eq!(refused.status.code(), Some(125));
    }
    assert_eq!(row(&name.0).unwrap()["state"], "lost");
    assert_eq!(printed(["exec", &name.0, "--", "echo", "back"]), "back\n");
    assert_eq!(checkpoints(&name)["times"], 1);

    // No room for the new timeline, for the shim that sees its machine die: it leaves it to others.
    let obstacle = places(&name.0)[0].join("next");
    std::fs::write(&obstacle, "").unwrap();
    let shim = shim(&name);
    kill_machine(&name);
    until(|| state(shim).is_none());
    let refused = text(&throughline(["exec", &name.0, "--", "true"]).stderr);
    assert!(refused.contains(obstacle.to_str().unwrap()), "{refused}");
    assert_eq!(row(&name.0).unwrap()["state"], "lost");
    std::fs::remove_file(&obstacle).unwrap();
    assert_eq!(printed(["exec", &name.0, "--", "echo", "back"]), "back\n");
    assert_eq!(checkpoints(&name)["times"], 2);

    // Removing it takes nothing that going back would take.
    kill_shim(&name);
    kill_machine(&name);
    until(|| row(&name.0).unwrap()["state"] == "lost");
    let mut remove = Command::new(command());
    let removed = remove.args(["rm", "--force", &name.0]).env("PATH", "/nonexistent").output().unwrap();
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    is_gone(&name, "its removal");
}
