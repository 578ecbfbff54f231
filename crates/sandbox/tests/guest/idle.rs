//! What a sandbox takes while nothing is to be done.

use std::time::{Duration, Instant};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_idle_sandbox_takes_less_than_a_hundredth_of_a_core() {
    watched(async {
        let sandbox = restored().await;
        assert_eq!(text(&sandbox, "echo on").await, "on");
        let pids = [sandbox.record().machine.pid, std::process::id().cast_signed()];
        // Soon: what was begun before comes to rest, and other load on the host makes the same work take longer.
        until(async || {
            let (before, began) = (pids.map(taken), Instant::now());
            tokio::time::sleep(WINDOW).await;
            let least = began.elapsed() / 100;
            pids.map(taken).into_iter().zip(before).all(|(after, before)| after.saturating_sub(before) < least)
        })
        .await;
        assert_eq!(text(&sandbox, "echo still on").await, "still on");
        sandbox.kill().await.unwrap();
    })
    .await;
}
