//! Each verb, as a person or a program uses it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::dying::kill_shim;
use crate::support::{Name, json, machines, places, printed, refused, row, text, throughline, throughline_with};

#[test]
fn vm_main_path_run_exec_snapshot_restore_and_remove() {
    let name = Name::new("verbs");
    let output = throughline(["run", "--name", &name.0, "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".to_owned(), "err\n".to_owned()));

    // It stays; it is listed; its name is taken.
    let listed = json(["ls", "--json"]);
    let row = listed.as_array().unwrap().iter().find(|row| row["name"] == name.0.as_str()).unwrap();
    assert_eq!(row["state"], "running");
    assert_eq!(row["memory_bytes"], 256 << 20);
    assert_eq!(row["cpus"], 1);
    assert_eq!(row["net"], "none");
    let measures = row["confinement"].as_array().unwrap();
    assert!(measures.iter().any(|measure| measure["measure"] == "limits" && measure["in_force"] == true), "{row}");
    assert!(printed(["ls"]).lines().next().unwrap().ends_with("CONFINEMENT"));
    assert!(row["pid"].as_u64().is_some() && row["age_ms"].as_u64().is_some() && row["image"].is_string(), "{row}");
    let again = throughline(["--json", "run", "--name", &name.0]);
    assert_eq!(again.status.code(), Some(125));
    let error: serde_json::Value = serde_json::from_str(&text(&again.stderr)).unwrap();
    assert_eq!(error["error"]["kind"], "taken", "{error}");

    // Binary input; environment; folder.
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let echoed = throughline_with(&["exec", "-i", &name.0, "--", "cat"], &binary);
    assert!(echoed.stdout == binary && echoed.status.success());
    assert_eq!(
        printed(["exec", "-e", "WORD=a b", "-w", "/tmp", &name.0, "--", "sh", "-c", "echo $WORD; pwd"]),
        "a b\n/tmp\n"
    );

    // Exit codes as usual.
    let code = |arguments: &[&str]| throughline_with(arguments, b"").status.code();
    assert_eq!(code(&["exec", &name.0, "--", "no-such-program"]), Some(127));
    assert_eq!(code(&["exec", &name.0, "--", "/etc"]), Some(126));
    assert_eq!(code(&["exec", &name.0, "--", "sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["exec", "--timeout", "100ms", &name.0, "--", "sleep", "1000"]), Some(124));

    // A detached command, read to its end later, in a sandbox that was restored.
    let script = "for i in 1 2 3; do echo line $i; done; exit 5";
    let id = printed(["exec", "-d", &name.0, "--", "sh", "-c", script]).trim().to_owned();
    let commands = json(["ps", "--json", &name.0]);
    assert_eq!(commands[0]["id"], id.as_str());
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    printed(["snapshot", "create", &name.0, place.to_str().unwrap()]);
    printed(["snapshot", "verify", place.to_str().unwrap()]);
    let child = Name::new("verbs-child");
    assert_eq!(printed(["snapshot", "restore", place.to_str().unwrap(), "--name", &child.0]).trim(), child.0);
    for sandbox in [&name.0, &child.0] {
        let output = throughline(["attach", sandbox, &id]);
        assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "line 1\nline 2\nline 3\n");
    }
    let inspected = json(["--json", "inspect", place.to_str().unwrap()]);
    assert_eq!(inspected["kind"], "bundle");

    // Pause, resume, end, remove.
    printed(["pause", &child.0]);
    let state = |name: &str| json(["inspect", "--json", name])["state"].as_str().unwrap().to_owned();
    assert_eq!(state(&child.0), "paused");
    printed(["resume", &child.0]);
    assert_eq!(printed(["exec", &child.0, "--", "echo", "back"]), "back\n");
    let refused = throughline(["rm", &child.0]);
    assert_eq!(refused.status.code(), Some(125));
    printed(["kill", &child.0]);
    assert_eq!(state(&child.0), "exited");
    assert!(printed(["wait", &child.0]).contains("monitor"));
    let ended = throughline(["exec", &child.0, "--", "true"]);
    assert_eq!(ended.status.code(), Some(125));
    printed(["rm", &child.0]);
    let gone = throughline(["--json", "exec", &child.0, "--", "true"]);
    let error: serde_json::Value = serde_json::from_str(&text(&gone.stderr)).unwrap();
    assert_eq!(error["error"]["kind"], "missing", "{error}");
}

#[test]
fn vm_run_with_rm_leaves_nothing() {
    let name = Name::new("vanishes");
    let output = throughline(["run", "--rm", "--name", &name.0, "--", "true"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let listed = json(["ls", "--json"]);
    assert!(listed.as_array().unwrap().iter().all(|row| row["name"] != name.0.as_str()), "{listed}");
}

#[test]
fn vm_run_with_rm_leaves_nothing_of_a_machine_that_was_killed_alone_or_with_its_shim() {
    for (with_shim, why) in
        [(false, "has ended: the monitor was ended by signal 9"), (true, "is gone, and nobody saw it end")]
    {
        let name = Name::new("vanishes-dead");
        let mut run = std::process::Command::new(crate::support::command());
        run.args(["run", "--memory", "128M", "--rm", "--name", &name.0, "--", "sh", "-c", "echo begun; sleep 1000"]);
        let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut begun = String::new();
        BufReader::new(run.stdout.take().unwrap()).read_line(&mut begun).unwrap();
        assert_eq!(begun, "begun\n");
        let inspected = json(["inspect", "--json", &name.0]);
        let mut pids = vec![inspected["sandbox"]["machine"]["pid"].to_string()];
        if with_shim {
            pids.insert(0, inspected["shim"].to_string());
        }
        assert!(std::process::Command::new("kill").arg("-9").args(pids).status().unwrap().success());
        let ended = run.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(125), "{}", text(&ended.stderr));
        assert!(text(&ended.stderr).contains(why), "{}", text(&ended.stderr));
        assert!(row(&name.0).is_none() && places(&name.0).iter().all(|place| !place.exists()), "{with_shim}");
    }
}

/// Killed at once, shim and machine: whoever removes the sandbox removes what was the machine's.
#[test]
fn vm_control_groups_of_a_sandbox_whose_processes_were_killed_go_with_it() {
    let name = Name::new("killed");
    printed(["run", "--name", &name.0]);
    let inspected = json(["inspect", "--json", &name.0]);
    let machine = &inspected["sandbox"]["machine"];
    let groups: Vec<std::path::PathBuf> = serde_json::from_value(machine["groups"].clone()).unwrap();
    assert!(groups.iter().all(|group| group.exists()), "{groups:?}");
    for pid in [&inspected["shim"], &machine["pid"]] {
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }
    let state = || {
        let listed = json(["ls", "--json"]);
        let row = listed.as_array().unwrap().iter().find(|row| row["name"] == name.0.as_str()).unwrap();
        row["state"].as_str().unwrap().to_owned()
    };
    while state() != "dead" {}
    printed(["rm", &name.0]);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

#[test]
fn what_a_machine_cannot_have_is_refused() {
    for bad in [["--cpus", "0"], ["--cpus", "100000"], ["--net", "bridge"], ["--memory", "1M"]] {
        let output = throughline_with(&["run", bad[0], bad[1]], b"");
        assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(bad[0]), "{}", text(&output.stderr));
    }
}

#[test]
fn names_that_are_none_are_refused() {
    for bad in ["../x", "", "A", "a/b"] {
        let output = throughline(["--json", "run", "--name", bad]);
        assert_eq!(output.status.code(), Some(125));
        let error: serde_json::Value = serde_json::from_str(&text(&output.stderr)).unwrap();
        assert_eq!(error["error"]["kind"], "usage", "{error}");
    }
}

#[test]
fn vm_main_path_files_go_in_and_come_out() {
    let name = Name::new("files");
    printed(["run", "--name", &name.0]);
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("below")).unwrap();
    for number in 0..1000 {
        std::fs::write(tree.join(format!("below/{number}")), format!("file {number}")).unwrap();
    }
    std::os::unix::fs::symlink("below/1", tree.join("link")).unwrap();
    printed(["cp", tree.to_str().unwrap(), &format!("{}:/root/", name.0)]);
    assert_eq!(
        printed(["exec", &name.0, "--", "sh", "-c", "cat /root/tree/link; ls /root/tree/below | wc -l"]),
        "file 11000\n"
    );
    let back = folder.path().join("back");
    printed(["cp", &format!("{}:/root/tree", name.0), back.to_str().unwrap()]);
    assert_eq!(std::fs::read_link(back.join("link")).unwrap().to_str(), Some("below/1"));
    for number in 0..1000 {
        assert_eq!(std::fs::read_to_string(back.join(format!("below/{number}"))).unwrap(), format!("file {number}"));
    }
    // Bytes through the standard input and output.
    let binary: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let place = format!("{}:/root/binary", name.0);
    assert!(throughline_with(&["cp", "-", &place], &binary).status.success());
    assert!(throughline(["cp", &place, "-"]).stdout == binary);
    // Errors say what is wrong.
    let missing = throughline(["cp", &format!("{}:/no/such", name.0), "-"]);
    assert_eq!(missing.status.code(), Some(125));
    assert!(text(&missing.stderr).contains("/no/such"), "{}", text(&missing.stderr));
    assert_eq!(throughline(["cp", "a", "b"]).status.code(), Some(125));
}

#[test]
fn completions_and_manual_pages_are_generated() {
    assert!(printed(["completions", "bash"]).contains("snapshot"));
    let folder = tempfile::tempdir().unwrap();
    printed(["man", folder.path().to_str().unwrap()]);
    let page = std::fs::read_to_string(folder.path().join("throughline-snapshot-create.1")).unwrap();
    assert!(page.contains("unquiesced"), "{page}");
}

#[test]
fn vm_snapshot_that_stops_a_sandbox_is_whole_and_goes_on_elsewhere() {
    let (name, child) = (Name::new("stops"), Name::new("stops-child"));
    printed(["run", "--name", &name.0, "--", "sh", "-c", "echo kept >/root/file"]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    printed(["snapshot", "create", "--stop", &name.0, place.to_str().unwrap()]);
    printed(["wait", &name.0]);
    assert_eq!(json(["inspect", "--json", &name.0])["state"], "exited");
    printed(["snapshot", "verify", place.to_str().unwrap()]);
    printed(["snapshot", "restore", place.to_str().unwrap(), "--name", &child.0]);
    assert_eq!(printed(["exec", &child.0, "--", "cat", "/root/file"]), "kept\n");
}

#[test]
fn vm_logs_are_followed_until_the_sandbox_ends_and_who_is_refused_is_told_why() {
    let name = Name::new("logs");
    assert_eq!(printed(["run", "-d", "--name", &name.0, "--memory", "128M", "--", "sleep", "1000"]).trim(), name.0);
    assert_eq!(json(["ps", "--json", &name.0])[0]["label"], "sleep 1000");
    let mut follower = std::process::Command::new(crate::support::command());
    let mut follower = follower.args(["logs", "-f", &name.0]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap()));
    printed(["exec", &name.0, "--", "sh", "-c", "echo said to the console >/dev/console"]);
    assert!(lines.any(|line| line.unwrap().contains("said to the console")));
    // What runs is not removed unasked, nor is what stands still.
    printed(["pause", &name.0]);
    let error = refused(&["--json", "rm", &name.0]);
    assert!(error["message"].as_str().unwrap().contains("--force"), "{error}");
    let error = refused(&["--json", "snapshot", "create", &name.0, "/dev/shm/never"]);
    assert!(error["message"].as_str().unwrap().contains("resume it first"), "{error}");
    printed(["kill", &name.0]);
    assert!(lines.all(|line| line.is_ok()) && follower.wait().unwrap().success());
    assert_eq!(refused(&["--json", "pause", &name.0])["kind"], "ended");
    for wrong in [["--memory", "a lot"], ["--checkpoint", "0s"], ["--checkpoint", "99999999999h"]] {
        assert_eq!(refused(&[&["--json", "run"][..], &wrong].concat())["kind"], "usage");
    }
    assert_eq!(throughline(["no-such-verb"]).status.code(), Some(125));
    assert!(throughline(["--help"]).status.success());
}

#[test]
fn vm_rm_force_ends_a_sandbox_that_nobody_can_take_over() {
    let spoil: [fn(&str); 2] = [
        |name| std::fs::rename(places(name)[1].join("bell"), places(name)[1].join("away")).unwrap(),
        |name| std::fs::write(places(name)[0].join("current/sidecar"), "rubbish").unwrap(),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let name = Name::new(&format!("spoilt-{number}"));
        printed(["run", "--memory", "128M", "--name", &name.0]);
        kill_shim(&name);
        spoil(&name.0);
        assert_eq!(machines(&name.0).len(), 1);
        assert_eq!(throughline(["rm", &name.0]).status.code(), Some(125));
        printed(["rm", "--force", &name.0]);
        assert!(machines(&name.0).is_empty() && places(&name.0).iter().all(|place| !place.exists()));
    }
}
