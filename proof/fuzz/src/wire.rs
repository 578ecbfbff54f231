//! Every message of the wire protocol, and the sequence service's own formats, from arbitrary bytes: nothing panics,
//! and what is a message is the same after another trip.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use throughline_wire::sequence::{Checker, Direction, Framing, PARAMS_LEN, Params, StreamChecker, locate};
use throughline_wire::{Message, decode, echo, encode, exec, info, power, report, ticker};

/// Farthest position that is looked for: each record before it takes time.
const FARTHEST: u64 = 1 << 16;

/// Decodes the bytes, the first of which says as what.
///
/// # Panics
/// When a message does not come back as it was.
pub fn run(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    match what % 13 {
        0 => trip::<ExecRequest>(bytes),
        1 => trip::<ExecEvent>(bytes),
        2 => trip::<InfoRequest>(bytes),
        3 => trip::<Info>(bytes),
        4 => trip::<PowerRequest>(bytes),
        5 => trip::<PowerReply>(bytes),
        6 => trip::<ReportRequest>(bytes),
        7 => trip::<ReportReply>(bytes),
        8 => trip::<TickerRequest>(bytes),
        9 => trip::<Tick>(bytes),
        10 => trip::<EchoPoll>(bytes),
        11 => params(bytes),
        _ => records(bytes),
    }
}

/// A type of message; it borrows from bytes of any lifetime.
trait Kind {
    type Of<'a>: Message + Serialize + Deserialize<'a> + PartialEq + Debug;
}

macro_rules! kinds {
    ($($kind:ident = $message:ty;)*) => {$(
        struct $kind;
        impl Kind for $kind {
            type Of<'a> = $message;
        }
    )*};
}

kinds! {
    ExecRequest = exec::Request<'a>;
    ExecEvent = exec::Event<'a>;
    InfoRequest = info::Request;
    Info = info::Info;
    PowerRequest = power::Request;
    PowerReply = power::Reply;
    ReportRequest = report::Request;
    ReportReply = report::Reply;
    TickerRequest = ticker::Request;
    Tick = ticker::Tick;
    EchoPoll = echo::Poll;
}

fn trip<K: Kind>(bytes: &[u8]) {
    let Ok(message) = decode::<K::Of<'_>>(bytes) else { return };
    let again = encode(&message).expect("what was decoded can be encoded");
    // Other bytes may say the same (numbers with leading zeros), so the message is what is compared.
    assert!(again.len() <= bytes.len(), "{message:?} grew");
    let same = decode::<K::Of<'_>>(&again).expect("what was encoded can be decoded");
    assert_eq!(encode(&same).expect("as before"), again);
    assert_eq!(format!("{same:?}"), format!("{message:?}"));
}

fn params(bytes: &[u8]) {
    let Ok(params) = Params::from_bytes(bytes) else { return };
    assert_eq!(params.to_bytes(), bytes);
    let offset = params.seed % FARTHEST;
    for framing in [Framing::Stream, Framing::Messages { header: 8, align: 8 }] {
        for direction in [Direction::ToGuest, Direction::ToHost] {
            let _ = locate(&params, direction, framing, offset);
        }
    }
}

/// A stream of records, in two pieces; and the same bytes as one message.
fn records(bytes: &[u8]) {
    let Some((head, bytes)) = bytes.split_at_checked(PARAMS_LEN) else { return };
    let Ok(params) = Params::from_bytes(head) else { return };
    let mut stream = StreamChecker::new(params, Direction::ToHost);
    let (first, second) = bytes.split_at(bytes.len() / 3);
    let records = stream.feed(first) + stream.feed(second);
    assert!(stream.pending() <= bytes.len());
    assert!(records <= bytes.len());
    let seen = stream.seen();
    assert!(seen.records + seen.doubled + u64::from(seen.total.is_some()) >= records as u64);
    Checker::new(params, Direction::ToGuest).record(bytes);
}
