//! Who a restored guest is: two of one bundle are told apart before anything of the user's runs.

use std::path::Path;
use std::time::Duration;

use serde_bytes::ByteBuf;
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::{Child, Sandbox};
use throughline_wire::exec::{Request, Start};
use throughline_wire::info::{self, Info};
use throughline_wire::{decode, encode, port};

use crate::support::{Reader, aged, folder, image, name, now, places, restored, template, text, watched};

/// What the command prints that was asked for while the guest was quiet.
const WHO: &str = "echo epoch $(cat /run/throughline/epoch 2>&1); echo machine $(cat /etc/machine-id 2>&1); \
    echo name $(hostname); echo boot =$(cat /proc/sys/kernel/random/boot_id); echo clock $(date +%s); \
    echo random $(head -c 16 /dev/urandom | hexdump -v)";
/// How far a guest's clock may be off because clocks tick.
const TICK: u64 = 50_000_000;

/// What a restored guest says of itself, and what its host knows.
struct Seen {
    info: Info,
    /// Of a process that was started after the restore.
    urandom: Vec<u8>,
    /// What the request that was in flight at the snapshot printed.
    in_flight: String,
    /// What the hook was told: epoch, parent, index.
    lineage: String,
    epoch: u128,
    index: u64,
    /// The host's clock before and after the guest's was read.
    asked: [u64; 2],
    /// How long the restore took: the clock was set some time in it.
    took: Duration,
    /// The host's clock before the restore.
    began: u64,
}

impl Seen {
    /// What the request in flight said of this.
    fn told(&self, what: &str) -> &str {
        let line = self.in_flight.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {what} in {}", self.in_flight))
    }
}

async fn look(sandbox: &Sandbox, index: u64, began: u64) -> Seen {
    let took = sandbox.timings().ready;
    let mut messages = sandbox.link().connect_messages(port::INFO).await.unwrap();
    let before = now();
    messages.send(&encode(&info::Request).unwrap()).await.unwrap();
    let info: Info = decode(&messages.recv().await.unwrap().unwrap()).unwrap();
    let asked = [before, now()];
    let mut in_flight = Reader::adopt(sandbox, "in flight");
    in_flight.finish().await;
    Seen {
        info,
        urandom: sandbox.command("head").args(["-c", "32", "/dev/urandom"]).output().await.unwrap().stdout,
        in_flight: String::from_utf8(in_flight.bytes).unwrap(),
        lineage: text(sandbox, "cat /run/lineage 2>/dev/null; :").await,
        epoch: sandbox.link().timeline(),
        index,
        asked,
        took,
        began,
    }
}

/// What is wrong with one guest's identity.
fn faults_of(seen: &Seen, parent: u128) -> Vec<&'static str> {
    let hexadecimal = |number| format!("{number:032x}");
    let latest = seen.asked[1] + TICK;
    let earliest = seen.asked[0] - u64::try_from(seen.took.as_nanos()).unwrap() - TICK;
    let date = seen.told("clock").parse::<u64>().unwrap() * 1_000_000_000;
    let checks = [
        ("epoch", seen.info.epoch == seen.epoch && seen.epoch != parent),
        ("clock", (earliest..latest).contains(&seen.info.realtime_ns)),
        ("machine-id", seen.info.machine_id.len() == 32),
        ("host name", seen.info.machine_id.get(..12).is_some_and(|id| seen.info.hostname.ends_with(id))),
        ("lineage", seen.lineage == format!("{} {} {}", hexadecimal(seen.epoch), hexadecimal(parent), seen.index)),
        ("epoch in flight", seen.told("epoch") == hexadecimal(seen.epoch)),
        ("machine-id in flight", seen.told("machine") == seen.info.machine_id),
        ("host name in flight", seen.told("name") == seen.info.hostname),
        ("clock in flight", date + 1_000_000_000 > seen.began && date < latest),
    ];
    checks.into_iter().filter(|(_, good)| !good).map(|(what, _)| what).collect()
}

/// Whether two guests of one bundle are two guests.
fn check(twins: &[Seen; 2], parent: u128) -> Result<(), Vec<&'static str>> {
    let [one, two] = twins;
    let mut faults = faults_of(one, parent);
    faults.extend(faults_of(two, parent));
    let same = [
        ("epoch", one.info.epoch == two.info.epoch),
        ("random", one.info.random == two.info.random),
        ("random of a new process", one.urandom == two.urandom || one.urandom.len() != 32),
        ("random in flight", one.told("random") == two.told("random")),
        ("machine-id", one.info.machine_id == two.info.machine_id),
        ("host name", one.info.hostname == two.info.hostname),
        ("boot-id", one.told("boot") == two.told("boot")),
    ];
    faults.extend(same.into_iter().filter(|(_, same)| *same).map(|(what, _)| what));
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

/// A snapshot with a request to run a command in its ring, which the guest has not seen.
async fn with_request(sandbox: &Sandbox, place: &Path) -> Bundle {
    let link = sandbox.link();
    link.quiesce(Sandbox::DEFAULT_QUIET).await.unwrap();
    let connect = link.connect_with(port::EXEC).unanswered().label("in flight");
    let mut messages = connect.messages().await.unwrap();
    let argv = ["sh", "-c", WHO].map(|word| ByteBuf::from(word.as_bytes())).into();
    messages.send(&encode(&Request::Start(Start { argv, ..Start::default() })).unwrap()).await.unwrap();
    let (bundle, report) = sandbox.snapshot(place).await.unwrap();
    assert!(report.carried.to_guest > 0, "{report:?}");
    // The source's own is served too.
    let mut child = Child::adopt(link.adopt(messages.release()).unwrap().messages().unwrap(), sandbox.guest());
    assert!(!child.events.collect().await.unwrap().stdout.is_empty());
    bundle
}

async fn twins(sandbox: Sandbox) -> Result<(), Vec<&'static str>> {
    let folder = folder();
    let bundle = with_request(&sandbox, &folder.path().join("bundle")).await;
    let parent = sandbox.link().timeline();
    assert_eq!(bundle.manifest().timeline, format!("{parent:032x}"));
    sandbox.kill().await.unwrap();
    aged(&bundle, Duration::from_secs(5)).await;
    let mut seen = Vec::new();
    for index in [1, 7] {
        let began = now();
        let sandbox = Sandbox::restore(bundle.clone()).forked(index).start().await.unwrap();
        seen.push(look(&sandbox, index, began).await);
        sandbox.kill().await.unwrap();
    }
    let seen = <[Seen; 2]>::try_from(seen).unwrap_or_else(|_| unreachable!("two"));
    let result = check(&seen, parent);
    println!("{result:?}: {} / {}", seen[0].in_flight, seen[1].in_flight);
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_two_restores_of_one_bundle_are_two_guests() {
    watched(async { assert_eq!(twins(restored().await).await, Ok(())) }).await;
}

/// The same check, on an agent that acknowledges without doing anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_agent_that_does_not_repair_is_found_out() {
    watched(async {
        let builder = Sandbox::builder(image().await).kernel_argument("throughline.test=skip-repair");
        let faults = twins(builder.create().await.unwrap()).await.unwrap_err();
        // Random numbers too, unless the kernel happens to reseed itself: it does so every other second at first.
        for fault in ["clock", "clock in flight", "machine-id", "host name", "boot-id", "lineage", "epoch in flight"] {
            assert!(faults.contains(&fault), "{fault} is not among {faults:?}");
        }
    })
    .await;
}

/// The secret is used once: neither the region nor the host's copy keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_entropy_is_erased_once_it_is_mixed_in() {
    watched(async {
        let name = name("entropy");
        let sandbox = Sandbox::restore(template().await).name(&name).start().await.unwrap();
        let current = places(&name)[0].join("current");
        let identity = |file: &str| {
            let file = std::fs::read(current.join(file)).unwrap();
            let words: Vec<u64> =
                file[4096..][..512 * 8].chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
            (words[16], words[17..33].to_vec())
        };
        let epoch = sandbox.link().timeline();
        for file in ["region", "sidecar"] {
            let (seq, block) = identity(file);
            assert_eq!((seq, block[0], block[1]), (sandbox.link().identity_seq(), epoch as u64, (epoch >> 64) as u64));
            assert!(block[8..].iter().all(|word| *word == 0), "{file}: {block:x?}");
        }
    })
    .await;
}
