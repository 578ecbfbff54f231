//! Commands on terminals.

use throughline_sandbox::{ChildEvent, Command, Sandbox};
use throughline_wire::exec::Exit;

use crate::support::{Reader, folder, restored, watched};

/// A shell on a terminal.
fn on_terminal(sandbox: &Sandbox, script: &str) -> Command {
    sandbox.command("sh").args(["-c", script]).tty(40, 100)
}

/// Starts it, and reads until it shows `text`.
async fn started(command: Command, text: &str) -> Reader {
    let mut reader = Reader::new(command.spawn().await.expect("a command on a terminal"));
    shows(&mut reader, text).await;
    reader
}

async fn shows(reader: &mut Reader, text: &str) {
    while !String::from_utf8_lossy(&reader.bytes).contains(text) {
        assert!(reader.step().await, "the terminal ended with {:?}", String::from_utf8_lossy(&reader.bytes));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_on_a_terminal_has_colours_size_control_characters_and_exit_codes() {
    watched(async {
        let sandbox = restored().await;
        let script = "printf '\\033[31mred\\033[0m\\n'; stty size; tty | grep -c /dev/pts; echo to >/dev/tty; exit 7";
        let output = on_terminal(&sandbox, script).output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "\x1b[31mred\x1b[0m\r\n40 100\r\n1\r\nto\r\n");
        assert_eq!((output.exit, output.stderr), (Exit::Code(7), Vec::new()));

        let mut sleeper = started(on_terminal(&sandbox, "echo ready; exec sleep 1000"), "ready").await;
        sleeper.child.input.write_all(b"\x03").await.unwrap();
        sleeper.finish().await;
        assert_eq!(sleeper.exit, Some(Exit::Signal(2)));

        let script = "trap 'stty size' WINCH; echo ready; cat; exit 3";
        let mut typed = started(on_terminal(&sandbox, script).user("user"), "ready\r\n").await;
        typed.child.input.resize(50, 132).await.unwrap();
        typed.child.input.write_all(b"typed\n").await.unwrap();
        typed.child.input.end().await.unwrap();
        typed.finish().await;
        assert_eq!(typed.exit, Some(Exit::Code(3)));
        let shown = String::from_utf8(typed.bytes).unwrap();
        // What is typed is shown; the trap runs before or after.
        assert_eq!((shown.matches("typed\r\n").count(), shown.matches("50 132\r\n").count()), (2, 1), "{shown:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_terminal_goes_on_in_a_restored_guest() {
    watched(async {
        let sandbox = restored().await;
        let command = on_terminal(&sandbox, "echo ready; while read -r line; do echo got $line; stty size; done");
        let mut reader = started(command.label("terminal"), "ready\r\n").await;
        reader.child.input.write_all(b"half a ").await.unwrap();
        shows(&mut reader, "half a ").await;
        let place = folder();
        let (bundle, _) = sandbox.snapshot_and_stop(&place.path().join("bundle")).await.unwrap();
        drop(reader);
        let sandbox = throughline_sandbox::Sandbox::restore(bundle).start().await.unwrap();
        let mut reader = Reader::adopt(&sandbox, "terminal");
        reader.child.input.query().await.unwrap();
        // Only then is it known how much input it takes.
        while !matches!(reader.child.events.next().await.unwrap(), Some(ChildEvent::Status(_))) {}
        reader.child.input.resize(30, 90).await.unwrap();
        reader.child.input.write_all(b"line\n").await.unwrap();
        shows(&mut reader, "got half a line\r\n30 90\r\n").await;
        reader.child.input.end().await.unwrap();
        reader.finish().await;
        assert_eq!(reader.exit, Some(Exit::Code(0)));
    })
    .await;
}
