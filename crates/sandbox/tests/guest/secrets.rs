//! What was sent and consumed is in no snapshot of the connection.

#[path = "secret_files.rs"]
mod secret_files;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use throughline_sandbox::bundle::{Bundle, RAM, REGION, SIDECAR};
use throughline_wire::port;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{folder, restored, until, watched};

const CANARIES: u64 = 1000;
/// Bytes that nobody else has by accident. Shorter canaries cannot be told from other bytes.
const WINDOW: usize = 8;
const PAGE: usize = 4096;

/// Numbers that look random.
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// From one byte to `longest`, all magnitudes as often.
fn canary(number: u64, longest: usize) -> Vec<u8> {
    let magnitude = longest >> (number % 17).min(16);
    let len = (magnitude - mix(number) as usize % (magnitude / 2 + 1)).max(1);
    (0..len as u64).map(|at| mix(number << 32 | at) as u8 | 1).collect()
}

/// The pieces of the canaries that are searched for; whatever is left of one, of 15 bytes and more, has a whole one.
pub fn pieces(canaries: &[Vec<u8>]) -> HashSet<[u8; WINDOW]> {
    canaries.iter().flat_map(|canary| canary.as_chunks::<WINDOW>().0).copied().collect()
}

/// How many of these pieces a file of a bundle has.
pub fn found(bundle: &Bundle, name: &str, pieces: &HashSet<[u8; WINDOW]>) -> usize {
    let file: File = bundle.file(name).unwrap();
    let length = file.metadata().unwrap().len();
    // A piece may lie across the end of a page.
    let mut page = [0; PAGE + WINDOW - 1];
    let mut seen = HashSet::new();
    for at in (0..length).step_by(PAGE) {
        let count = page.len().min((length - at) as usize);
        file.read_exact_at(&mut page[..count], at).unwrap();
        if page[..count].iter().any(|byte| *byte != 0) {
            seen.extend(page[..count].array_windows().filter(|window| pieces.contains(*window)).copied());
        }
    }
    seen.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_bytes_that_were_consumed_are_in_no_snapshot_of_the_connection() {
    watched(async {
        let sandbox = restored().await;
        let link = sandbox.link();
        let mut messages = link.connect_with(port::ECHO).messages().await.unwrap();
        let mut stream = link.connect_with(port::ECHO).stream().await.unwrap();
        let ring = usize::try_from(stream.info().unwrap().ring_bytes).unwrap();
        let canaries: Vec<Vec<u8>> = (0..CANARIES).map(|number| canary(number, ring - 8)).collect();
        for (number, canary) in canaries.iter().enumerate() {
            messages.send(canary).await.unwrap();
            assert!(messages.recv().await.unwrap().as_ref() == Some(canary), "message {number}");
            stream.write_all(canary).await.unwrap();
            let mut echoed = vec![0; canary.len()];
            stream.read_exact(&mut echoed).await.unwrap();
            assert!(echoed == *canary, "bytes {number}");
        }
        // One more stays unread: the search must find it.
        let unread = canary(17 * CANARIES, 1000);
        messages.send(&unread).await.unwrap();
        until(async || messages.info().unwrap().unread > 0).await;
        let folder = folder();
        let (bundle, _) = sandbox.snapshot(&folder.path().join("bundle")).await.unwrap();
        let (consumed, unread) = (pieces(&canaries), pieces(&[unread]));
        assert!(unread.len() >= 60 && found(&bundle, REGION, &unread) == unread.len());
        for file in [REGION, SIDECAR] {
            assert_eq!(found(&bundle, file, &consumed), 0, "pieces of consumed canaries in {file}");
        }
        // What programs of the guest have read is theirs; the guest's agent reuses its buffers.
        let in_ram = found(&bundle, RAM, &consumed);
        println!("{CANARIES} canaries consumed; of their {} pieces the guest's RAM has {in_ram}", consumed.len());
    })
    .await;
}
