//! Children of one moment: each goes on with what was under way, as a guest of its own.

use std::collections::HashSet;

use throughline::{Event, OnFork};
use throughline_sandbox::{Sandbox, SandboxError};
use throughline_wire::exec::Exit;
use throughline_wire::port;
use tokio::io::AsyncWriteExt;

use crate::support::{Reader, image, restored, text, until, watched};

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

/// Whether the region has these bytes anywhere.
pub fn holds(sandbox: &Sandbox, bytes: &[u8]) -> bool {
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

/// Waits for `/tmp/go`; then says who the guest is, in itself and by new processes. In the background something watches
/// the epoch.
const ASKER: &str = "read old </run/throughline/epoch
    (while read now </run/throughline/epoch && [ $now = $old ]; do sleep 0.01; done; echo $now >/tmp/changed) &
    echo asking; while [ ! -e /tmp/go ]; do sleep 0.01; done
    read name </proc/sys/kernel/hostname; read epoch </run/throughline/epoch
    echo $name $(hostname) $(cat /etc/hostname) $epoch
    while [ ! -s /tmp/changed ]; do sleep 0.01; done; echo $(cat /tmp/changed)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_children_have_the_host_names_that_they_were_given_before_anything_runs() {
    watched(async {
        let sandbox = restored().await;
        let asker = sandbox.command("sh").args(["-c", ASKER]).label("asker").spawn().await.unwrap();
        let mut asker = Reader::new(asker);
        asker.read(1).await;
        let zygote = sandbox.zygote().await.unwrap();
        let children = zygote.spawn_many_with(2, |child| child.hostname("web-{index}")).await;
        for (index, child) in (1..).zip(children) {
            let child = child.unwrap();
            let mut asker = Reader::adopt(&child, "asker");
            text(&child, "touch /tmp/go").await;
            asker.finish().await;
            let (name, epoch) = (format!("web-{index}"), child.link().timeline());
            let expected = format!("{name} {name} {name} {epoch:032x}\n{epoch:032x}\n");
            assert_eq!(String::from_utf8(asker.bytes).unwrap(), expected);
        }
        let bad = zygote.spawn().hostname("web_{index}").start().await.unwrap_err();
        assert!(bad.to_string().contains("\"web_3\" is no host name"), "{bad}");
        let hostname = Sandbox::builder(image().await).hostname("first.example").create().await.unwrap();
        assert_eq!(text(&hostname, "hostname; cat /etc/hostname").await, "first.example\nfirst.example");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_child_whose_hook_fails_is_told_at_once_with_what_the_hook_said() {
    watched(async {
        let sandbox = restored().await;
        let hook = "cd /etc/throughline/restore.d && printf '#!/bin/sh\n\
            echo $THROUGHLINE_HOSTNAME is number $THROUGHLINE_INDEX; exec [ $THROUGHLINE_INDEX = 1 ]\n' >20 && chmod 755 20";
        text(&sandbox, hook).await;
        let zygote = sandbox.zygote().await.unwrap();
        // Nobody would wait for that.
        let late = std::time::Duration::from_hours(1);
        let children = zygote.spawn_many_with(2, |child| child.deadline(late).hostname("web-{index}")).await;
        let [first, second] = <[_; 2]>::try_from(children).unwrap();
        assert_eq!(text(&first.unwrap(), "hostname").await, "web-1");
        let error = second.unwrap_err();
        assert!(matches!(error, SandboxError::Refused(..)), "{error}");
        for part in ["web-2 is number 2", "20 failed with exit code 1", "was not taken on, the guest stays closed"] {
            assert!(error.to_string().contains(part), "{part:?} is not in {error}");
        }
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

/// Enough to fill rings and pipes many times over.
const OWN: usize = 1 << 20;

/// Children of one moment have the same channels at the same places of regions that were equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_children_that_talk_at_the_same_time_see_their_own_bytes_alone() {
    watched(async {
        let sandbox = restored().await;
        let mut cat = sandbox.command("cat").stdin().label("cat").spawn().await.unwrap();
        cat.input.write_all(b"before").await.unwrap();
        let mut before = Reader::new(cat);
        before.read(6).await;
        let zygote = sandbox.freeze().await.unwrap();
        drop(before);
        let children = zygote.spawn_many(3).await.into_iter().map(Result::unwrap);
        let talks = (1..).zip(children).map(|(own, child): (u8, Sandbox)| {
            tokio::spawn(async move {
                let id = child.link().channels().into_iter().find(|channel| channel.label == "cat").unwrap().id;
                let cat = child.adopt_command(id).unwrap();
                let (mut input, mut events, sent) = (cat.input, cat.events, vec![own; OWN]);
                let talking = async {
                    input.write_all(&sent).await.unwrap();
                    input.end().await.unwrap();
                };
                let ((), output) = tokio::join!(talking, events.collect());
                assert!(output.unwrap().stdout == sent, "child {own} has bytes of its own only");
                let others = (1..=3).filter(|other| *other != own);
                let found = others.filter(|other| holds(&child, &[*other; 64])).count();
                assert_eq!(found, 0, "child {own}'s region has others' bytes");
                child.kill().await.unwrap();
            })
        });
        for talk in talks.collect::<Vec<_>>() {
            talk.await.unwrap();
        }
    })
    .await;
}
