//! The files service's encoding as it is frozen into guests.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use throughline_wire::Message;
use throughline_wire::files::{
    Content, Failure, FailureKind, Form, Found, Frame, Get, HEADER, Kind, MAX_DATA, Put, Reply, Request, Summary,
};

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Encodes, compares with the frozen bytes, and decodes back.
fn golden<M>(message: &M, frozen: &str)
where
    M: Message + Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    let frame = Frame::of(message).unwrap();
    assert_eq!(hex(&frame), frozen, "{message:?}");
    assert_eq!(&Frame::control::<M>(&frame).unwrap(), message);
}

fn name(text: &str) -> ByteBuf {
    ByteBuf::from(text)
}

#[test]
fn files_requests_have_golden_bytes() {
    let put = |content| Request::Put(Put { dest: name("/d"), content, owner: Some("u".into()) });
    golden(&put(Content::Tree { name: name("n"), is_folder: true }), "0100022f6400016e01010175");
    golden(&put(Content::Contents), "0100022f6401010175");
    let bytes = Content::Bytes { name: Some(name("n")), mode: 0o644, mtime: Some(5) };
    golden(&put(bytes), "0100022f640201016ea4030105010175");
    golden(&Request::End, "0101");
    let get = |form| Request::Get(Get { source: name("/s"), form, follow: true });
    golden(&get(Form::Tree(name("n"))), "0102022f7300016e01");
    golden(&get(Form::Contents), "0102022f730101");
    golden(&get(Form::Bytes), "0102022f730201");
    golden(&Request::Stat { path: name("/"), follow: false }, "0103012f00");
}

#[test]
fn files_replies_have_golden_bytes() {
    for (kind, code) in [(Kind::File, "00"), (Kind::Folder, "01"), (Kind::Link, "02"), (Kind::Special, "03")] {
        let found = Reply::Found(Found { kind, mode: 0o755, size: 3, mtime: -1 });
        golden(&found, &format!("0100{code}ed030301"));
    }
    golden(&Reply::Done(Summary { entries: 1, bytes: 128 }), "0101018001");
    let kinds = [
        FailureKind::NotFound,
        FailureKind::NotAFolder,
        FailureKind::IsAFolder,
        FailureKind::NoSpace,
        FailureKind::ReadOnly,
        FailureKind::Denied,
        FailureKind::Refused,
        FailureKind::Special,
        FailureKind::Changed,
        FailureKind::Malformed,
        FailureKind::NoSuchUser,
        FailureKind::Protocol,
        FailureKind::Other,
    ];
    for (code, kind) in kinds.into_iter().enumerate() {
        let failure = Failure { kind, path: "p".into(), message: "m".into() };
        let before = Summary { entries: 1, bytes: 2 };
        golden(&Reply::Failed { failure, before }, &format!("0102{code:02x}0170016d0102"));
    }
}

#[test]
fn frames_are_data_or_control_and_nothing_else() {
    let data = [&[0; HEADER], b"data".as_slice()].concat();
    assert_eq!(Frame::parse(&data), Some(Frame::Data(b"data")));
    assert_eq!(Frame::parse(&[0; HEADER]), Some(Frame::Data(b"")));
    assert_eq!(Frame::parse(&[1, 7]), Some(Frame::Control(&[7])));
    assert_eq!(Frame::parse(&[]), None);
    assert_eq!(Frame::parse(&[0; HEADER - 1]), None);
    assert_eq!(Frame::parse(&[2]), None);
    assert_eq!(Frame::parse(&vec![0; HEADER + MAX_DATA + 1]), None);
    assert!(Frame::control::<Request>(&data).is_err());
    for end in 0..64 {
        let mut state = 0x1234_5678_9abc_def1_u64.wrapping_mul(end + 1);
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(end as usize)
        .collect();
        // Only that nothing panics is judged.
        let _ = Frame::control::<Request>(&[&[1], bytes.as_slice()].concat());
        let _ = Frame::control::<Reply>(&[&[1], bytes.as_slice()].concat());
    }
}
