//! Commands: binary-safe, complete, and gone when nobody wants them.

use std::time::Duration;

use throughline_sandbox::{ChildEvent, SandboxError};
use throughline_wire::exec::{Exit, FailureKind, STDIN_WINDOW};

use crate::support::{Reader, restored, run, text, until, watched};

/// Every byte but zero, which no argument can hold.
fn every_byte() -> Vec<u8> {
    (1..=255).collect()
}

/// Bytes of all values, without a short period.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_hands_on_arguments_environment_folder_and_user() {
    watched(async {
        let sandbox = restored().await;
        let arguments = sandbox.command("sh").args(["-c", "cat /proc/$$/cmdline; :", "name"]).arg(every_byte()).arg("");
        let arguments = arguments.output().await.unwrap().stdout;
        let expected = [b"sh\0-c\0cat /proc/$$/cmdline; :\0name\0".as_slice(), &every_byte(), b"\0\0"].concat();
        assert_eq!(arguments, expected);
        let environment = sandbox.command("sh").args(["-c", "cat /proc/$$/environ; :"]).env("BYTES", every_byte());
        let environment = environment.output().await.unwrap().stdout;
        let variable = [b"BYTES=".as_slice(), &every_byte()].concat();
        assert!(environment.split(|byte| *byte == 0).any(|entry| entry == variable), "{environment:?}");
        let folder = sandbox.command("pwd").current_dir("/proc/sys").output().await.unwrap().stdout;
        assert_eq!(folder, b"/proc/sys\n");
        for (user, expected) in
            [("user", "1000:1000"), ("65534", "65534:65534"), ("user:root", "1000:0"), ("7:8", "7:8")]
        {
            let who = sandbox.command("sh").args(["-c", "echo $(id -u):$(id -g)"]).user(user);
            let who = who.output().await.unwrap().stdout;
            assert_eq!(String::from_utf8_lossy(&who).trim(), expected, "{user}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_tells_how_a_command_ended_or_why_it_did_not_start() {
    watched(async {
        let sandbox = restored().await;
        for code in [0, 1, 255] {
            assert_eq!(run(&sandbox, &format!("exit {code}")).await.exit, Exit::Code(code));
        }
        assert_eq!(run(&sandbox, "kill -SEGV $$").await.exit, Exit::Signal(11));
        assert_eq!(run(&sandbox, "kill -KILL $$").await.exit.shell_code(), 137);
        let command = |program: &str| sandbox.command(program);
        let cases = [
            (command("no-such-command"), FailureKind::NotFound, 127, "no-such-command: not found"),
            (command("/no/such/command"), FailureKind::NotFound, 127, "/no/such/command"),
            (command("/etc/passwd"), FailureKind::NotExecutable, 126, "/etc/passwd"),
            (command("/etc"), FailureKind::NotExecutable, 126, "/etc"),
            (command("true").user("stranger"), FailureKind::NoSuchUser, 125, "stranger"),
            (command("true").current_dir("/no/where"), FailureKind::BadCwd, 125, "/no/where"),
            (command("true").current_dir("/root").user("user"), FailureKind::BadCwd, 125, "/root"),
        ];
        for (command, kind, code, words) in cases {
            let error = command.output().await.unwrap_err();
            let SandboxError::Command(failure) = &error else { panic!("{error}") };
            assert_eq!((failure.kind, failure.kind.exit_code()), (kind, code), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    })
    .await;
}

/// 20 MB that include every byte value, to a reader that is away for a while, and from a writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_is_binary_safe_and_complete_at_any_pace() {
    watched(async {
        let sandbox = restored().await;
        let pattern = pattern(1 << 20);
        let mut child = sandbox.command("sh").args(["-c", "cat > /tmp/pattern"]).stdin().spawn().await.unwrap();
        let (written, collected) = tokio::join!(
            async {
                child.input.write_all(&pattern).await.unwrap();
                child.input.end().await.unwrap();
            },
            child.events.collect()
        );
        assert_eq!(((), collected.unwrap().exit), (written, Exit::Code(0)));

        let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do cat /tmp/pattern; done";
        let spawned = sandbox.command("sh").args(["-c", script]).label("slow").spawn().await.unwrap();
        let mut reader = Reader::new(spawned);
        for _ in 0..4 {
            reader.read(2 << 20).await;
            // While nobody reads, the output waits in its ring, and others go on.
            assert_eq!(text(&sandbox, "echo on").await, "on");
            let ring = || sandbox.link().channels().into_iter().find(|channel| channel.label == "slow").unwrap();
            until(async || ring().unread + 20_000 > ring().ring_bytes).await;
            assert!(reader.bytes.iter().zip(pattern.iter().cycle()).all(|(found, expected)| found == expected));
        }
        reader.finish().await;
        assert_eq!((reader.bytes.len(), reader.exit), (20 << 20, Some(Exit::Code(0))));
        assert!(reader.bytes.chunks(pattern.len()).all(|copy| copy == pattern));

        let both = "cat /tmp/pattern & cat /tmp/pattern >&2; wait";
        let output = run(&sandbox, both).await;
        assert!(output.stdout == pattern && output.stderr == pattern, "output and errors are apart, and whole");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_signal_passes_input_that_nobody_reads() {
    /// What the kernel takes for a command that does not read (`man 7 pipe`).
    const PIPE: u64 = 64 << 10;
    watched(async {
        let sandbox = restored().await;
        let child = sandbox.command("sleep").arg("1000").stdin().label("deaf").spawn().await.unwrap();
        let (mut input, mut events) = (child.input, child.events);
        let collecting = tokio::spawn(async move { events.collect().await });
        let info = || sandbox.link().channels().into_iter().find(|channel| channel.label == "deaf").unwrap();
        let sent = info().sent;
        let big = vec![7; 10 << 20];
        let full = async {
            until(async || info().sent - sent >= PIPE + STDIN_WINDOW / 2).await;
            // Time to send more, if anything let it.
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        tokio::select! {
            written = input.write_all(&big) => panic!("nobody read, and {written:?}"),
            () = full => {}
        }
        let written = info().sent - sent;
        assert!(written < PIPE + 2 * STDIN_WINDOW, "the window holds: {written}");
        input.signal(15, false).await.unwrap();
        assert_eq!(collecting.await.unwrap().unwrap().exit, Exit::Signal(15));

        // A command that ends without having read its input ends all the same, and whoever writes is told.
        for _ in 0..20 {
            let mut child = sandbox.command("true").stdin().spawn().await.unwrap();
            let (output, written) = tokio::join!(child.events.collect(), child.input.write_all(&big));
            assert_eq!(output.unwrap().exit, Exit::Code(0));
            assert!(matches!(written, Err(SandboxError::Channel(_))), "{written:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_drops_nothing_after_the_exit() {
    watched(async {
        let sandbox = restored().await;
        let script = "(n=0; while [ $n -lt 200 ]; do n=$((n+1)); echo $n; usleep 1000; done) & exit 7";
        let mut child = sandbox.command("sh").args(["-c", script]).spawn().await.unwrap();
        let (mut before, mut after, mut exit) = (Vec::new(), Vec::new(), None);
        while let Some(event) = child.events.next().await.unwrap() {
            match event {
                ChildEvent::Exited(how) => exit = Some(how),
                ChildEvent::Stdout { data, .. } if exit.is_none() => before.extend(data),
                ChildEvent::Stdout { data, .. } => after.extend(data),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(exit, Some(Exit::Code(7)));
        assert!(!after.is_empty(), "the exit is told at once");
        let all = String::from_utf8([before, after].concat()).unwrap();
        assert!(all.lines().eq((1..=200).map(|n| n.to_string())), "{all}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_64_at_once_and_no_zombie_stays() {
    watched(async {
        let sandbox = restored().await;
        let commands = (0..64).map(|n| {
            let sandbox = &sandbox;
            // Each leaves an orphan, which ends some time later.
            let script = format!("(usleep 20000; exit 3) & echo {n}; cat /proc/$$/comm; exit {n}");
            async move { (n, run(sandbox, &script).await) }
        });
        for (n, output) in futures_util::future::join_all(commands).await {
            assert_eq!(output.exit, Exit::Code(n));
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{n}\nsh\n"));
        }
        let zombies = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
        until(async || text(&sandbox, zombies).await == "0").await;
        assert!(sandbox.link().channels().is_empty(), "{:?}", sandbox.link().channels());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_exec_whose_handle_is_dropped_is_killed() {
    watched(async {
        let sandbox = restored().await;
        let spawned = sandbox.command("sh").args(["-c", "sleep 1000 & echo $$ $!; wait"]).spawn().await.unwrap();
        let mut reader = Reader::new(spawned);
        reader.read(3).await;
        let pids = String::from_utf8(reader.bytes.clone()).unwrap();
        let (shell, sleeper) = pids.trim().split_once(' ').unwrap();
        let living = format!("ls -d /proc/{shell} /proc/{sleeper} 2>/dev/null | wc -l");
        assert_eq!(text(&sandbox, &living).await, "2");
        drop(reader);
        until(async || text(&sandbox, &living).await == "0").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_command_that_takes_all_memory_is_killed_and_the_agent_is_not() {
    watched(async {
        let sandbox = restored().await;
        // A line without an end, which is kept whole.
        let greedy = sandbox.command("tail").arg("/dev/zero").output().await.unwrap();
        assert_eq!(greedy.exit, Exit::Signal(9));
        assert_eq!(text(&sandbox, "cat /proc/1/oom_score_adj").await, "-1000");
        assert_eq!(text(&sandbox, "cat /proc/self/oom_score_adj").await, "0");
    })
    .await;
}
