//! Shims that are killed at any moment, under load: the client notices one event, and nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use throughline_sandbox::ChildEvent;
use throughline_sandbox::Given;
use throughline_sandbox::engine::Hardware;
use throughline_sandbox::guest::{Guest, Opening};
use throughline_shim::client::{Event, Remote};
use throughline_shim::start::{Keeping, Start};
use throughline_wire::exec::Exit;
use throughline_wire::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::support::{Name, program, watched};

/// Kills in a row.
const KILLS: usize = 200;

/// The byte at a position: what is lost, doubled or moved shows.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn pattern(from: u64, bytes: usize) -> Vec<u8> {
    (from..from + bytes as u64).map(byte).collect()
}

async fn kill(remote: &Remote) {
    let before = remote.shim();
    let pid = rustix::process::Pid::from_raw(before.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
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
        let start = Start::Create {
            name: Some(name.0.clone()),
            image: "default".to_owned(),
            hardware: Hardware::default(),
            given: Given::default(),
            keeping: Keeping::default(),
        };
        program().start(&start).await.unwrap();
        let remote = Remote::connect(&name.0, program()).await.unwrap();
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
