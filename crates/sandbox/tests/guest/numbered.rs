//! A stream of numbered records both ways, as far as its positions tell.

use std::io;

use throughline::{Link, Stream, StreamReader, StreamWriter};
use throughline_wire::sequence::{Direction, Framing, Params, Place, Seen, Sender, StreamChecker, locate};
use throughline_wire::{decode, encode, port, report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LABEL: &str = "numbered";

fn params() -> Params {
    Params::new(77)
}

/// Both directions of the stream, from wherever it stands.
pub struct Numbered {
    sender: Sender,
    /// Of the sender's next record, what was sent already.
    within: usize,
    checker: StreamChecker,
    stream: Stream,
}

impl Numbered {
    /// A new one.
    pub async fn open(link: &Link) -> Self {
        let mut stream = link.connect_with(port::SEQUENCE).label(LABEL).stream().await.expect("a stream");
        stream.write_all(&params().to_bytes()).await.expect("the stream takes its parameters");
        let sender = Sender::new(params(), Direction::ToGuest);
        Self { sender, within: 0, checker: StreamChecker::new(params(), Direction::ToHost), stream }
    }

    /// The one that nobody holds; what comes next follows from its positions.
    pub fn adopt(link: &Link) -> Self {
        let info = link.channels().into_iter().find(|channel| channel.label == LABEL).expect("the stream");
        let stream = link.adopt(info.id).expect("a channel to take over").stream().expect("a stream");
        let place = |direction, offset| match locate(&params(), direction, Framing::Stream, offset) {
            Ok(Place::Record { number, within }) => (number, within),
            place => panic!("{direction:?} at {offset}: {place:?}"),
        };
        let (number, within) = place(Direction::ToGuest, info.sent - info.sent_from);
        let sender = Sender::resume(params(), Direction::ToGuest, number);
        let (number, half) = place(Direction::ToHost, info.received - info.received_from);
        Self { sender, within, checker: StreamChecker::resume(params(), Direction::ToHost, number, half), stream }
    }

    /// Traffic both ways until `enough` ends, and so many records more; then both ends. The guest's figures
    /// and these are complete, and fit each other.
    pub async fn run(self, link: &Link, enough: impl Future, more: u64) {
        let Self { sender, within, checker, stream } = self;
        let (reader, writer) = stream.into_split();
        let (sent, seen) = tokio::join!(send(writer, sender, within, enough, more), check(reader, checker));
        let (sent, seen) = (sent.expect("the host's records go"), seen.expect("the guest's records come"));
        assert!(seen.is_complete(), "{seen:?}");
        let theirs = figures(link).await;
        assert_eq!(theirs.error, "");
        assert!(theirs.seen.is_complete() && theirs.finished, "{theirs:?}");
        assert_eq!((theirs.seen.records, theirs.seen.hash), (sent.records, sent.hash));
        assert_eq!((theirs.sent.records, theirs.sent.hash), (seen.records, seen.hash));
    }
}

async fn send(
    mut writer: StreamWriter,
    mut sender: Sender,
    mut within: usize,
    enough: impl Future,
    mut more: u64,
) -> io::Result<throughline_wire::sequence::Sent> {
    let mut enough = std::pin::pin!(enough);
    let (mut ended, mut record) = (false, Vec::new());
    while more > 0 || within > 0 {
        record.clear();
        sender.append(&mut record);
        writer.write_all(&record[std::mem::take(&mut within)..]).await?;
        let looked = std::future::poll_fn(|cx| std::task::Poll::Ready(!ended && enough.as_mut().poll(cx).is_ready()));
        ended |= looked.await;
        more -= u64::from(ended && more > 0);
    }
    record.clear();
    sender.append_end(&mut record);
    writer.write_all(&record).await?;
    writer.shutdown().await?;
    Ok(sender.sent())
}

async fn check(mut reader: StreamReader, mut checker: StreamChecker) -> io::Result<Seen> {
    let mut piece = vec![0; 16 << 10];
    loop {
        let read = reader.read(&mut piece).await?;
        if read == 0 {
            assert_eq!(checker.pending(), 0, "the stream ends within a record");
            return Ok(checker.seen());
        }
        checker.feed(&piece[..read]);
    }
}

/// What the guest says of the stream.
async fn figures(link: &Link) -> report::Channel {
    let mut messages = link.connect_messages(port::REPORT).await.expect("the report service");
    messages.send(&encode(&report::Request::Seed(params().seed)).expect("a request")).await.expect("a way");
    let answer = messages.recv().await.expect("an answer").expect("no end");
    match decode(&answer).expect("a reply") {
        report::Reply::Channel(channel) => *channel,
        reply @ report::Reply::End { .. } => panic!("{reply:?}"),
    }
}
