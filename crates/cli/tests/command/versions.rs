//! Programs of different releases: they work together, or say what to do.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;
use throughline_sandbox::sockets;

use crate::creators::{another_boot, on_paper};
use crate::support::{Name, json, places, printed, refused, row};

/// What every client of every release says first, and what a shim of another one answers.
const OTHER_SHIM: &str = include_str!("fixtures/hello-of-another-version.jsonl");
/// A client that is newer than this shim.
const NEWER_CLIENT: &str = include_str!("fixtures/newer-client.jsonl");
const WATCHDOG: Duration = Duration::from_mins(1);

/// A connection on which nobody waits for ever, and its lines.
fn lines(socket: UnixStream) -> (UnixStream, impl Iterator<Item = Value>) {
    socket.set_read_timeout(Some(WATCHDOG)).unwrap();
    let lines = BufReader::new(socket.try_clone().unwrap()).lines();
    (socket, lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()))
}

fn kill_shim(name: &str) {
    let shim = json(["inspect", "--json", name])["shim"].as_i64().unwrap();
    let shim = rustix::process::Pid::from_raw(i32::try_from(shim).unwrap()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn vm_main_path_a_command_says_what_to_do_with_a_shim_of_another_version() {
    let name = Name::new("old-shim");
    printed(["run", "--name", &name.0, "--memory", "128M"]);
    kill_shim(&name.0);
    let runtime = &places(&name.0)[1];
    let listener = sockets::listen(runtime, "api").unwrap();
    let (greeting, answer) = OTHER_SHIM.split_once('\n').unwrap();
    let shim = std::thread::spawn(move || {
        let (mut socket, mut said) = lines(listener.accept().unwrap().0);
        let said = said.next().unwrap();
        socket.write_all(answer.as_bytes()).unwrap();
        said
    });
    let error = refused(&["--json", "exec", &name.0, "--", "true"]);
    assert_eq!(error["kind"], "version", "{error}");
    let message = error["message"].as_str().unwrap();
    for word in ["process 4242", "release 9.8.7", "version 7", "speaks 1", "`kill -9 4242`"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    // The greeting is frozen: so it is found out, whichever of the two is newer.
    assert_eq!(shim.join().unwrap(), serde_json::from_str::<Value>(greeting).unwrap());
    // That shim has ended. The next one fits, and nothing is lost.
    assert_eq!(printed(["exec", &name.0, "--", "echo", "here"]), "here\n");
}

#[test]
fn vm_a_shim_tells_a_newer_client_its_version_and_which_calls_it_does_not_know() {
    let name = Name::new("new-client");
    printed(["run", "--name", &name.0, "--memory", "128M"]);
    let shim = json(["inspect", "--json", &name.0])["shim"].clone();
    let (mut socket, mut answers) = lines(sockets::connect(&places(&name.0)[1], "api").unwrap());
    let mut asked = NEWER_CLIENT.lines();
    let mut ask = || {
        writeln!(socket, "{}", asked.next().unwrap()).unwrap();
        answers.next().unwrap()
    };
    let hello = ask();
    assert_eq!((&hello["answer"][0], &hello["answer"][1]["api"]), (&0.into(), &1.into()), "{hello}");
    assert_eq!(hello["answer"][1]["pid"], shim);
    assert!(hello["answer"][1]["release"].is_string(), "{hello}");
    let unknown = ask();
    assert_eq!((&unknown["failure"][0], &unknown["failure"][1]["kind"]), (&5.into(), &"version".into()), "{unknown}");
    let commands = ask();
    assert_eq!((&commands["answer"][0], &commands["answer"][1]["commands"]), (&6.into(), &Value::Array(Vec::new())));
}

#[test]
fn a_sandbox_of_another_release_is_listed_and_left_to_it() {
    let name = Name::new("foreign");
    printed(["ls"]);
    on_paper(&name.0, |record| *record = serde_json::json!({ "version": 99, "colour": "green" }));
    assert_eq!(row(&name.0).unwrap()["state"], "foreign");
    for arguments in [["exec", &name.0, "--", "true"].as_slice(), &["rm", "-f", &name.0], &["inspect", &name.0]] {
        let error = refused(&[&["--json"], arguments].concat());
        assert_eq!(error["kind"], "version", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("version 99") && message.contains("use the release that made"), "{message}");
    }
    assert_eq!(refused(&["--json", "run", "--name", &name.0])["kind"], "taken");
    // Only its own release would remove it.
    on_paper(&name.0, another_boot);
}
