//! Snapshots of a guest that does not become quiet, for whoever asks for them.

use std::time::Duration;

use throughline_sandbox::Sandbox;
use throughline_sandbox::bundle::Bundle;
use throughline_wire::exec::Exit;
use throughline_wire::info::{self, Info};
use throughline_wire::{decode, encode, port};
use tokio::sync::oneshot;

use crate::numbered::Numbered;
use crate::support::{HOOK, Reader, folder, image, text, watched};

/// Lines that the command prints: more than it can before all snapshots are taken.
const LINES: usize = 20_000;
/// Records that the host sends after the last snapshot.
const MORE: u64 = 300;

fn expected() -> Vec<u8> {
    (1..=LINES).flat_map(|i| format!("line {i} of very many lines\n").into_bytes()).collect()
}

async fn who(sandbox: &Sandbox) -> Info {
    let mut messages = sandbox.link().connect_messages(port::INFO).await.unwrap();
    messages.send(&encode(&info::Request).unwrap()).await.unwrap();
    decode(&messages.recv().await.unwrap().unwrap()).unwrap()
}

/// A sandbox whose agent never follows a request to be quiet.
async fn restless() -> Sandbox {
    let builder = Sandbox::builder(image().await).kernel_argument("throughline.test=no-quiesce");
    let mut sandbox = builder.create().await.unwrap();
    sandbox.quiet_deadline(Duration::from_millis(100));
    text(&sandbox, HOOK).await;
    sandbox
}

/// Reads the command's output to its end: from `from` on, all of it, and nothing else.
async fn all_printed(mut reader: Reader, from: usize) {
    reader.finish().await;
    assert_eq!(reader.at, Some(expected().len() as u64));
    assert!(reader.bytes == expected()[from..], "from byte {from} on");
    assert_eq!(reader.exit, Some(Exit::Code(9)));
}

/// A snapshot in the middle of traffic, which goes on in the source to its end.
async fn in_the_middle(sandbox: &Sandbox, place: &std::path::Path, mut reader: Reader, numbered: Numbered) -> Bundle {
    let (taken, enough) = oneshot::channel();
    let traffic = numbered.run(sandbox.link(), enough, MORE);
    let snapshot = async {
        let (bundle, report) = sandbox.snapshot_with(place).allow_unquiesced().take().await.unwrap();
        assert!(!report.quiesced && !bundle.manifest().quiesced, "{report:?}");
        let carried = report.carried;
        assert!(carried.to_host + carried.to_guest > 0, "{report:?}");
        taken.send(()).unwrap();
        bundle
    };
    let printing = async {
        while reader.step().await {}
        reader
    };
    let (bundle, reader, ()) = tokio::join!(snapshot, printing, traffic);
    assert!(reader.bytes == expected() && reader.exit == Some(Exit::Code(9)), "the source's output");
    bundle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_bundle_of_a_guest_that_is_not_quiet_says_so_and_loses_nothing() {
    watched(async {
        let sandbox = restless().await;
        let (folder, before) = (folder(), who(&sandbox).await);
        let script =
            format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"line $i of very many lines\"; done; exit 9");
        let command = sandbox.command("sh").arg("-c").arg(script).label("printer");
        let mut reader = Reader::new(command.spawn().await.unwrap());
        reader.read(20_000).await;
        let numbered = Numbered::open(sandbox.link()).await;
        let bundle = in_the_middle(&sandbox, &folder.path().join("one"), reader, numbered).await;
        sandbox.kill().await.unwrap();
        let mut told = vec![before.machine_id];
        for index in 1..=2 {
            let mut sandbox = Sandbox::restore(bundle.clone()).forked(index).start().await.unwrap();
            // The identity is repaired before anything else is said.
            let now = who(&sandbox).await;
            assert_eq!(now.epoch, sandbox.link().timeline());
            assert!(!told.contains(&now.machine_id), "{now:?}");
            let lineage = text(&sandbox, "cat /run/lineage").await;
            assert_eq!(lineage, format!("{:032x} {} {index}", now.epoch, bundle.manifest().timeline));
            told.push(now.machine_id);
            // Once more in the middle, by way of a machine that stops, and goes on elsewhere.
            sandbox.quiet_deadline(Duration::ZERO);
            let place = folder.path().join(format!("two-{index}"));
            let (bundle, report) = sandbox.snapshot_with(&place).allow_unquiesced().take_and_stop().await.unwrap();
            assert!(!report.quiesced && !bundle.manifest().quiesced, "{report:?}");
            drop(sandbox);
            let sandbox = Sandbox::restore(bundle).start().await.unwrap();
            let reader = Reader::adopt(&sandbox, "printer");
            let numbered = Numbered::adopt(sandbox.link());
            let printing = async {
                let mut reader = reader;
                reader.read(1).await;
                let from = reader.at.unwrap() as usize - reader.bytes.len();
                all_printed(reader, from).await;
            };
            tokio::join!(printing, numbered.run(sandbox.link(), std::future::ready(()), MORE));
        }
    })
    .await;
}
