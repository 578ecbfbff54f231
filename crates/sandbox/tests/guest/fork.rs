//! Children of one moment: each goes on with what was under way, as a guest of its own.

use std::collections::HashSet;

use throughline::{Event, OnFork};
use throughline_sandbox::{Sandbox, SandboxError};
use throughline_wire::exec::Exit;
use throughline_wire::port;
use tokio::io::AsyncWriteExt;

use crate::support::{Reader, restored, text, until, watched};

const SECRET: &[u8] = b"what no child may inherit";
const LINES: usize = 6000;

pub fn expected() -> Vec<u8> {
    (1..=LINES).flat_map(|i| format!("line {i} of many\n").into_bytes()).collect()
}

/// Prints more than rings and pipes hold, so that it is under way for as long as nobody reads it.
pub async fn printer(sandbox: &Sandbox) -> Reader {
    let script = format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i of many\"; done; exit 9");
    Reader::new(sandbox.command("sh").args(["-c", &script]).label("printer").spawn().await.unwrap())
}

/// Its output goes on at the byte where its parent's was frozen.
pub async fn goes_on(sandbox: &Sandbox, from: usize) {
    let mut reader = Reader::adopt(sandbox, "printer");
    reader.finish().await;
    assert!(reader.bytes == expected()[from..], "from byte {from} on");
    assert_eq!(reader.exit, Some(Exit::Code(9)));
}

fn holds(sandbox: &Sandbox, bytes: &[u8]) -> bool {
    let region = sandbox.link().region().as_fd().unwrap().try_clone_to_owned().unwrap();
    let region = std::fs::read(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&region))).unwrap();
    region.windows(bytes.len()).any(|window| window == bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_children_go_on_where_their_parent_was_and_are_guests_of_their_own() {
    watched(async {
        let sandbox = restored().await;
        let mut reader = printer(&sandbox).await;
        reader.read(10_000).await;
        let connect = sandbox.link().connect_with(port::ECHO).label("private").on_fork(OnFork::Reset);
        let mut private = connect.stream().await.unwrap();
        private.write_all(SECRET).await.unwrap();
        until(async || private.info().unwrap().unread == SECRET.len() as u64).await;
        let zygote = sandbox.zygote().await.unwrap();
        let (from, place) = (reader.bytes.len(), zygote.bundle().folder().to_path_buf());
        let children: Vec<_> = zygote.spawn_many(3).await.into_iter().map(Result::unwrap).collect();
        let zero = Sandbox::restore(zygote.bundle().clone()).forked(0).start().await;
        assert!(matches!(zero, Err(SandboxError::ChildZero)), "{zero:?}");
        drop(zygote);
        assert!(!place.exists(), "the zygote is gone, and its children do not need it");
        let mut seen = HashSet::new();
        for (index, child) in (1..).zip(&children) {
            let (from, to) = (sandbox.link().timeline(), child.link().timeline());
            assert_eq!(child.link().event().await, Event::Forked { from, to, index });
            let labels: Vec<_> = child.link().channels().into_iter().map(|channel| channel.label).collect();
            assert_eq!(labels, ["printer"]);
            assert!(!holds(child, SECRET));
            assert!(seen.insert(text(child, "head -c 16 /dev/urandom | hexdump -v; cat /etc/machine-id").await));
        }
        assert!(holds(&sandbox, SECRET), "the search would find it");
        for child in &children {
            goes_on(child, from).await;
        }
        // The source noticed nothing.
        reader.finish().await;
        assert!(reader.bytes == expected());
        private.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut private, &mut echoed).await.unwrap();
        assert_eq!(echoed, SECRET);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_of_a_fork_and_of_a_frozen_sandbox() {
    watched(async {
        let mut sandbox = restored().await;
        for generation in 0..3 {
            text(&sandbox, &format!("echo {generation} >> /tmp/generations")).await;
            let zygote = sandbox.freeze().await.unwrap();
            sandbox = zygote.spawn().start().await.unwrap();
        }
        assert_eq!(text(&sandbox, "cat /tmp/generations").await, "0\n1\n2");
    })
    .await;
}
