//! The encoding as it is frozen into guests: golden bytes, limits, hostile input.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use throughline_wire::exec::{
    Event, Exit, Failure, FailureKind, MAX_DATA, Request, STDIN_WINDOW, Start, Status, StdinWindow, WindowSize,
};
use throughline_wire::sequence::{Params, Seen, Sent};
use throughline_wire::{
    DecodeError, EncodeError, Message, decode, echo, encode, info, port, power, report, secrets, ticker,
};

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Encodes, compares with the frozen bytes, and decodes back.
fn golden<'a, M>(message: &M, expected: &'a mut Vec<u8>, frozen: &str)
where
    M: Message + Serialize + Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    *expected = encode(message).unwrap();
    assert_eq!(hex(expected), frozen, "{message:?}");
    assert_eq!(&decode::<M>(expected).unwrap(), message);
}

fn start() -> Start {
    Start {
        argv: vec![ByteBuf::from("sh"), ByteBuf::from([0xff])],
        env: vec![(ByteBuf::from("A"), ByteBuf::from("b"))],
        cwd: Some(ByteBuf::from("/")),
        user: Some("u".into()),
        stdin: true,
        tty: None,
    }
}

#[test]
fn exec_requests_have_golden_bytes() {
    golden(&Request::Start(start()), &mut Vec::new(), "000202736801ff010141016201012f0101750100");
    let terminal = Start { tty: Some(WindowSize { rows: 24, cols: 300 }), ..Start::default() };
    golden(&Request::Start(terminal), &mut Vec::new(), "0000000000000118ac02");
    golden(&Request::Stdin(b"hi\0"), &mut Vec::new(), "0103686900");
    golden(&Request::StdinEnd, &mut Vec::new(), "02");
    golden(&Request::Signal { number: 15, group: true }, &mut Vec::new(), "031e01");
    golden(&Request::Query, &mut Vec::new(), "04");
    golden(&Request::Resize(WindowSize { rows: 1, cols: 2 }), &mut Vec::new(), "050102");
}

#[test]
fn secrets_have_golden_bytes_and_stay_out_of_logs() {
    let piece = secrets::Request::Piece { name: "key", data: b"hush" };
    golden(&piece, &mut Vec::new(), "00036b65790468757368");
    assert_eq!(format!("{piece:?}"), "Piece { name: \"key\", len: 4 }");
    golden(&secrets::Request::End, &mut Vec::new(), "01");
    golden(&secrets::Reply::InPlace, &mut Vec::new(), "00");
    golden(&secrets::Reply::Failed("no".into()), &mut Vec::new(), "01026e6f");
    let most = secrets::Request::Piece { name: &"n".repeat(secrets::MAX_NAME), data: &[0; secrets::MAX_DATA] };
    encode(&most).unwrap();
}

#[test]
fn exec_events_have_golden_bytes() {
    golden(&Event::Started { pid: 300 }, &mut Vec::new(), "00ac02");
    golden(&Event::Stdout { at: 1, data: b"o" }, &mut Vec::new(), "0101016f");
    golden(&Event::Stderr { at: 0, data: b"" }, &mut Vec::new(), "020000");
    golden(&Event::Exited(Exit::Code(-1)), &mut Vec::new(), "030001");
    golden(&Event::Exited(Exit::Signal(9)), &mut Vec::new(), "030112");
    for (kind, code) in [
        (FailureKind::NotFound, "00"),
        (FailureKind::NotExecutable, "01"),
        (FailureKind::NoSuchUser, "02"),
        (FailureKind::BadCwd, "03"),
        (FailureKind::Protocol, "04"),
        (FailureKind::Other, "05"),
    ] {
        let failure = Event::Failed(Failure { kind, message: "m".into() });
        golden(&failure, &mut Vec::new(), &format!("04{code}016d"));
    }
    golden(&Event::StdinTaken { total: 128 }, &mut Vec::new(), "058001");
    golden(&Event::StdinClosed, &mut Vec::new(), "06");
    let status =
        Status { pid: 1, stdin_received: 2, stdin_taken: 3, stdin_open: true, exit: Some(Exit::Code(4)), tty: true };
    golden(&Event::Status(status), &mut Vec::new(), "070102030101000801");
}

#[test]
fn the_other_messages_have_golden_bytes() {
    golden(&echo::Poll { millis: 200 }, &mut Vec::new(), "c801");
    golden(&ticker::Request { period_us: 1000 }, &mut Vec::new(), "e807");
    let tick = ticker::Tick { number: 1, periods: 2, monotonic_ns: 3, realtime_ns: 4 };
    golden(&tick, &mut Vec::new(), "01020304");
    golden(&power::Request::Off { grace_ms: 7 }, &mut Vec::new(), "0007");
    golden(&power::Reply::PoweringOff, &mut Vec::new(), "00");
    golden(&info::Request, &mut Vec::new(), "");
    golden(&report::Request::All, &mut Vec::new(), "00");
    golden(&report::Request::Seed(5), &mut Vec::new(), "0105");
    golden(&report::Reply::End { channels: 3 }, &mut Vec::new(), "0103");
    let channel = report::Channel {
        params: Params { guest_records: 1, host_records: 2, ..Params::new(3) },
        stream: true,
        sent: Sent { records: 4, bytes: 5, hash: 6, ended: true },
        seen: Seen { records: 7, total: Some(8), ..Seen::default() },
        finished: false,
        error: "e".into(),
    };
    let frozen = "000301020000188008010405060107000000000000000108000165";
    golden(&report::Reply::Channel(Box::new(channel)), &mut Vec::new(), frozen);
    let info = info::Info {
        protocol: 1,
        version: "0".into(),
        kernel: "6".into(),
        epoch: 1 << 127,
        identity_seq: 2,
        random: [9; 32],
        realtime_ns: 3,
        monotonic_ns: 4,
        machine_id: "m".into(),
        hostname: "h".into(),
        commands: 5,
        counters: vec![("c".into(), 6)],
    };
    let frozen = format!("01013001368080808080808080808080808080808080800202{}0304016d01680501016306", "09".repeat(32));
    golden(&info, &mut Vec::new(), &frozen);
}

#[test]
fn ports_are_distinct_and_reserved() {
    let mut ports = port::ALL.to_vec();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), port::ALL.len());
    assert!(ports.iter().all(|&port| 0 < port && port < port::FIRST_FREE));
}

#[test]
fn limits_are_kept_both_ways() {
    let long = power::Request::Off { grace_ms: 1 };
    let mut bytes = encode(&long).unwrap();
    bytes.push(0);
    let trailing = decode::<power::Request>(&bytes).unwrap_err();
    assert!(matches!(trailing, DecodeError::Trailing { extra: 1, .. }), "{trailing}");
    let oversize = decode::<power::Request>(&[0; 17]).unwrap_err();
    assert!(matches!(oversize, DecodeError::TooLong { len: 17, max: 16, .. }), "{oversize}");
    let malformed = decode::<power::Request>(&[9]).unwrap_err();
    assert!(matches!(malformed, DecodeError::Malformed { .. }), "{malformed}");
    let huge = Start { argv: vec![ByteBuf::from(vec![b'a'; 1 << 20])], ..Start::default() };
    let refused = encode(&Request::Start(huge)).unwrap_err();
    assert!(matches!(refused, EncodeError::TooLong { .. }), "{refused}");
}

#[test]
fn hostile_bytes_never_panic() {
    let full = [0xAB; MAX_DATA];
    let seeds = [
        encode(&Request::Start(start())).unwrap(),
        encode(&Request::Stdin(&full)).unwrap(),
        encode(&Event::Stdout { at: u64::MAX, data: &full }).unwrap(),
        encode(&report::Request::Seed(u64::MAX)).unwrap(),
        // A list that claims 2^63 entries.
        vec![0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ];
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..40_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        bytes.truncate(bytes.len().min(random() as usize % 64));
        for _ in 0..random() % 4 {
            if !bytes.is_empty() {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
        }
        // Only the absence of panics and of absurd allocations is judged.
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Event>(&bytes);
        let _ = decode::<report::Reply>(&bytes);
        let _ = decode::<report::Request>(&bytes);
        let _ = decode::<info::Info>(&bytes);
        let _ = decode::<ticker::Tick>(&bytes);
    }
}

#[test]
fn the_stdin_window_never_opens_too_far() {
    let mut window = StdinWindow::new();
    assert_eq!(window.available(), STDIN_WINDOW);
    window.sent(10);
    window.taken(11);
    assert_eq!(window.available(), STDIN_WINDOW - 10, "a total that was never sent is ignored");
    window.taken(10);
    window.taken(3);
    assert_eq!(window.available(), STDIN_WINDOW, "totals never go back");
    window.sent(u64::MAX);
    assert_eq!(window.available(), 0);
    let status = Status { pid: 1, stdin_received: 50, stdin_taken: 20, stdin_open: true, exit: None, tty: false };
    assert_eq!(StdinWindow::resume(&status).available(), STDIN_WINDOW - 30);
}
