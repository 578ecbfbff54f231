//! Going back to a checkpoint: by how many bytes, each way.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use throughline_wire::encode;
use throughline_wire::exec::{Event, Request};

use crate::dying::{Counting, Steps, checkpoints, kill, kill_machine, kill_shim};
use crate::pools::Pool;
use crate::support::{Name, command, json, machines, printed, row, text, throughline_with, until};

/// Where the channel of the one command of a sandbox stands: bytes sent, bytes received, bytes that are to be received.
fn channel(name: &Name) -> [u64; 3] {
    let inspected = json(["--json", "inspect", &name.0]);
    let channels = inspected["channels"].as_array().unwrap();
    ["sent", "received", "unread"].map(|word| channels.first().map_or(0, |channel| channel[word].as_u64().unwrap()))
}

/// What a message of so many bytes takes in a ring.
pub fn framed(message: &[u8]) -> u64 {
    8 + message.len().next_multiple_of(8) as u64
}

/// What it takes to give a command this input, and to be told that it was taken, and given back.
fn echoed(at: u64, data: &[u8]) -> [u64; 2] {
    let taken = Event::StdinTaken { total: at + data.len() as u64 };
    let back = encode(&Event::Stdout { at, data }).unwrap();
    [framed(&encode(&Request::Stdin(data)).unwrap()), framed(&encode(&taken).unwrap()) + framed(&back)]
}

#[test]
fn vm_checkpoint_who_follows_a_command_is_told_by_how_many_bytes_it_went_back_each_way() {
    let name = Name::new("roll-back-bytes");
    printed(["run", "--memory", "128M", "--name", &name.0, "--checkpoint", "1h"]);
    until(|| !checkpoints(&name)["last"].is_null());
    let mut exec = Command::new(command());
    let exec = exec.args(["exec", "-i", &name.0, "--", "cat"]).stdin(Stdio::piped());
    let mut exec = exec.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = exec.stdin.take().unwrap();
    let mut output = BufReader::new(exec.stdout.take().unwrap());
    let mut said = BufReader::new(exec.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut echo = |line: &str| {
        input.write_all(line.as_bytes()).unwrap();
        let mut back = vec![0; line.len()];
        output.read_exact(&mut back).unwrap();
        assert_eq!(back, line.as_bytes());
    };

    // What was given, and came back, before the checkpoint; a new shim takes one first of all.
    let kept = "kept\n";
    let mut at = 0;
    until(|| channel(&name)[1] > 0);
    let [sent, received, _] = channel(&name);
    echo(kept);
    at += kept.len() as u64;
    let one = echoed(0, kept.as_bytes());
    let came = [sent + one[0], received + one[1]];
    until(|| channel(&name) == [came[0], came[1], 0]);
    let before = checkpoints(&name)["last"].clone();
    kill_shim(&name);
    until(|| checkpoints(&name)["last"] != before);

    // After it: some that came back, and one that the machine never looked at.
    let mut undone = [0; 2];
    for line in ["short\n".to_owned(), "x".repeat(99) + "\n", "y".repeat(4999) + "\n"] {
        echo(&line);
        let one = echoed(at, line.as_bytes());
        at += line.len() as u64;
        undone = [undone[0] + one[0], undone[1] + one[1]];
    }
    until(|| channel(&name) == [came[0] + undone[0], came[1] + undone[1], 0]);
    let [machine] = machines(&name.0)[..] else { panic!("one machine") };
    kill_process(Pid::from_raw(machine).unwrap(), Signal::STOP).unwrap();
    let unread = "never read\n";
    input.write_all(unread.as_bytes()).unwrap();
    undone[0] += echoed(at, unread.as_bytes())[0];
    until(|| channel(&name)[0] == came[0] + undone[0]);
    kill_machine(&name);
    let told = said.next().unwrap();
    let expected = format!("{} bytes of it come again, and {} bytes to it are lost", undone[1], undone[0]);
    assert!(told.contains(&expected), "{told}; not {expected}");

    // It goes on from the checkpoint, and takes all that it is given from now on.
    input.write_all(b"on\n").unwrap();
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "on\n");
    assert!(exec.wait().unwrap().success());
    assert_eq!(said.next(), None);
}

#[test]
fn vm_checkpoint_of_what_was_forked_taken_or_restored_brings_it_back_with_what_it_was_given() {
    let ask = "hostname; cat /etc/hostname /run/secrets/key";
    let counting = Counting::new(Name::new("back-source"), &Steps::new(), &[]);
    let (source, id) = (&counting.name.0, &counting.id);
    let [forked, taken, restored] = ["forked", "taken", "restored"].map(|how| Name::new(&format!("back-{how}")));
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let bundle = folder.path().join("bundle").to_str().unwrap().to_owned();
    let pool = Pool(format!("back-pool-{}", std::process::id()));
    let given = |name: &Name| ["--checkpoint", "1h", "--hostname", &name.0, "--secret", "key=it"].map(str::to_owned);
    printed(["pool", "create", source, &pool.0, "-n", "1"]);
    printed(["snapshot", "create", source, &bundle]);
    for (name, how) in [
        (&forked, vec!["fork", source, &forked.0]),
        (&taken, vec!["pool", "take", &pool.0, &taken.0]),
        (&restored, vec!["snapshot", "restore", &bundle, "--name", &restored.0]),
    ] {
        let given = given(name);
        let made = throughline_with(&[how, given.iter().map(String::as_str).collect()].concat(), b"");
        assert!(made.status.success(), "{}: {}", name.0, text(&made.stderr));
        let has = || assert_eq!(printed(["exec", &name.0, "--", "sh", "-c", ask]), format!("{0}\n{0}\nit", name.0));
        has();
        until(|| !checkpoints(name)["last"].is_null());
        let epoch = || printed(["exec", &name.0, "--", "cat", "/run/throughline/epoch"]);
        let before = epoch();
        // One that was taken has its folder of another name.
        kill(i32::try_from(row(&name.0).unwrap()["pid"].as_i64().unwrap()).unwrap());
        until(|| checkpoints(name)["times"] == 1);
        assert_ne!(epoch(), before, "{}", name.0);
        has();
    }
    for name in [forked, taken, restored] {
        Counting { name, id: id.clone() }.lost_nothing();
    }
}
