//! `fork`: children of one moment, by the command.

use throughline_sandbox::{Child, ChildEvent};
use throughline_shim::client::Remote;
use throughline_wire::encode;
use throughline_wire::exec::{Event, Exit};

use crate::roll_backs::framed;
use crate::support::{Name, json, printed, program, row, text, throughline, watched};

#[test]
fn vm_main_path_fork_children_go_on_with_the_commands_of_their_parent() {
    let name = Name::new("fork");
    printed(["run", "--name", &name.0]);
    let script = "i=0; while [ $i -lt 3 ]; do echo line $i; i=$((i+1)); sleep 0.2; done; exit 7";
    let id = printed(["exec", "-d", &name.0, "--", "sh", "-c", script]).trim().to_owned();
    let children = [Name(format!("{}-1", name.0)), Name(format!("{}-2", name.0)), Name(format!("{}-3", name.0))];
    let forked = json(["--json", "fork", &name.0, "-n", "3"]);
    let forked = forked.as_array().unwrap();
    assert_eq!(forked.len(), 3);
    for (child, Name(expected)) in forked.iter().zip(&children) {
        assert!(child["ok"] == true && child["name"] == expected.as_str() && child["error"].is_null(), "{child}");
    }
    let mut random = Vec::new();
    for Name(sandbox) in children.iter().chain([&name]) {
        let output = throughline(["attach", sandbox, &id]);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "line 0\nline 1\nline 2\n", "{sandbox}");
        random.push(printed(["exec", sandbox, "--", "sh", "-c", "head -c 16 /dev/urandom | hexdump -v; hostname"]));
    }
    random.sort();
    random.dedup();
    assert_eq!(random.len(), 4, "each is a guest of its own");

    // A child's child, by the name that was given; a name that is taken fails alone, or takes the others with it.
    let grandchild = Name::new("fork-grandchild");
    assert_eq!(printed(["fork", &children[0].0, &grandchild.0]).trim(), grandchild.0);
    let stem = format!("fork-some-{}", std::process::id());
    let (first, second) = (Name(format!("{stem}-1")), Name(format!("{stem}-2")));
    printed(["fork", &children[0].0, &second.0]);
    let failed = throughline(["--json", "fork", &children[0].0, &stem, "-n", "2", "--all-or-nothing"]);
    assert_eq!(failed.status.code(), Some(125));
    let failed: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert!(failed[0]["ok"] == false && failed[1]["ok"] == false, "{failed}");
    assert!(failed[1]["error"].as_str().unwrap().contains("exists"), "{failed}");
    assert!(row(&first.0).is_none() && row(&second.0).is_some(), "only what this command made is taken back");
    let failed = throughline(["--json", "fork", &children[0].0, &stem, "-n", "2"]);
    let failed: serde_json::Value = serde_json::from_slice(&failed.stdout).unwrap();
    assert!(failed[0]["ok"] == true && failed[1]["ok"] == false, "{failed}");

    // Named by their numbers; one whose hook fails says why.
    let hook = "mkdir -p /etc/throughline/restore.d && cd /etc/throughline/restore.d && printf '#!/bin/sh\n\
        printf \"\\\\033[31m\"; echo I am $THROUGHLINE_INDEX, $THROUGHLINE_HOSTNAME; exec [ $THROUGHLINE_INDEX != 2 ]\n' >10 && chmod 755 10";
    printed(["exec", &name.0, "--", "sh", "-c", hook]);
    let named = [Name(format!("{}-named-1", name.0)), Name(format!("{}-named-2", name.0))];
    let stem = format!("{}-named", name.0);
    let forked = throughline(["--json", "fork", &name.0, &stem, "-n", "2", "--hostname", "web-{index}"]);
    let forked: serde_json::Value = serde_json::from_slice(&forked.stdout).unwrap();
    assert!(forked[0]["ok"] == true && forked[1]["ok"] == false, "{forked}");
    assert!(forked[1]["error"].as_str().unwrap().contains("I am 2, web-2"), "{forked}");
    assert_eq!(printed(["exec", &named[0].0, "--", "hostname"]), "web-1\n");
    // What a guest said takes over nobody's terminal.
    assert!(forked[1]["error"].as_str().unwrap().contains('\x1b'), "{forked}");
    let forked = throughline(["fork", &name.0, &stem, "-n", "2", "--hostname", "web-{index}"]);
    let said = text(&forked.stderr);
    assert!(said.contains("[31mI am 2, web-2") && !said.contains('\x1b'), "{said:?}");
    let wrong = throughline(["fork", &name.0, "-n", "2", "--hostname", "web_{index}"]);
    assert!(text(&wrong.stderr).contains("\"web_2\" is no host name"), "{}", text(&wrong.stderr));
    assert!(row(&named[1].0).is_none());

    // Without the one that they came from.
    printed(["rm", "--force", &name.0]);
    assert_eq!(printed(["exec", &grandchild.0, "--", "echo", "still here"]), "still here\n");
}

/// More than rings and pipes hold; and after how many there is a pause.
const LINES: usize = 24_000;
const FIRST: usize = 3000;

/// What was read of a command, what its messages took in a ring, and how it ended, if it has.
struct Read {
    bytes: Vec<u8>,
    ring_bytes: u64,
    exit: Option<Exit>,
}

impl Read {
    /// The next event; whether there was one. Output may follow the exit.
    async fn step(&mut self, child: &mut Child) -> bool {
        match child.events.next().await.unwrap() {
            Some(ChildEvent::Stdout { at, data }) => {
                assert_eq!(at, self.bytes.len() as u64);
                self.ring_bytes += framed(&encode(&Event::Stdout { at, data: &data }).unwrap());
                self.bytes.extend(data);
            }
            Some(ChildEvent::Exited(exit)) => self.exit = Some(exit),
            None => return false,
            other => panic!("{other:?}"),
        }
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_while_a_client_reads_gives_the_child_exactly_what_the_client_had_not_read() {
    watched(async {
        let (name, still, flowing) = (Name::new("fork-read"), Name::new("fork-still"), Name::new("fork-flowing"));
        printed(["run", "--memory", "128M", "--name", &name.0]);
        let lines = |count| (1..=count).flat_map(|i| format!("line {i} of many\n").into_bytes()).collect::<Vec<_>>();
        let (expected, first) = (lines(LINES), lines(FIRST).len());
        let remote = Remote::connect(&name.0, program()).await.unwrap();
        let print = |count| format!("while [ $i -lt {count} ]; do i=$((i+1)); echo \"line $i of many\"; done");
        let script = format!("i=0; {}; sleep 4; {}; exit 9", print(FIRST), print(LINES));
        let mut command = remote.command("sh").arg("-c").arg(&script).spawn().await.unwrap();
        let id = remote.commands().await.unwrap()[0].id.clone();
        let started = framed(&encode(&Event::Started { pid: 1 }).unwrap());
        let mut read = Read { bytes: Vec::new(), ring_bytes: started, exit: None };
        let goes_on = |child: &Name| {
            let rest = throughline(["attach", &child.0, &id]);
            assert_eq!(rest.status.code(), Some(9), "{}", text(&rest.stderr));
            assert!(expected.ends_with(&rest.stdout), "{} is no end of it", rest.stdout.len());
            expected.len() - rest.stdout.len()
        };
        // Its client has read all that there is, and is known to have: the child has exactly the rest. Where there is more, a
        // shim is told of what was read once that makes room for it.
        while read.bytes.len() < first {
            assert!(read.step(&mut command).await);
        }
        while remote.channels().await.unwrap()[0].received < read.ring_bytes {
            tokio::task::yield_now().await;
        }
        printed(["fork", &name.0, &still.0]);
        assert_eq!(goes_on(&still), read.bytes.len());
        // In the middle of its reading.
        let before = read.bytes.len();
        let fork = [name.0.clone(), flowing.0.clone()];
        let mut fork = tokio::task::spawn_blocking(move || printed(["fork", &fork[0], &fork[1]]));
        while !fork.is_finished() && read.step(&mut command).await {}
        (&mut fork).await.unwrap();
        let frozen = goes_on(&flowing);
        assert!((before..=read.bytes.len()).contains(&frozen), "{before}, {frozen}, {}", read.bytes.len());
        while read.step(&mut command).await {}
        assert!(read.bytes == expected && read.exit == Some(Exit::Code(9)), "the source noticed nothing");
    })
    .await;
}
