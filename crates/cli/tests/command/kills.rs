//! Shims that are killed at any moment, under load: the client notices one event, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use throughline_sandbox::engine::Hardware;
use throughline_sandbox::guest::{Guest, Opening};
use throughline_sandbox::image::{ImageBuilder, Images};
use throughline_sandbox::{ChildEvent, Given, Sandbox, SandboxError};
use throughline_shim::ShimError;
use throughline_shim::api::Kind;
use throughline_shim::client::{Event, Remote};
use throughline_shim::start::{Keeping, Start};
use throughline_wire::exec::Exit;
use throughline_wire::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::support::{Name, printed, program, refused, watched};

/// Kills in a row.
const KILLS: usize = 200;

/// The byte at a position: what is lost, doubled or moved shows.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn pattern(from: u64, bytes: usize) -> Vec<u8> {
    (from..from + bytes as u64).map(byte).collect()
}

async fn created(name: &Name) -> Remote {
    let start = Start::Create {
        name: Some(name.0.clone()),
        image: "default".to_owned(),
        hardware: Hardware::default(),
        given: Given::default(),
        keeping: Keeping::default(),
    };
    program().start(&start).await.unwrap();
    Remote::connect(&name.0, program()).await.unwrap()
}

fn send_kill(remote: &Remote) {
    let pid = rustix::process::Pid::from_raw(remote.shim().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

async fn kill(remote: &Remote) {
    let before = remote.shim();
    send_kill(remote);
    let Event::TakenOver { shim } = remote.event().await else { panic!("no machine dies here") };
    assert_ne!(shim, before);
}

/// Bytes both ways over a stream to the guest's echo, until told to stop.
async fn echo(remote: Remote, stop: Arc<AtomicBool>, passed: Arc<AtomicU64>) {
    let opening = Opening { port: port::ECHO, ..Opening::default() };
    let (mut reader, mut writer) = remote.guest(false).stream(opening).await.unwrap().into_split();
    let writing = tokio::spawn(async move {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let piece = pattern(sent, 1 + (sent % 3001) as usize);
            writer.write_all(&piece).await.unwrap();
            sent += piece.len() as u64;
        }
        writer.shutdown().await.unwrap();
        sent
    });
    let (mut received, mut bytes) = (0, vec![0; 8192]);
    loop {
        let count = reader.read(&mut bytes).await.unwrap();
        if count == 0 {
            break;
        }
        assert!(bytes[..count] == pattern(received, count), "from byte {received} on");
        received += count as u64;
        passed.store(received, Ordering::Relaxed);
    }
    assert_eq!(writing.await.unwrap(), received);
}

/// Bytes through a command's input and output, until told to stop; then its end.
async fn cat(remote: Remote, stop: Arc<AtomicBool>, passed: Arc<AtomicU64>) {
    let child = remote.command("cat").stdin().spawn().await.unwrap();
    let (mut events, mut input) = (child.events, child.input);
    let writing = tokio::spawn(async move {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            let piece = pattern(sent, 1 + (sent % 5003) as usize);
            input.write_all(&piece).await.unwrap();
            sent += piece.len() as u64;
        }
        input.end().await.unwrap();
        (sent, input)
    });
    let (mut received, mut exit) = (0, None);
    while let Some(event) = events.next().await.unwrap() {
        match event {
            ChildEvent::Stdout { at, data } => {
                assert_eq!(at, received);
                assert!(data == pattern(received, data.len()), "from byte {received} on");
                received += data.len() as u64;
                passed.store(received, Ordering::Relaxed);
            }
            ChildEvent::Exited(how) => exit = Some(how),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(writing.await.unwrap().0, received);
    assert_eq!(exit, Some(Exit::Code(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_main_path_two_hundred_killed_shims_lose_and_double_nothing() {
    watched(async {
        let name = Name::new("kills");
        let remote = created(&name).await;
        let stop = Arc::new(AtomicBool::new(false));
        let counts: [Arc<AtomicU64>; 2] = Default::default();
        let mut load = JoinSet::new();
        load.spawn(echo(remote.clone(), stop.clone(), counts[0].clone()));
        load.spawn(cat(remote.clone(), stop.clone(), counts[1].clone()));
        let mut moved = 0;
        for _ in 0..KILLS {
            let before = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_micros(fastrand::u64(0..40_000))).await;
            kill(&remote).await;
            let after = counts.each_ref().map(|count| count.load(Ordering::Relaxed));
            moved += usize::from(before != after);
            if let Some(ended) = load.try_join_next() {
                ended.unwrap();
                panic!("the load ended early");
            }
        }
        assert!(moved > KILLS / 2, "traffic moved around {moved} of {KILLS} kills");
        stop.store(true, Ordering::Relaxed);
        while let Some(ended) = load.join_next().await {
            ended.unwrap();
        }
        let passed = counts.map(|count| count.load(Ordering::Relaxed));
        assert!(passed.iter().all(|bytes| *bytes > 100_000), "{passed:?}");
        // The shim closes what was read to its end a moment after the last read; the watchdog bounds the wait.
        while !remote.commands().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A client that does nothing, as if it were stopped, while its runtime is not driven.
fn stopped_at_will() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Kills the shim that a client knows, and waits until its last thread has ended, without driving the client. Only then
/// are its ends of sockets closed: while it dies, what a client writes is still taken.
fn kill_and_wait(remote: &Remote) {
    let pid = rustix::process::Pid::from_raw(remote.shim().cast_signed()).unwrap();
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    send_kill(remote);
    let mut ended = [PollFd::new(&process, PollFlags::IN)];
    let watchdog = Timespec { tv_sec: 30, tv_nsec: 0 };
    assert_eq!(poll(&mut ended, Some(&watchdog)).unwrap(), 1, "it does not die");
}

#[test]
fn vm_a_client_whose_command_another_one_took_over_from_a_dead_shim_is_told() {
    let name = Name::new("overtaken");
    let (slow, fast) = (stopped_at_will(), stopped_at_will());
    let (remote, mut child, id) = slow.block_on(watched(async {
        let remote = created(&name).await;
        let way = remote.guest(true);
        let sleeping = throughline_sandbox::Command::new(way.clone(), "sleep").args(["1000"]);
        let child = sleeping.spawn().await.unwrap();
        (remote, child, way.id())
    }));
    kill_and_wait(&remote);
    let other = fast.block_on(watched(async {
        let other = Remote::connect(&name.0, program()).await.unwrap();
        other.attach(&id, true).await.unwrap()
    }));
    slow.block_on(watched(async {
        let error = child.events.next().await.unwrap_err();
        assert!(matches!(error, SandboxError::Channel(throughline::Error::Reset)), "{error}");
        let why = remote.rolled_back(&id).await.unwrap_err();
        assert!(matches!(&why, ShimError::Failure(failure) if failure.kind == Kind::Taken), "{why}");
    }));
    // The other one goes on undisturbed.
    fast.block_on(watched(async {
        let mut other = other;
        other.input.signal(9, true).await.unwrap();
        while let Some(event) = other.events.next().await.unwrap() {
            if let ChildEvent::Exited(exit) = event {
                assert_eq!(exit, Exit::Signal(9));
            }
        }
    }));
    drop(remote);
}

#[test]
fn vm_a_snapshot_that_no_shim_has_heard_of_is_taken_by_its_successor() {
    let name = Name::new("unheard");
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let client = stopped_at_will();
    let remote = client.block_on(watched(created(&name)));
    kill_and_wait(&remote);
    let place = folder.path().join("bundle");
    client.block_on(watched(remote.snapshot(place.clone(), false, false))).unwrap();
    printed(["snapshot", "verify", place.to_str().unwrap()]);
}

#[test]
fn vm_a_sandbox_that_a_program_has_itself_is_not_waited_for_and_the_program_is_named() {
    let name = Name::new("held");
    let own = tokio::runtime::Runtime::new().unwrap();
    let sandbox = own.block_on(watched(async {
        let image = tokio::task::spawn_blocking(|| Images::new().open_or_build("default", &ImageBuilder::new()));
        Sandbox::builder(image.await.unwrap().unwrap()).name(&name.0).create().await.unwrap()
    }));
    let error = refused(&["exec", "--json", &name.0, "--", "true"]);
    assert_eq!(error["kind"], "held", "{error}");
    let process = format!("process {} ", std::process::id());
    assert!(error["message"].as_str().unwrap().contains(&process), "{error}");
    // Once it lets go, it is as any other.
    own.block_on(async { sandbox.detach() });
    drop(sandbox);
    assert_eq!(printed(["exec", &name.0, "--", "echo", "there"]), "there\n");
}
