//! Commands with real processes.

#[expect(dead_code, reason = "the other tests use the rest")]
mod common;

use std::path::Path;
use std::rc::Rc;

use common::{Command, argv, cgroup_mount, run, shell, simply};
use serde_bytes::ByteBuf;
use throughline_agent::cgroup::Cgroup;
use throughline_agent::reaper::Scope;
use throughline_agent::spawn::Spawner;
use throughline_wire::exec::{Event, Exit, FailureKind, MAX_DATA, Request, STDIN_WINDOW, Start};

#[test]
fn output_errors_and_code_come_back() {
    simply(async |executor| {
        let outcome = Command::start(&executor, shell("echo out; echo err >&2; exit 3")).await.finish().await;
        assert_eq!((outcome.text(), &outcome.stderr[..]), ("out\n", &b"err\n"[..]));
        assert_eq!((outcome.exit, outcome.failure), (Some(Exit::Code(3)), None));
    });
}

#[test]
fn of_a_hundred_fast_commands_at_once_none_loses_anything() {
    simply(async |executor| {
        let mut commands = Vec::new();
        for number in 0..100 {
            commands.push(Command::start(&executor, argv(&["echo", &number.to_string()])).await);
        }
        for (number, command) in commands.into_iter().enumerate() {
            let outcome = command.finish().await;
            assert_eq!((outcome.text(), outcome.exit), (&*format!("{number}\n"), Some(Exit::Code(0))));
        }
        assert_eq!(executor.reaper.running(), 0);
    });
}

#[test]
fn input_of_any_bytes_goes_through_a_window() {
    simply(async |executor| {
        let data: Vec<u8> = (0..1_000_000_u32).map(|at| (at ^ (at >> 7)) as u8).collect();
        let start = Start { stdin: true, ..argv(&["cat"]) };
        let outcome = Command::start(&executor, start).await.feed(&data).await;
        assert!(outcome.stdout == data, "{} bytes came back", outcome.stdout.len());
        assert_eq!(outcome.exit, Some(Exit::Code(0)));
    });
}

#[test]
fn input_that_nobody_wants_is_taken_all_the_same() {
    simply(async |executor| {
        let start = Start { stdin: true, ..shell("exec <&-; echo closed; read -r line </proc/self/fd/0; exit 5") };
        let outcome = Command::start(&executor, start).await.feed(&vec![7; 300_000]).await;
        assert_eq!(outcome.exit, Some(Exit::Code(5)));
    });
}

#[test]
fn a_signal_passes_input_that_is_stuck() {
    simply(async |executor| {
        let start = Start { stdin: true, ..argv(&["sleep", "1000"]) };
        let mut command = Command::start(&executor, start).await;
        command.started().await;
        // The pipe swallows 64 KiB; more than that stays queued.
        let mut sent = 0;
        let mut taken = 0;
        while taken + STDIN_WINDOW > sent {
            if sent - taken + MAX_DATA as u64 <= STDIN_WINDOW {
                command.send(&Request::Stdin(&[0; MAX_DATA])).await;
                sent += MAX_DATA as u64;
            } else if sent >= 64 * 1024 + STDIN_WINDOW {
                break;
            } else {
                taken =
                    command.event(|event| if let Event::StdinTaken { total } = event { total } else { taken }).await;
            }
        }
        let status = command.status().await;
        assert_eq!((status.stdin_received, status.exit), (sent, None));
        assert!(status.stdin_taken < sent && status.stdin_open);
        command.send(&Request::Signal { number: 15, group: false }).await;
        assert_eq!(command.finish().await.exit, Some(Exit::Signal(15)));
    });
}

#[test]
fn a_group_signal_reaches_the_commands_children() {
    simply(async |executor| {
        let mut command = Command::start(&executor, shell("echo ready; sleep 1000; echo never")).await;
        command.started().await;
        command.event(|event| assert!(matches!(event, Event::Stdout { .. }), "{event:?}")).await;
        command.send(&Request::Signal { number: 9, group: true }).await;
        assert_eq!(command.exit().await, Some(Exit::Signal(9)));
    });
}

#[test]
fn the_exit_is_told_at_once_and_late_output_still_comes() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let script = format!("mkfifo {0}; (read word <{0}; echo late $word) & echo early; exit 7", fifo.display());
    simply(async |executor| {
        let mut command = Command::start(&executor, shell(&script)).await;
        let mut exit = None;
        let mut early = Vec::new();
        while exit.is_none() {
            exit = command
                .event(|event| match event {
                    Event::Stdout { data, .. } => {
                        early.extend_from_slice(data);
                        None
                    }
                    Event::Exited(exit) => Some(exit),
                    _ => None,
                })
                .await;
        }
        assert_eq!(exit, Some(Exit::Code(7)));
        std::fs::write(&fifo, "words\n").unwrap();
        let mut all = early;
        while let Some(message) = command.events.recv().await {
            if let Event::Stdout { at, data } = throughline_wire::decode(&message).unwrap() {
                assert_eq!(at, all.len() as u64);
                all.extend_from_slice(data);
            }
        }
        assert_eq!(all, b"early\nlate words\n");
    });
}

#[test]
fn a_reader_that_is_slow_loses_nothing() {
    simply(async |executor| {
        let script = "i=0; while [ $i -lt 60000 ]; do echo line $i; i=$((i+1)); done";
        let outcome = Command::start(&executor, shell(script)).await.finish().await;
        let lines: Vec<String> = (0..60_000).map(|line| format!("line {line}")).collect();
        let expected = lines.join("\n") + "\n";
        assert!(outcome.text() == expected, "{} bytes instead of {}", outcome.stdout.len(), expected.len());
    });
}

#[test]
fn what_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    let script = folder.path().join("script");
    common::write_program(&script, "#!/nonexistent/interpreter\n");
    let in_folder = |cwd: &str| Start { cwd: Some(ByteBuf::from(cwd)), ..argv(&["true"]) };
    let as_user = |user: &str| Start { user: Some(user.into()), ..argv(&["true"]) };
    let cases = [
        (argv(&["no-such-program"]), FailureKind::NotFound, "not found"),
        (argv(&["/no/such/program"]), FailureKind::NotFound, "not found"),
        (argv(&[script.to_str().unwrap()]), FailureKind::NotFound, "interpreter"),
        (argv(&[plain.to_str().unwrap()]), FailureKind::NotExecutable, "cannot be executed"),
        (argv(&["/"]), FailureKind::NotExecutable, "cannot be executed"),
        (argv(&[]), FailureKind::Other, "empty"),
        (argv(&[""]), FailureKind::NotFound, "empty"),
        (argv(&["a\0b"]), FailureKind::Other, "zero byte"),
        (in_folder("/no/such/folder"), FailureKind::BadCwd, "/no/such/folder"),
        (in_folder(plain.to_str().unwrap()), FailureKind::BadCwd, "plain"),
        (in_folder("a\0b"), FailureKind::BadCwd, "zero byte"),
        (as_user("no-such-user"), FailureKind::NoSuchUser, "no-such-user"),
        (as_user("root:no-such-group"), FailureKind::NoSuchUser, "no-such-group"),
        (Start { env: vec![(ByteBuf::from("A=B"), ByteBuf::new())], ..argv(&["true"]) }, FailureKind::Other, "'='"),
    ];
    simply(async |executor| {
        for (start, kind, words) in cases {
            let shown = format!("{start:?}");
            let outcome = Command::start(&executor, start).await.finish().await;
            let failure = outcome.failure.unwrap_or_else(|| panic!("{shown} started"));
            assert_eq!(failure.kind, kind, "{shown}: {}", failure.message);
            assert!(failure.message.contains(words), "{shown}: {}", failure.message);
            assert_eq!((outcome.exit, outcome.stdout.len()), (None, 0));
        }
        assert_eq!(executor.reaper.running(), 0);
    });
}

#[test]
fn user_groups_home_and_variables_are_the_accounts() {
    let etc = tempfile::tempdir().unwrap();
    let passwd = "root:x:0:0::/root:/bin/sh\nalice:x:4242:4243::/tmp:/bin/false\n";
    std::fs::write(etc.path().join("passwd"), passwd).unwrap();
    std::fs::write(etc.path().join("group"), "alice:x:4243:\nextra:x:4244:alice\n").unwrap();
    let script = "id -u; id -g; id -G; pwd; echo $HOME $USER $LOGNAME $SHELL $TERM $EXTRA; echo $PATH";
    let start = Start {
        user: Some("alice".into()),
        env: vec![
            (ByteBuf::from("EXTRA"), ByteBuf::from([b'x', 0xfe])),
            (ByteBuf::from("TERM"), ByteBuf::from("xterm")),
        ],
        ..shell(script)
    };
    run(Scope::Adopted, Spawner::new(None, false), etc.path(), async |executor| {
        let outcome = Command::start(&executor, start).await.finish().await;
        let path = throughline_agent::spawn::DEFAULT_PATH;
        let head = "4242\n4243\n4243 4244\n/tmp\n/tmp alice alice /bin/false xterm x";
        let expected = [head.as_bytes(), b"\xfe\n", path.as_bytes(), b"\n"].concat();
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&expected));
    });
}

#[test]
fn a_user_may_not_enter_what_only_root_may() {
    let folder = tempfile::tempdir().unwrap();
    let only_root = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(folder.path(), only_root).unwrap();
    let cwd = Some(ByteBuf::from(folder.path().to_str().unwrap()));
    simply(async |executor| {
        let start = Start { user: Some("4242:4242".into()), cwd, ..argv(&["true"]) };
        let failure = Command::start(&executor, start).await.finish().await.failure.unwrap();
        assert_eq!(failure.kind, FailureKind::BadCwd, "{}", failure.message);
    });
}

#[test]
fn commands_start_with_default_signals_in_a_session_of_their_own() {
    #[expect(unsafe_code, reason = "only a system call makes a signal ignored")]
    // SAFETY: SIG_IGN is no function that could run, and nobody else here uses the signal.
    unsafe {
        libc::signal(libc::SIGUSR2, libc::SIG_IGN)
    };
    simply(async |executor| {
        let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ps -o pid=,sid= -p $$";
        let mut command = Command::start(&executor, shell(script)).await;
        let pid = command.started().await;
        let outcome = command.finish().await;
        let words: Vec<&str> = outcome.text().split_whitespace().collect();
        let [_, blocked, _, ignored, own, session] = words[..] else { panic!("{words:?}") };
        // The C library keeps 32 and 33 to itself and does not let anybody change them.
        let reserved = 0b11 << 31;
        let mask = |hex| u64::from_str_radix(hex, 16).unwrap() & !reserved;
        assert_eq!((mask(blocked), mask(ignored)), (0, 0));
        let pid = pid.to_string();
        assert_eq!((own, session), (&*pid, &*pid));
    });
}

#[test]
fn whoever_breaks_the_rules_is_told_and_the_command_is_killed() {
    simply(async |executor| {
        let sleeper = || Start { stdin: true, ..argv(&["sleep", "1000"]) };
        let too_long = vec![0; MAX_DATA + 1];
        let overfull = vec![Request::Stdin(&[0; MAX_DATA]); 20];
        let cases: [(&[Request], &str); 5] = [
            (&[Request::Start(sleeper())], "second Start"),
            (&[Request::Signal { number: 65, group: false }], "no signal 65"),
            (&[Request::StdinEnd, Request::Stdin(b"x")], "after its end"),
            (&[Request::Stdin(&too_long)], "at most"),
            (&overfull, "unacknowledged"),
        ];
        for (requests, words) in cases {
            let command = Command::start(&executor, sleeper()).await;
            for request in requests {
                // The guest stops listening as soon as it has seen enough.
                let _ = command.requests.send(throughline_wire::encode(request).unwrap()).await;
            }
            let failure = command.finish().await.failure.unwrap_or_else(|| panic!("{words}: no failure"));
            assert_eq!(failure.kind, FailureKind::Protocol);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
        let rubbish = Command::open(&executor);
        rubbish.requests.send(vec![0xff; 100]).await.unwrap();
        assert_eq!(rubbish.finish().await.failure.unwrap().kind, FailureKind::Protocol);
        let early = Command::open(&executor);
        early.send(&Request::StdinEnd).await;
        assert!(early.finish().await.failure.unwrap().message.contains("first message"));
        none_running(&executor).await;
    });
}

/// Waits until the reaper has no child left.
async fn none_running(executor: &Rc<throughline_agent::exec::Executor>) {
    while executor.reaper.running() > 0 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn when_the_host_closes_the_command_is_killed() {
    simply(async |executor| {
        // It prints, so the agent notices that nobody listens.
        let mut command = Command::start(&executor, shell("while :; do echo more; done")).await;
        command.started().await;
        let Command { requests, events, serving, .. } = command;
        drop((requests, events));
        assert!(serving.await.unwrap().is_err());
        none_running(&executor).await;
    });
}

#[test]
fn nothing_starts_while_the_gate_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    simply(async |executor| {
        executor.gate.close();
        let command = Command::start(&executor, shell(&format!("echo ran >{}", trace.display()))).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(executor.reaper.running() == 0 && !trace.exists());
        executor.gate.open();
        assert_eq!(command.finish().await.exit, Some(Exit::Code(0)));
        assert!(trace.exists());
    });
}

#[test]
fn commands_live_in_the_users_group_which_freezes_and_dies_together() {
    let path = cgroup_mount().join(format!("throughline-test-exec-{}", std::process::id()));
    let cleanup = common::Cleanup(path.clone());
    let group = Cgroup::create(&path).unwrap();
    let spawner = Spawner::new(Some(group.entrance().unwrap()), true);
    run(Scope::Adopted, spawner, Path::new("/etc"), async |executor| {
        let limit = common::WATCHDOG;
        let script = "cat /proc/self/cgroup /proc/self/oom_score_adj; ulimit -n";
        let outcome = Command::start(&executor, shell(script)).await.finish().await;
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(outcome.text().contains(&format!("0::/{name}\n")), "{outcome:?}");
        assert!(outcome.text().ends_with("\n0\n1024\n"), "{}", outcome.text());

        let mut endless = Command::start(&executor, shell("while :; do echo more; done & wait")).await;
        endless.started().await;
        group.freeze(limit).await.unwrap();
        let frozen = std::fs::read_to_string(path.join("cgroup.events")).unwrap();
        assert!(frozen.contains("frozen 1"), "{frozen}");
        group.thaw().unwrap();
        endless.event(|event| assert!(matches!(event, Event::Stdout { .. }))).await;
        // An empty group and one that is frozen already freeze too.
        group.freeze(limit).await.unwrap();
        group.freeze(limit).await.unwrap();
        group.kill().unwrap();
        assert_eq!(endless.exit().await, Some(Exit::Signal(9)));
        group.emptied().await.unwrap();
        assert_eq!(group.processes().unwrap(), []);
        group.freeze(limit).await.unwrap();
        group.thaw().unwrap();
    });
    group.remove().unwrap();
    drop(cleanup);
}
