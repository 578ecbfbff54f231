//! Machines that die, and go back to their last checkpoint.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use throughline::{AdoptError, ChannelInfo, Event};
use throughline_sandbox::engine::ExitReason;
use throughline_sandbox::{Known, Sandbox, SandboxError, State};
use throughline_wire::exec::Exit;
use throughline_wire::port;

use crate::support::{Reader, gone, let_go, name, places, restored, template, text, until, watched};

const LINES: usize = 6000;

fn expected() -> Vec<u8> {
    (1..=LINES).flat_map(|i| format!("line {i} of many\n").into_bytes()).collect()
}

/// Prints more than rings and pipes hold.
async fn printer(sandbox: &Sandbox) -> Reader {
    let script = format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i of many\"; done; exit 9");
    Reader::new(sandbox.command("sh").args(["-c", &script]).label("printer").spawn().await.unwrap())
}

fn channel(sandbox: &Sandbox) -> ChannelInfo {
    sandbox.link().channels().into_iter().find(|channel| channel.label == "printer").unwrap()
}

/// Kills the monitor, and waits until that is noticed.
pub async fn die(sandbox: &Sandbox) {
    kill_process(Pid::from_raw(sandbox.machine().pid).unwrap(), Signal::KILL).unwrap();
    let exit = sandbox.exited().await;
    // Where it was taken over, nobody may say by which signal.
    assert!(matches!(exit.reason, ExitReason::Signal(9) | ExitReason::Unknown), "{exit}");
    assert!(sandbox.may_roll_back(&exit));
}

/// The guest's random bytes, and its machine-id.
async fn who(sandbox: &Sandbox) -> (String, String) {
    (text(sandbox, "head -c 16 /dev/urandom | hexdump").await, text(sandbox, "cat /etc/machine-id").await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_checkpoint_brings_a_dead_machine_back_and_each_reader_is_told_from_where() {
    watched(async {
        let sandbox = restored().await;
        let mut reader = printer(&sandbox).await;
        reader.read(10_000).await;
        let machine_id = who(&sandbox).await.1;
        let first = sandbox.checkpoint().await.unwrap();
        assert!(first.quiesced && first.carried.to_host > 0);
        // The second one takes the place of the first.
        sandbox.checkpoint().await.unwrap();
        let (at, then) = (reader.bytes.len(), channel(&sandbox));
        reader.read(20_000).await;
        let since = sandbox.link().connect(port::ECHO).await.unwrap();
        let (lost, far, since) = (sandbox.link().timeline(), channel(&sandbox), since.id());
        die(&sandbox).await;

        let lost_one = sandbox;
        let mut sandbox = lost_one.roll_back().await.unwrap();
        drop((lost_one, reader));
        let to = sandbox.link().timeline();
        assert_eq!(sandbox.link().event().await, Event::RolledBack { from: lost, to });
        let how_far = channel(&sandbox).rolled_back.unwrap();
        assert_eq!((how_far.lost, how_far.received.from, how_far.received.to), (lost, far.received, then.received));
        assert!(how_far.received.bytes() >= 20_000 && how_far.sent.from == far.sent);
        let refused = sandbox.link().adopt(far.id).unwrap_err();
        assert_eq!(refused, AdoptError::RolledBack { from: lost, to, how_far: Some(how_far) });
        let refused = sandbox.link().adopt(since).unwrap_err();
        assert_eq!(refused, AdoptError::RolledBack { from: lost, to, how_far: None });
        let (mut random, id) = (Vec::new(), who(&sandbox).await.1);
        assert_eq!(id, machine_id, "the same machine to others");
        random.push(who(&sandbox).await.0);

        // It dies again before there is another checkpoint, and nobody drives it.
        die(&sandbox).await;
        let name = sandbox.name().to_owned();
        let_go(sandbox).await;
        assert_eq!(Known::find(&name).unwrap().state, State::Lost);
        sandbox = Sandbox::take_over(&name).await.unwrap();
        assert_eq!(sandbox.record().checkpoints.times, 2);
        assert_eq!(channel(&sandbox).rolled_back, Some(how_far), "nobody took it in between");
        random.push(who(&sandbox).await.0);
        assert_ne!(random[0], random[1]);

        let mut reader = Reader::adopt(&sandbox, "printer");
        assert_eq!(channel(&sandbox).rolled_back, None, "its owner was told");
        reader.finish().await;
        assert!(reader.bytes == expected()[at..], "from byte {at} on");
        assert_eq!(reader.exit, Some(Exit::Code(9)));
        // What came back is as good as any: it has checkpoints, snapshots, an end.
        sandbox.checkpoint().await.unwrap();
        assert_eq!(sandbox.record().checkpoints.tries, 0);
        sandbox.kill().await.unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_checkpoint_that_is_broken_off_at_any_moment_leaves_no_draft() {
    watched(async {
        let sandbox = restored().await;
        let [memory, _] = places(sandbox.name());
        let drafts = || {
            let entries = std::fs::read_dir(&memory).unwrap().map(|entry| entry.unwrap().file_name());
            entries.filter(|name| name.to_string_lossy().starts_with(".throughline-partial-")).count()
        };
        for _ in 0..50 {
            let mut checkpoint = std::pin::pin!(sandbox.checkpoint());
            std::future::poll_fn(|context| {
                assert!(checkpoint.as_mut().poll(context).is_pending());
                if drafts() > 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            // Its RAM is just being written.
            let moment = Duration::from_micros(fastrand::u64(0..3000));
            let _ = tokio::time::timeout(moment, checkpoint).await;
        }
        until(async || drafts() == 0).await;
        sandbox.checkpoint().await.unwrap();
        assert_eq!(drafts(), 0);
        sandbox.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_checkpoint_a_sandbox_that_dies_soon_after_each_start_comes_back_five_times_and_says_so() {
    watched(async {
        let mut sandbox = restored().await;
        let name = sandbox.name().to_owned();
        for times in 0..5 {
            // As whoever drives it does at once, in each timeline.
            sandbox.checkpoint().await.unwrap();
            assert_eq!(sandbox.record().checkpoints.short_lives, times);
            die(&sandbox).await;
            let back = sandbox.roll_back().await.unwrap();
            drop(std::mem::replace(&mut sandbox, back));
        }
        sandbox.checkpoint().await.unwrap();
        kill_process(Pid::from_raw(sandbox.machine().pid).unwrap(), Signal::KILL).unwrap();
        let exit = sandbox.exited().await;
        assert!(!sandbox.may_roll_back(&exit));
        let exit = sandbox.conclude(exit).await.unwrap().to_string();
        assert!(exit.contains("5 times in a row, and each time its machine died within 30 s"), "{exit}");
        drop(sandbox);
        Known::remove(&name).unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_checkpoint_is_not_gone_back_to_where_the_end_was_wanted() {
    watched(async {
        let sandbox = restored().await;
        sandbox.checkpoint_every(Some(Duration::from_millis(1))).unwrap();
        tokio::select! {
            never = sandbox.keep_checkpoints() => match never {},
            () = until(async || sandbox.record().checkpoints.last.is_some()) => {}
        }
        let [memory, _] = places(sandbox.name());
        let checkpoints = || std::fs::read_dir(&memory).unwrap().count();
        // Current, runtime, one checkpoint. The next one, which was broken off, goes when its RAM has been copied.
        until(async || checkpoints() == 3).await;
        sandbox.end();
        let exit = sandbox.exited().await;
        assert!(!sandbox.may_roll_back(&exit));
        let name = sandbox.name().to_owned();
        let refused = sandbox.roll_back().await.unwrap_err();
        assert!(matches!(refused, SandboxError::NoCheckpoint(_)), "{refused}");
        assert_eq!(Known::find(&name).unwrap().state, State::Dead);
        Known::remove(&name).unwrap();

        // A guest that ends by itself would do so again.
        let sandbox = Sandbox::restore(template().await).name(self::name("off")).start().await.unwrap();
        sandbox.checkpoint().await.unwrap();
        let _ = sandbox.command("poweroff").args(["-f"]).output().await;
        let exit = sandbox.exited().await;
        assert_eq!(exit.reason, ExitReason::PoweredOff);
        assert!(!sandbox.may_roll_back(&exit));
        let name = sandbox.name().to_owned();
        drop(sandbox);
        gone(&name).await;
    })
    .await;
}
