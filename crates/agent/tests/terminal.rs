//! Commands on terminals.

#[expect(dead_code, reason = "the other tests use the rest")]
mod common;

use common::{Command, argv, shell, simply};
use serde_bytes::ByteBuf;
use throughline_wire::exec::{Event, Exit, Request, Start, WindowSize};

fn terminal(start: Start) -> Start {
    Start { tty: Some(WindowSize { rows: 40, cols: 100 }), ..start }
}

/// Reads until the terminal shows `text`.
async fn shows(command: &mut Command, text: &str) {
    let mut shown = Vec::new();
    while !String::from_utf8_lossy(&shown).contains(text) {
        command
            .event(|event| match event {
                Event::Stdout { data, .. } => shown.extend_from_slice(data),
                Event::Started { .. } | Event::StdinTaken { .. } => {}
                other => panic!("{other:?} before {text:?}, after {shown:?}"),
            })
            .await;
    }
}

#[test]
fn a_command_on_a_terminal_has_one_for_everything() {
    simply(async |executor| {
        let script = "printf '\\033[31mred\\033[0m\\n'; echo error >&2; stty size; echo $TERM; echo tty >/dev/tty; \
             test -t 0 && test -t 1 && test -t 2 && exit 7";
        let start = Start { env: vec![(ByteBuf::from("TERM"), ByteBuf::from("vt100"))], ..shell(script) };
        let mut command = Command::start(&executor, terminal(start)).await;
        command.started().await;
        assert!(command.status().await.tty);
        let outcome = command.finish().await;
        assert_eq!(outcome.text(), "\x1b[31mred\x1b[0m\r\nerror\r\n40 100\r\nvt100\r\ntty\r\n");
        assert_eq!((outcome.exit, outcome.stderr), (Some(Exit::Code(7)), Vec::new()));
        let plain = Command::start(&executor, terminal(shell("echo $TERM"))).await.finish().await;
        assert_eq!(plain.text(), "xterm\r\n");
    });
}

#[test]
fn a_terminal_belongs_to_its_user() {
    simply(async |executor| {
        let start = Start {
            user: Some("4242:4242".into()),
            cwd: Some(ByteBuf::from("/")),
            ..shell("echo by name >$(readlink /proc/self/fd/0); stat -c %u $(readlink /proc/self/fd/0)")
        };
        let outcome = Command::start(&executor, terminal(start)).await.finish().await;
        assert_eq!((outcome.text(), outcome.exit), ("by name\r\n4242\r\n", Some(Exit::Code(0))));
    });
}

#[test]
fn a_resize_is_seen_and_told() {
    simply(async |executor| {
        let script = "trap 'stty size; exit 3' WINCH; echo ready; sleep 1000 & wait";
        let mut command = Command::start(&executor, terminal(shell(script))).await;
        shows(&mut command, "ready\r\n").await;
        command.send(&Request::Resize(WindowSize { rows: 50, cols: 132 })).await;
        let mut command_text = Vec::new();
        let mut exit = None;
        while let Some(message) = command.events.recv().await {
            match throughline_wire::decode(&message).unwrap() {
                Event::Stdout { data, .. } => command_text.extend_from_slice(data),
                Event::Exited(found) => exit = Some(found),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((String::from_utf8(command_text).unwrap().as_str(), exit), ("50 132\r\n", Some(Exit::Code(3))));
        // Without a terminal nothing happens.
        let plain = Command::start(&executor, Start { stdin: true, ..argv(&["cat"]) }).await;
        plain.send(&Request::Resize(WindowSize { rows: 1, cols: 1 })).await;
        plain.send(&Request::StdinEnd).await;
        assert_eq!(plain.finish().await.exit, Some(Exit::Code(0)));
    });
}

#[test]
fn control_characters_reach_the_foreground_group() {
    simply(async |executor| {
        let mut command = Command::start(&executor, terminal(shell("echo ready; exec sleep 1000"))).await;
        shows(&mut command, "ready").await;
        command.send(&Request::Stdin(b"\x03")).await;
        assert_eq!(command.exit().await, Some(Exit::Signal(2)));

        let script = "trap 'echo stays' INT; sh -c 'trap - INT; echo ready; exec sleep 1000'; exit 4";
        let mut shell = Command::start(&executor, terminal(common::shell(script))).await;
        shows(&mut shell, "ready").await;
        shell.send(&Request::Stdin(b"\x03")).await;
        shows(&mut shell, "stays").await;
        assert_eq!(shell.exit().await, Some(Exit::Code(4)));
    });
}

#[test]
fn typed_input_ends_with_the_terminals_end_of_file() {
    simply(async |executor| {
        for (typed, shown) in [("line\n", "line\r\nline\r\n"), ("part", "partpart"), ("", "")] {
            let mut command = Command::start(&executor, terminal(shell("echo ready; exec cat"))).await;
            shows(&mut command, "ready\r\n").await;
            if !typed.is_empty() {
                command.send(&Request::Stdin(typed.as_bytes())).await;
            }
            command.send(&Request::StdinEnd).await;
            let mut all = Vec::new();
            while let Some(message) = command.events.recv().await {
                match throughline_wire::decode(&message).unwrap() {
                    Event::Stdout { data, .. } => all.extend_from_slice(data),
                    Event::Exited(exit) => assert_eq!(exit, Exit::Code(0)),
                    _ => {}
                }
            }
            assert_eq!(String::from_utf8(all).unwrap(), shown);
        }
    });
}

#[test]
fn nothing_that_a_terminal_shows_is_lost_at_the_end() {
    simply(async |executor| {
        let raw = "stty raw; head -c 1000000 /dev/zero; printf end";
        let outcome = Command::start(&executor, terminal(shell(raw))).await.finish().await;
        assert_eq!((outcome.stdout.len(), outcome.exit), (1_000_003, Some(Exit::Code(0))));
        assert!(outcome.stdout.ends_with(b"\0end"));

        // Somebody may keep the terminal beyond the command's end.
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let script = format!("trap '' HUP; mkfifo {0}; (read word <{0}; echo late $word) & exit 7", fifo.display());
        let mut command = Command::start(&executor, terminal(shell(&script))).await;
        command.started().await;
        command.event(|event| assert_eq!(event, Event::Exited(Exit::Code(7)))).await;
        std::fs::write(&fifo, "words\n").unwrap();
        shows(&mut command, "late words\r\n").await;
        assert_eq!(command.exit().await, None);
    });
}

#[test]
fn input_that_a_terminal_does_not_take_waits_in_the_window() {
    simply(async |executor| {
        let script = "stty raw -echo; echo ready; sleep 1000";
        let mut command = Command::start(&executor, terminal(shell(script))).await;
        shows(&mut command, "ready").await;
        let mut status = command.status().await;
        // Far more than a terminal and a window hold.
        let mut sent = 0;
        while status.stdin_received - status.stdin_taken + 4096 < throughline_wire::exec::STDIN_WINDOW {
            command.send(&Request::Stdin(&[b'x'; 4096])).await;
            sent += 4096;
            status = command.status().await;
            assert!(sent < 1 << 20, "a terminal that nobody reads took {} bytes", status.stdin_taken);
        }
        command.send(&Request::Signal { number: 9, group: true }).await;
        assert_eq!(command.exit().await, Some(Exit::Signal(9)));
    });
}
