//! What a sandbox takes while nothing is to be done.

use std::time::{Duration, Instant};

use throughline_sandbox::{ChildEvent, Sandbox};
use throughline_wire::exec::Exit;

use crate::support::{restored, text, until, watched};

/// Long enough for everything that wakes up once in a while.
const WINDOW: Duration = Duration::from_secs(3);

/// Processor time that all threads of a process have taken, from the scheduler's own account.
fn taken(pid: i32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let of = |thread: std::fs::DirEntry| {
        let account = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        account.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(threads.flatten().map(of).sum())
}

/// Waits until neither this process nor the machine takes more than a hundredth of a core. Soon: what was begun before
/// comes to rest, and other load on the host makes the same work take longer.
async fn at_rest(sandbox: &Sandbox) {
    let pids = [sandbox.record().machine.pid, std::process::id().cast_signed()];
    until(async || {
        let (before, began) = (pids.map(taken), Instant::now());
        tokio::time::sleep(WINDOW).await;
        let least = began.elapsed() / 100;
        pids.map(taken).into_iter().zip(before).all(|(after, before)| after.saturating_sub(before) < least)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_idle_sandbox_takes_less_than_a_hundredth_of_a_core() {
    watched(async {
        let sandbox = restored().await;
        assert_eq!(text(&sandbox, "echo on").await, "on");
        at_rest(&sandbox).await;
        assert_eq!(text(&sandbox, "echo still on").await, "still on");
        sandbox.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_commands_whose_output_nobody_reads_cost_nothing_and_hold_up_nobody() {
    watched(async {
        let sandbox = restored().await;
        let mut unread = Vec::new();
        for _ in 0..4 {
            unread.push(sandbox.command("yes").arg("unread").spawn().await.unwrap());
        }
        // Each writes until its ring is full, and stands still.
        at_rest(&sandbox).await;
        for entry in sandbox.link().channels().iter().filter(|entry| entry.held) {
            assert!(entry.unread > 0, "{entry:?}");
        }
        // Others go on: short ones, large ones, and those that end one of the four.
        let large = sandbox.command("head").args(["-c", "4000000", "/dev/zero"]).output().await.unwrap();
        assert_eq!(large.stdout.len(), 4_000_000);
        for mut child in unread {
            assert_eq!(text(&sandbox, "echo on").await, "on");
            child.input.signal(9, true).await.unwrap();
            let mut bytes = 0;
            while let Some(event) = child.events.next().await.unwrap() {
                match event {
                    ChildEvent::Stdout { data, .. } => bytes += data.len(),
                    ChildEvent::Exited(exit) => assert_eq!(exit, Exit::Signal(9)),
                    other => panic!("{other:?}"),
                }
            }
            assert!(bytes > 0);
        }
        sandbox.kill().await.unwrap();
    })
    .await;
}

/// Bare pauses, of which a guest learns nothing, between any two answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_guest_that_is_paused_again_and_again_answers_old_channels_and_new_ones() {
    watched(async {
        let sandbox = restored().await;
        let old = sandbox.command("cat").stdin().spawn().await.unwrap();
        let (mut events, mut input) = (old.events, old.input);
        for round in 0..20 {
            let line = format!("line {round}\n");
            // What is asked while it stands still is answered afterwards.
            sandbox.pause().await.unwrap();
            input.write_all(line.as_bytes()).await.unwrap();
            let new = sandbox.command("echo").arg(round.to_string());
            let (new, resumed) = tokio::join!(new.output(), sandbox.resume());
            resumed.unwrap();
            assert_eq!(new.unwrap().stdout, format!("{round}\n").into_bytes());
            let Some(ChildEvent::Stdout { data, .. }) = events.next().await.unwrap() else { panic!("an answer") };
            assert_eq!(data, line.as_bytes());
        }
        sandbox.kill().await.unwrap();
    })
    .await;
}
