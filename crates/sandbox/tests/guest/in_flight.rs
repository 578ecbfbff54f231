//! What is under way at a snapshot goes on in every restore of it, complete, once per timeline.

use throughline::{Event, Link};
use throughline_sandbox::Sandbox;
use throughline_sandbox::bundle::Bundle;
use throughline_wire::exec::Exit;
use throughline_wire::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Reader, folder, restored, until, watched};

const LINES: usize = 9000;

/// Prints far more than ring and pipe hold together.
fn script() -> String {
    format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i of very many lines\"; done; exit 9")
}

fn expected() -> Vec<u8> {
    (1..=LINES).flat_map(|i| format!("line {i} of very many lines\n").into_bytes()).collect()
}

async fn printer(sandbox: &Sandbox) -> Reader {
    let command = sandbox.command("sh").arg("-c").arg(script()).label("printer");
    Reader::new(command.spawn().await.unwrap())
}

/// Takes the printer over, and reads it to its end: from `from` on, all of it, and nothing else.
async fn goes_on(sandbox: &Sandbox, from: usize) {
    let mut reader = Reader::adopt(sandbox, "printer");
    reader.finish().await;
    assert_eq!(reader.at, Some(expected().len() as u64));
    assert!(reader.bytes == expected()[from..], "from byte {from} on");
    assert_eq!(reader.exit, Some(Exit::Code(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_output_in_flight_goes_on_in_every_sibling_and_in_the_source() {
    watched(async {
        let sandbox = restored().await;
        let mut reader = printer(&sandbox).await;
        reader.read(20_000).await;
        let folder = folder();
        let (bundle, report) = sandbox.snapshot(&folder.path().join("bundle")).await.unwrap();
        assert!(report.carried.to_host > 0, "{report:?}");
        let from = reader.bytes.len();
        let [first, second] = [1, 2].map(|index| Sandbox::restore(bundle.clone()).forked(index).start());
        let (first, second) = tokio::try_join!(first, second).unwrap();
        let source = async {
            reader.finish().await;
            assert!(reader.bytes == expected(), "the source's output");
            assert_eq!(reader.exit, Some(Exit::Code(9)));
        };
        tokio::join!(source, goes_on(&first, from), goes_on(&second, from));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_output_in_flight_survives_a_chain_of_five_restores() {
    watched(async {
        let mut sandbox = restored().await;
        let mut reader = printer(&sandbox).await;
        let mut position = 0;
        let folder = folder();
        for generation in 0..5 {
            reader.read(25_000).await;
            assert!(reader.bytes == expected()[position..][..reader.bytes.len()], "generation {generation}");
            position += reader.bytes.len();
            let place = folder.path().join(generation.to_string());
            let (bundle, _) = sandbox.snapshot(&place).await.unwrap();
            drop(reader);
            sandbox.kill().await.unwrap();
            sandbox = Sandbox::restore(bundle).start().await.unwrap();
            std::fs::remove_dir_all(place).unwrap();
            reader = Reader::adopt(&sandbox, "printer");
        }
        reader.finish().await;
        assert!(reader.bytes == expected()[position..]);
        assert_eq!(reader.exit, Some(Exit::Code(9)));
    })
    .await;
}

fn bytes(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + seed) ^ (at >> 8)) as u8).collect()
}

/// Bytes unread in both rings of a stream, and messages in both rings of a message channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_unread_bytes_of_every_ring_arrive_once_per_timeline() {
    watched(async {
        let sandbox = restored().await;
        let link = sandbox.link();
        let mut stream = link.connect_with(port::ECHO).label("stream").stream().await.unwrap();
        let mut messages = link.connect_with(port::ECHO).label("messages").messages().await.unwrap();
        // What comes back stays unread here; what is sent after the guest is quiet, there.
        stream.write_all(&bytes(1, 10_000)).await.unwrap();
        messages.send(&bytes(2, 1000)).await.unwrap();
        messages.send(&bytes(3, 2000)).await.unwrap();
        let waiting = || (stream.info().unwrap().unread, messages.info().unwrap().unread);
        until(async || waiting().0 == 10_000 && waiting().1 >= 3000).await;
        link.quiesce(Sandbox::DEFAULT_QUIET).await.unwrap();
        stream.write_all(&bytes(1, 30_000)[10_000..]).await.unwrap();
        messages.send(&bytes(4, 3000)).await.unwrap();
        let folder = folder();
        let (bundle, report) = sandbox.snapshot(&folder.path().join("bundle")).await.unwrap();
        let carried = report.carried;
        assert!(carried.to_host >= 13_000 && carried.to_guest >= 23_000, "{carried:?}");
        assert_eq!((carried.channels, bundle.manifest().carried), (2, carried));
        for index in 1..=2 {
            let child = Sandbox::restore(bundle.clone()).forked(index).start().await.unwrap();
            told(child.link(), &bundle, index).await;
            let adopt = |label: &str| {
                let channels = child.link().channels();
                let id = channels.iter().find(|channel| channel.label == label).unwrap().id;
                child.link().adopt(id).unwrap()
            };
            all_comes_once(adopt("stream").stream().unwrap(), adopt("messages").messages().unwrap()).await;
        }
        all_comes_once(stream, messages).await;
    })
    .await;
}

/// The owner of a child's link is told so.
async fn told(link: &Link, bundle: &Bundle, index: u64) {
    let from = u128::from_str_radix(&bundle.manifest().timeline, 16).unwrap();
    assert_eq!(link.event().await, Event::Forked { from, to: link.timeline(), index });
    assert_ne!(from, link.timeline());
}

async fn all_comes_once(mut stream: throughline::Stream, mut messages: throughline::Messages) {
    stream.shutdown().await.unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).await.unwrap();
    assert!(echoed == bytes(1, 30_000), "{} bytes came", echoed.len());
    messages.shutdown().await.unwrap();
    for (seed, length) in [(2, 1000), (3, 2000), (4, 3000)] {
        assert!(messages.recv().await.unwrap() == Some(bytes(seed, length)), "message {seed}");
    }
    assert_eq!(messages.recv().await.unwrap(), None);
}
