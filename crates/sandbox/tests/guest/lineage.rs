//! Long chains, deep trees, many siblings.

use std::collections::{HashSet, VecDeque};

use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::{Child, ChildEvent, Sandbox, Zygote};

use crate::numbered::Numbered;
use crate::support::{Reader, folder, restored, watched};

const CHAIN: usize = 12;
const DEEP: usize = 3;
const WIDE: usize = 2;
const CHILDREN: usize = 100;
const AT_ONCE: usize = 4;
/// Prints for as long as somebody reads, and knows how far it has come.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_chain_of_snapshots_and_restores_loses_nothing_of_what_flows() {
    watched(async {
        let place = folder();
        let mut sandbox = restored().await;
        let mut counter =
            Reader::new(sandbox.command("sh").args(["-c", COUNTER]).label("counter").spawn().await.unwrap());
        let mut text = Vec::new();
        let mut numbered = Some(Numbered::open(sandbox.link()).await);
        for generation in 0..CHAIN {
            counter.read(5_000).await;
            text.append(&mut counter.bytes);
            // Its handles are held until it is a bundle: nothing is closed.
            let bundle = place.path().join(generation.to_string());
            let (bundle, report) = sandbox.snapshot_and_stop(&bundle).await.unwrap();
            assert!(report.carried.to_host > 0, "something was on its way");
            numbered = None;
            sandbox = Sandbox::restore(Bundle::open(bundle.folder()).unwrap()).start().await.unwrap();
            std::fs::remove_dir_all(bundle.folder()).unwrap();
            counter = Reader { at: counter.at, ..Reader::adopt(&sandbox, "counter") };
        }
        assert!(numbered.is_none());
        counter.read(5_000).await;
        text.append(&mut counter.bytes);
        in_order(&text);
        Numbered::adopt(sandbox.link()).run(sandbox.link(), std::future::ready(()), 1000).await;
    })
    .await;
}

/// The numbers of a counter, of which the last may be cut.
fn in_order(text: &[u8]) {
    let text = std::str::from_utf8(text).unwrap();
    let whole = &text[..=text.rfind('\n').unwrap()];
    for (expected, line) in whole.lines().enumerate() {
        assert_eq!(line, expected.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_tree_of_forks_loses_nothing_in_any_leaf() {
    watched(async {
        let sandbox = restored().await;
        let mut counter =
            Reader::new(sandbox.command("sh").args(["-c", COUNTER]).label("counter").spawn().await.unwrap());
        counter.read(5_000).await;
        let text = std::mem::take(&mut counter.bytes);
        let mut epochs = HashSet::new();
        let zygote = sandbox.freeze().await.unwrap();
        let at = counter.at;
        drop(counter);
        Box::pin(grow(zygote, &text, at, DEEP, &mut epochs)).await;
        assert_eq!(epochs.len(), (1..=DEEP as u32).map(|level| WIDE.pow(level)).sum::<usize>());
    })
    .await;
}

/// Each child of the zygote goes on with the counter, and is frozen itself; in the leaves the whole text is right.
async fn grow(zygote: Zygote, text: &[u8], at: Option<u64>, levels: usize, epochs: &mut HashSet<u128>) {
    for child in zygote.spawn_many(WIDE).await {
        let child = child.unwrap();
        epochs.insert(child.link().timeline());
        let mut counter = Reader { at, ..Reader::adopt(&child, "counter") };
        counter.read(5_000).await;
        let (text, at) = ([text, &counter.bytes].concat(), counter.at);
        if levels == 1 {
            in_order(&text);
            child.kill().await.unwrap();
        } else {
            let zygote = child.freeze().await.unwrap();
            Box::pin(grow(zygote, &text, at, levels - 1, epochs)).await;
        }
    }
}

/// A program that was running before it says again and again who it is.
const WHO: &str = "while :; do echo $(cd /proc/sys/kernel/random; cat /run/throughline/epoch /etc/machine-id boot_id uuid) \
    $(head -c 16 /dev/urandom | hexdump -v -e '1/1 \"%02x\"'); done";

/// What one line of [`WHO`] says: epoch, machine-id, boot-id, a random id, random bytes.
async fn line(events: &mut Child, rest: &mut String) -> [String; 5] {
    loop {
        if let Some((line, after)) = rest.split_once('\n') {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            let line = words.try_into().unwrap();
            *rest = String::from(after);
            return line;
        }
        match events.events.next().await.unwrap().unwrap() {
            ChildEvent::Stdout { data, .. } => rest.push_str(std::str::from_utf8(&data).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_hundred_children_differ_from_the_first_byte_that_a_program_can_read() {
    watched(async {
        let sandbox = restored().await;
        let mut before = sandbox.command("sh").args(["-c", WHO]).label("who").spawn().await.unwrap();
        let mut rest = String::new();
        let parent = line(&mut before, &mut rest).await;
        let zygote = sandbox.freeze().await.unwrap();
        drop(before);
        // What their source has is none of theirs.
        let mut seen = parent.clone().map(|own| HashSet::from([own]));
        // Some at a time: each runs as fast as it can.
        let spawn = || tokio::spawn(zygote.spawn().start());
        // What each prints first was printed before the fork, and is the same in all; nothing of it comes later.
        let mut printed_before: Option<Vec<_>> = None;
        let mut starting: VecDeque<_> = (0..AT_ONCE).map(|_| spawn()).collect();
        for number in AT_ONCE..CHILDREN + AT_ONCE {
            let child = starting.pop_front().unwrap().await.unwrap().unwrap();
            if number < CHILDREN {
                starting.push_back(spawn());
            }
            let id = child.link().channels().into_iter().find(|channel| channel.label == "who").unwrap().id;
            let (mut who, mut rest) = (child.adopt_command(id).unwrap(), rest.clone());
            let mut stale = Vec::new();
            let own = loop {
                let line = line(&mut who, &mut rest).await;
                if line[0] != parent[0] {
                    break line;
                }
                stale.push(line);
                // It fits into the pipes.
                assert!(stale.len() < 2000, "it goes on as its parent");
            };
            // A line that was half made at the fork has one half from either side of it.
            let half_made = stale.pop();
            let before = printed_before.get_or_insert_with(|| stale.clone());
            assert_eq!(*before, stale, "it ran on as its parent; at last {half_made:?}");
            assert_eq!(own[0], format!("{:032x}", child.link().timeline()));
            let bytes = own[2].bytes().enumerate();
            let mut digits = bytes
                .map(|(at, byte)| if [8, 13, 18, 23].contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() });
            assert!(own[2].len() == 36 && digits.all(|good| good), "{own:?}");
            for (seen, own) in seen.iter_mut().zip(own) {
                assert!(seen.insert(own.clone()), "{own} twice");
            }
            child.kill().await.unwrap();
        }
        assert!(seen.iter().all(|seen| seen.len() == CHILDREN + 1));
    })
    .await;
}
