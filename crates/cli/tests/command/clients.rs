//! Clients that die in the middle of something: it is whole or not there, and the sandbox is as it should be.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use throughline_shim::api::{Call, Open, Request, SOCKET, VERSION};
use throughline_wire::port::EXEC;

use crate::creators::{another_boot, on_paper};
use crate::dying::Steps;
use crate::support::{Name, command, json, places, printed, row, text, throughline, until};

/// Kills of each kind.
const KILLS: usize = 8;

/// Runs the command, and kills it after a random time.
fn killed(arguments: &[&str]) {
    let mut client = Command::new(command());
    let mut client = client.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (began, moment) = (Instant::now(), Duration::from_micros(fastrand::u64(0..120_000)));
    while began.elapsed() < moment && client.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    client.kill().unwrap();
    client.wait().unwrap();
}

/// Whether there is a snapshot, which is whole then; drafts are never left.
fn whole(folder: &Path, place: &str) -> bool {
    let drafts = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let drafts: Vec<_> = drafts.filter(|name| name.starts_with('.')).collect();
    assert!(drafts.is_empty(), "{drafts:?}");
    let there = Path::new(place).exists();
    if there {
        printed(["snapshot", "verify", place]);
    }
    there
}

#[test]
fn vm_a_client_killed_in_a_snapshot_leaves_it_whole_or_absent_and_the_sandbox_as_it_was() {
    let (name, child) = (Name::new("killed-client"), Name::new("killed-client-child"));
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = |file: String| folder.path().join(file).to_str().unwrap().to_owned();
    printed(["run", "--name", &name.0, "--memory", "128M", "--", "sh", "-c", "echo kept >/root/file"]);
    let mut came = 0;
    for round in 0..KILLS {
        let (one, other) = (place(format!("one-{round}")), place(format!("other-{round}")));
        killed(&["snapshot", "create", &name.0, &one]);
        // One at a time: when this is done, so is the other, if it was begun at all.
        printed(["snapshot", "create", &name.0, &other]);
        came += usize::from(whole(folder.path(), &one));
        assert!(whole(folder.path(), &other));
        assert_eq!(json(["inspect", "--json", &name.0])["state"], "running");
        assert_eq!(printed(["exec", &name.0, "--", "cat", "/root/file"]), "kept\n");
    }
    let bundle = place("other-0".to_owned());
    let mut stopped = 0;
    for round in 0..KILLS {
        printed(["snapshot", "restore", &bundle, "--name", &child.0]);
        let (one, other) = (place(format!("stop-{round}")), place(format!("stop-other-{round}")));
        killed(&["snapshot", "create", "--stop", &child.0, &one]);
        // If it was begun, it comes to its end; else this one does.
        let second = throughline(["snapshot", "create", "--stop", &child.0, &other]);
        printed(["wait", &child.0]);
        assert_eq!(json(["inspect", "--json", &child.0])["state"], "exited");
        let of_both = [whole(folder.path(), &one), whole(folder.path(), &other)];
        assert_eq!(of_both.iter().filter(|there| **there).count(), 1, "{}", text(&second.stderr));
        assert_eq!(second.status.success(), of_both[1], "{}", text(&second.stderr));
        stopped += usize::from(of_both[0]);
        printed(["rm", &child.0]);
    }
    println!("{came} and {stopped} of {KILLS} came to a snapshot");
}

#[test]
fn vm_prune_removes_what_has_ended_and_nothing_that_a_snapshot_needs() {
    let (name, child, dead) = (Name::new("pruned"), Name::new("pruned-child"), Name::new("pruned-dead"));
    let foreign = Name::new("pruned-foreign");
    printed(["ls"]);
    on_paper(&dead.0, another_boot);
    on_paper(&foreign.0, |record| record["version"] = 99.into());
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let bundle = folder.path().join("bundle").to_str().unwrap().to_owned();
    printed(["run", "--name", &name.0, "--memory", "128M", "--", "sh", "-c", "echo kept >/root/file"]);
    printed(["snapshot", "create", "--stop", &name.0, &bundle]);
    printed(["wait", &name.0]);
    let images = printed(["image", "ls", "--json"]);
    let pruned = crate::schema::prune();
    let pruned = pruned["removed"].as_array().unwrap();
    for (name, gone) in [(&name, true), (&dead, true), (&foreign, false)] {
        assert_eq!(pruned.contains(&name.0.as_str().into()), gone, "{pruned:?}");
        assert_eq!(row(&name.0).is_none(), gone);
    }
    // Only its own release would remove it.
    on_paper(&foreign.0, another_boot);
    assert_eq!(printed(["image", "ls", "--json"]), images);
    printed(["snapshot", "verify", &bundle]);
    // Its memory is the bundle's, and goes on being that.
    printed(["snapshot", "restore", &bundle, "--name", &child.0]);
    printed(["prune"]);
    assert_eq!(printed(["exec", &child.0, "--", "cat", "/root/file"]), "kept\n");
    printed(["kill", &child.0]);
    printed(["prune"]);
    printed(["snapshot", "verify", &bundle]);
}

#[test]
fn vm_a_client_that_dies_before_it_uses_what_was_opened_for_it_leaves_no_command() {
    let name = Name::new("unpaired");
    printed(["run", "--name", &name.0, "--memory", "128M"]);
    let [_, runtime] = places(&name.0);
    let mut client = UnixStream::connect(runtime.join(SOCKET)).unwrap();
    let open = Open { id: "0badcafe".to_owned(), port: EXEC, messages: true, ring_bytes: 0, label: "late".to_owned() };
    for (number, call) in [Call::Hello { api: VERSION }, Call::Open(open)].into_iter().enumerate() {
        let number = number as u64;
        writeln!(client, "{}", serde_json::to_string(&Request { number, call }).unwrap()).unwrap();
    }
    let answers = BufReader::new(&client).lines().take(2).map(Result::unwrap).collect::<Vec<_>>();
    assert!(answers[1].contains("opened"), "{answers:?}");
    let commands = || json(["ps", "--json", &name.0]).as_array().unwrap().len();
    assert_eq!(commands(), 1);
    drop(client);
    until(|| commands() == 0);
    // It was just told that it may use it.
    let steps = Steps::new();
    for how in [None, Some("-d")] {
        let exec = [&["exec"][..], how.as_slice(), &[&name.0, "--", "touch", "/root/begun"]].concat();
        let died = steps.run_and_die(&exec, "command paired 1");
        assert_eq!(died.status.signal(), Some(9), "{}", text(&died.stderr));
        until(|| commands() == 0);
    }
    assert_eq!(printed(["exec", &name.0, "--", "ls", "/root"]), "");
}

/// More than a sandbox has channels for them.
const COPIES: usize = 6;

#[test]
fn vm_copies_end_with_their_client_whether_it_is_killed_or_left_behind_by_a_fork() {
    let (name, child) = (Name::new("killed-copy"), Name::new("killed-copy-child"));
    printed(["run", "--name", &name.0]);
    let channels = |name: &Name| json(["inspect", "--json", &name.0])["channels"].as_array().unwrap().clone();
    let (inside, some) = (format!("{}:/root/file", name.0), vec![7; 2 << 20]);
    let copy = |from: &str, to: &str| {
        let mut copy = Command::new(command());
        let piped = copy.args(["cp", from, to]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        piped.spawn().unwrap()
    };
    let under_way =
        |which: &str| until(|| channels(&name).iter().any(|channel| channel[which].as_u64() > Some(1 << 16)));
    let upload = || {
        let mut upload = copy("-", &inside);
        upload.stdin.as_mut().unwrap().write_all(&some).unwrap();
        under_way("sent");
        upload
    };
    let killed = |mut client: Child| {
        client.kill().unwrap();
        client.wait().unwrap();
        until(|| channels(&name).is_empty());
    };
    for _ in 0..COPIES {
        killed(upload());
    }
    let last = upload();
    printed(["fork", &name.0, &child.0]);
    assert!(channels(&child).is_empty());
    // The end of its input.
    assert!(last.wait_with_output().unwrap().status.success());
    assert_eq!(printed(["exec", &name.0, "--", "stat", "-c", "%s", "/root/file"]).trim(), some.len().to_string());
    for _ in 0..COPIES {
        let download = copy(&inside, "-");
        under_way("received");
        killed(download);
    }
}

#[test]
fn vm_a_client_with_too_many_calls_under_way_is_told_so_and_the_others_are_answered() {
    let name = Name::new("many-calls");
    printed(["run", "--name", &name.0, "--memory", "128M"]);
    let mut client = UnixStream::connect(places(&name.0)[1].join(SOCKET)).unwrap();
    let mut answers = BufReader::new(client.try_clone().unwrap()).lines().map(Result::unwrap);
    let waits = std::iter::repeat_n(Call::Wait, 1025);
    for (number, call) in std::iter::once(Call::Hello { api: VERSION }).chain(waits).enumerate() {
        let number = number as u64;
        writeln!(client, "{}", serde_json::to_string(&Request { number, call }).unwrap()).unwrap();
    }
    assert!(answers.next().unwrap().contains("release"));
    let refused = answers.next().unwrap();
    assert!(refused.contains("[1025,") && refused.contains("wait for some of them"), "{refused}");
    printed(["kill", &name.0]);
    assert_eq!(answers.filter(|answer| answer.contains("exited")).count(), 1024);
}
