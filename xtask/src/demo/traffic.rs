//! The client: what sends and receives on the demo's channels, and writes it all down.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_bytes::ByteBuf;
use throughline::{ChannelInfo, Link, MessageReceiver, MessageSender, StreamReader, StreamWriter};
use throughline_wire::exec::{Request, Start};
use throughline_wire::sequence::{Direction, Place, Sender, locate};
use throughline_wire::{encode, port};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::course::{Course, LONGEST, READ_PACE_US, SCRIPT, STOP_SIGNAL};
use super::record::{Event, Mark, Writer};

/// Unread bytes that the client leaves to come.
const LEFT: u64 = 16 << 10;

/// The writing half of a channel.
enum Tx {
    Messages(MessageSender),
    Stream(StreamWriter),
}

impl Tx {
    fn info(&self) -> Result<ChannelInfo> {
        Ok(match self {
            Self::Messages(sender) => sender.info(),
            Self::Stream(writer) => writer.info(),
        }?)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Messages(sender) => sender.send(bytes).await?,
            Self::Stream(writer) => writer.write_all(bytes).await?,
        }
        Ok(())
    }

    async fn shutdown(&mut self) -> Result<()> {
        match self {
            Self::Messages(sender) => sender.shutdown().await?,
            Self::Stream(writer) => writer.shutdown().await?,
        }
        Ok(())
    }
}

/// The reading half of a channel.
enum Rx {
    Messages(MessageReceiver),
    Stream(StreamReader),
}

impl Rx {
    fn info(&self) -> Result<ChannelInfo> {
        Ok(match self {
            Self::Messages(receiver) => receiver.info(),
            Self::Stream(reader) => reader.info(),
        }?)
    }

    /// The next piece, which stays unread; `false` at the end.
    async fn peek(&mut self, piece: &mut Vec<u8>) -> Result<bool> {
        match self {
            Self::Messages(receiver) => Ok(receiver.peek(piece).await?),
            Self::Stream(reader) => {
                piece.resize(LONGEST as usize, 0);
                let count = reader.peek(piece).await?;
                piece.truncate(count);
                Ok(count > 0)
            }
        }
    }

    async fn commit(&mut self, piece: &[u8]) -> Result<()> {
        match self {
            Self::Messages(receiver) => receiver.commit().await?,
            Self::Stream(reader) => reader.commit(piece.len()).await?,
        }
        Ok(())
    }
}

/// All of the demo's channels at work. Dropping it ends them.
pub struct Traffic {
    tasks: JoinSet<(Course, Result<()>)>,
    finish: watch::Sender<bool>,
}

impl Traffic {
    /// Opens the channels and begins.
    pub async fn begin(link: &Link, seed: u64, writer: &Writer) -> Result<Self> {
        let mut traffic = Self::idle();
        let open = |port, course: Course| link.connect_with(port).label(&course.label(seed));
        let mut messages = open(port::SEQUENCE, Course::Messages).messages().await?;
        messages.send(&Course::Messages.params(seed).to_bytes()).await?;
        let (tx, rx) = messages.into_split();
        traffic.records(Course::Messages, Tx::Messages(tx), Rx::Messages(rx), writer)?;
        let mut stream = open(port::SEQUENCE, Course::Stream).stream().await?;
        stream.write_all(&Course::Stream.params(seed).to_bytes()).await?;
        let (rx, tx) = stream.into_split();
        traffic.records(Course::Stream, Tx::Stream(tx), Rx::Stream(rx), writer)?;
        let mut command = open(port::EXEC, Course::Command).messages().await?;
        let argv = ["sh", "-c", SCRIPT].map(ByteBuf::from).into();
        command.send(&encode(&Request::Start(Start { argv, ..Start::default() }))?).await?;
        let (tx, rx) = command.into_split();
        traffic.command(tx, rx, writer);
        Ok(traffic)
    }

    /// Takes the channels that a bundle carried, and goes on where they stand.
    pub fn resume(link: &Link, writer: &Writer) -> Result<Self> {
        let mut traffic = Self::idle();
        for info in link.channels() {
            let Some((course, _)) = Course::from_label(&info.label) else { continue };
            match link.adopt(info.id)? {
                throughline::Channel::Messages(messages) => {
                    let (tx, rx) = messages.into_split();
                    if course == Course::Command {
                        traffic.command(tx, rx, writer);
                    } else {
                        traffic.records(course, Tx::Messages(tx), Rx::Messages(rx), writer)?;
                    }
                }
                throughline::Channel::Stream(stream) => {
                    let (rx, tx) = stream.into_split();
                    traffic.records(course, Tx::Stream(tx), Rx::Stream(rx), writer)?;
                }
            }
        }
        let expected = 5;
        if traffic.tasks.len() != expected {
            bail!(
                "the bundle lacks channels of the demo: it gives work for {} of {expected} tasks",
                traffic.tasks.len()
            );
        }
        Ok(traffic)
    }

    fn idle() -> Self {
        Self { tasks: JoinSet::new(), finish: watch::Sender::new(false) }
    }

    fn records(&mut self, course: Course, tx: Tx, rx: Rx, writer: &Writer) -> Result<()> {
        let mark = Mark::of(&tx.info()?).context("a channel without its label")?;
        let sending = send_records(mark, tx, self.finish.subscribe(), writer.clone());
        let receiving = receive(course, rx, Some(self.finish.subscribe()), writer.clone());
        self.tasks.spawn(async move { (course, sending.await) });
        self.tasks.spawn(async move { (course, receiving.await) });
        Ok(())
    }

    fn command(&mut self, mut tx: MessageSender, rx: MessageReceiver, writer: &Writer) {
        let receiving = receive(Course::Command, Rx::Messages(rx), None, writer.clone());
        let (mut finish, writer) = (self.finish.subscribe(), writer.clone());
        let stopping = async move {
            finish.wait_for(|finish| *finish).await?;
            let request = encode(&Request::Signal { number: STOP_SIGNAL, group: false })?;
            let at = tx.info()?.sent;
            writer.add(Event::Sending { course: Course::Command, at, len: request.len() as u64 })?;
            tx.send(&request).await?;
            // The channel lives as long as both halves do.
            Ok(tx)
        };
        self.tasks.spawn(async move {
            let both = async { tokio::try_join!(stopping, receiving).map(|_| ()) };
            (Course::Command, both.await)
        });
    }

    /// Waits until a channel fails, which is written down; for ever if none does. Cancel-safe.
    pub async fn failed(&mut self, writer: &Writer) -> anyhow::Error {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = written_down(ended, writer) {
                return error;
            }
        }
        std::future::pending().await
    }

    /// Ends both directions of every channel, and waits until everything has come.
    pub async fn finish(mut self, writer: &Writer) -> Result<()> {
        self.finish.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            written_down(ended, writer)?;
        }
        Ok(())
    }

    /// Lets the others go on for a moment after a failure, and writes down what becomes of them.
    pub async fn linger(mut self, time: Duration, writer: &Writer) {
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                // The first failure is reported; these are in the record.
                let _ = written_down(ended, writer);
            }
        };
        let _ = tokio::time::timeout(time, all).await;
    }
}

fn written_down(ended: Result<(Course, Result<()>), tokio::task::JoinError>, writer: &Writer) -> Result<()> {
    let (course, result) = ended?;
    if let Err(error) = &result {
        writer.add(Event::Failed { course, error: format!("{error:#}") })?;
    }
    result.with_context(|| format!("channel {}", course.name()))
}

/// Sends records from the channel's position on, until it is time to finish.
async fn send_records(mark: Mark, mut tx: Tx, finish: watch::Receiver<bool>, writer: Writer) -> Result<()> {
    let Mark { course, seed, .. } = mark;
    let params = course.params(seed);
    let place = locate(&params, Direction::ToGuest, course.framing(), mark.sent - mark.sent_from)?;
    let Place::Record { number, mut within } = place else {
        bail!("the host's direction stands at {place:?}, and not at a record");
    };
    let mut sender = Sender::resume(params, Direction::ToGuest, number);
    let mut record = Vec::new();
    loop {
        record.clear();
        // A record that was begun is completed first.
        let end = *finish.borrow() && within == 0;
        if end {
            sender.append_end(&mut record);
        } else {
            sender.append(&mut record);
        }
        let piece = &record[within..];
        within = 0;
        writer.add(Event::Sending { course, at: tx.info()?.sent, len: piece.len() as u64 })?;
        tx.send(piece).await?;
        if end {
            return tx.shutdown().await;
        }
    }
}

/// Receives until the guest's end: at a pace until it is time to finish, if that is given.
async fn receive(course: Course, mut rx: Rx, paced: Option<watch::Receiver<bool>>, writer: Writer) -> Result<()> {
    let mut piece = Vec::new();
    loop {
        if let Some(finish) = &paced {
            // However slow the guest is at this moment: something stays unread, for a snapshot to carry.
            while !*finish.borrow() && rx.info()?.unread < LEFT {
                tokio::time::sleep(Duration::from_micros(READ_PACE_US.into())).await;
            }
        }
        let at = rx.info()?.received;
        if !rx.peek(&mut piece).await? {
            return Ok(());
        }
        writer.add(Event::Received { course, at, bytes: piece.clone() })?;
        rx.commit(&piece).await?;
        if paced.as_ref().is_some_and(|finish| !*finish.borrow()) {
            tokio::time::sleep(Duration::from_micros(READ_PACE_US.into())).await;
        }
    }
}
