//! How much memory a message takes that somebody hostile made: what its bytes claim is not what is allocated.

use serde::Deserialize;
use throughline_wire::{Message, decode, exec, info, power, report, ticker};

/// Made ready beforehand for a list that claims to be long, by the deserializer: 1 MiB for each of two lists.
const AHEAD: u64 = 2 << 20;
/// Bytes of memory for each byte of a message: an empty entry of a list takes a byte there, and a vector here.
const EACH: u64 = 96;

/// The most that decoding these bytes holds at once.
fn measured<'a, M: Message + Deserialize<'a>>(bytes: &'a [u8]) -> u64 {
    let mut result = None;
    let info = allocation_counter::measure(|| result = Some(decode::<M>(bytes).is_ok()));
    assert!(result.is_some());
    info.bytes_max
}

fn all(bytes: &[u8]) {
    let most = [
        measured::<exec::Request>(bytes),
        measured::<exec::Event>(bytes),
        measured::<info::Info>(bytes),
        measured::<report::Request>(bytes),
        measured::<report::Reply>(bytes),
        measured::<power::Request>(bytes),
        measured::<power::Reply>(bytes),
        measured::<ticker::Tick>(bytes),
    ];
    let bound = AHEAD + EACH * bytes.len() as u64;
    assert!(most.iter().all(|most| *most <= bound), "{most:?} for {} bytes", bytes.len());
}

#[test]
fn a_message_takes_memory_by_its_bytes_and_not_by_what_it_claims() {
    // A list, a list in a list, a text, each of which claims 2^63 entries, behind every variant and a few fields.
    let claim = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    for variant in 0..10 {
        for before in 0..30 {
            let mut bytes = vec![variant];
            bytes.extend(vec![1; before]);
            bytes.extend(claim);
            all(&bytes);
            bytes.extend(vec![0; 1000]);
            all(&bytes);
        }
    }
    // Lists that are as long as they claim: entries that take one byte each, in the longest message.
    let mut long = vec![0, 0xf0, 0xff, 0x3f];
    long.resize(exec::MAX_MESSAGE, 0);
    all(&long);
    let mut longer = long;
    longer.push(0);
    assert_eq!(measured::<exec::Request>(&longer), 0, "it is too long, and not looked at");
}
