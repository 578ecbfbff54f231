//! Numbered records both ways; see [`throughline_wire::sequence`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use throughline::{Messages, Stream};
use throughline_wire::report::Channel;
use throughline_wire::sequence::{Checker, Direction, PARAMS_LEN, Params, Parsed, Seen, Sender, Sent, StreamChecker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::{ServiceError, Turn};

/// Channels that are remembered; the oldest are forgotten first.
const MOST: usize = 256;

/// Bytes of a stream that are read at once.
const BUFFER: usize = 16 * 1024;

/// What the guest sent and saw, channel by channel. It is memory like any other, and so belongs to every snapshot.
#[derive(Debug, Default)]
pub struct Ledger(RefCell<VecDeque<Rc<RefCell<Channel>>>>);

impl Ledger {
    fn open(&self, params: Params, stream: bool) -> Rc<RefCell<Channel>> {
        let entry = Rc::new(RefCell::new(Channel {
            params,
            stream,
            sent: Sent::default(),
            seen: Seen::default(),
            finished: false,
            error: String::new(),
        }));
        let mut entries = self.0.borrow_mut();
        if entries.len() == MOST {
            entries.pop_front();
        }
        entries.push_back(Rc::clone(&entry));
        entry
    }

    /// The channels with a seed, or all; oldest first.
    pub(super) fn list(&self, seed: Option<u64>) -> Vec<Channel> {
        let entries = self.0.borrow();
        let all = entries.iter().map(|entry| entry.borrow().clone());
        all.filter(|channel| seed.is_none_or(|seed| channel.params.seed == seed)).collect()
    }
}

pub(super) async fn messages(ledger: &Ledger, mut messages: Messages) -> Result<(), ServiceError> {
    let Some(first) = messages.recv().await? else { return Ok(()) };
    let run = Run::open(ledger, &first, false)?;
    let (mut outgoing, mut incoming) = messages.into_split();
    let sending = async {
        let mut record = Vec::new();
        let mut source = run.source();
        while source.next(&mut record) {
            outgoing.send(&record).await?;
            source.sent().await;
        }
        Ok(outgoing.shutdown().await?)
    };
    let receiving = async {
        let mut record = Vec::new();
        let mut checker = Checker::new(run.params, Direction::ToGuest);
        let mut pace = Pace::new(run.params.read_pace_us);
        while checker.seen().total.is_none() {
            if !incoming.recv_into(&mut record).await? {
                return Err(no_end());
            }
            let parsed = checker.record(&record);
            run.saw(checker.seen(), matches!(parsed, Parsed::End { .. }));
            pace.wait(1).await;
        }
        Ok(())
    };
    run.to_the_end(sending, receiving).await
}

pub(super) async fn stream(ledger: &Ledger, stream: Stream) -> Result<(), ServiceError> {
    let (mut incoming, mut outgoing) = stream.into_split();
    let mut first = [0; PARAMS_LEN];
    incoming.read_exact(&mut first).await?;
    let run = Run::open(ledger, &first, true)?;
    let sending = async {
        let mut record = Vec::new();
        let mut source = run.source();
        while source.next(&mut record) {
            outgoing.write_all(&record).await?;
            source.sent().await;
        }
        Ok(outgoing.shutdown().await?)
    };
    let receiving = async {
        let mut buffer = vec![0; BUFFER];
        let mut checker = StreamChecker::new(run.params, Direction::ToGuest);
        let mut pace = Pace::new(run.params.read_pace_us);
        while checker.seen().total.is_none() {
            // A paced reader takes little at once, or it would free space in leaps.
            let share = if run.params.read_pace_us == 0 { BUFFER } else { run.params.max_len as usize };
            let share = share.min(BUFFER);
            let length = incoming.read(&mut buffer[..share]).await?;
            if length == 0 {
                return Err(no_end());
            }
            let records = checker.feed(&buffer[..length]);
            let seen = checker.seen();
            run.saw(seen, seen.total.is_some());
            pace.wait(records as u64).await;
        }
        Ok(())
    };
    run.to_the_end(sending, receiving).await
}

fn no_end() -> ServiceError {
    let message = "the host's direction ended without an end record";
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message).into()
}

/// One channel at work.
struct Run {
    params: Params,
    entry: Rc<RefCell<Channel>>,
    host_ended: Cell<bool>,
}

impl Run {
    fn open(ledger: &Ledger, first: &[u8], stream: bool) -> Result<Self, ServiceError> {
        let params = Params::from_bytes(first)?;
        Ok(Self { params, entry: ledger.open(params, stream), host_ended: Cell::new(false) })
    }

    fn source(&self) -> Source<'_> {
        let sender = Sender::new(self.params, Direction::ToHost);
        Source { run: self, sender, pace: Pace::new(self.params.guest_pace_us) }
    }

    fn saw(&self, seen: Seen, ended: bool) {
        self.entry.borrow_mut().seen = seen;
        if ended {
            self.host_ended.set(true);
        }
    }

    /// Runs both directions, and writes down how it came out.
    async fn to_the_end(
        &self,
        sending: impl Future<Output = Result<(), ServiceError>>,
        receiving: impl Future<Output = Result<(), ServiceError>>,
    ) -> Result<(), ServiceError> {
        let result = tokio::try_join!(sending, receiving).map(|_| ());
        let mut entry = self.entry.borrow_mut();
        match &result {
            Ok(()) => entry.finished = true,
            Err(error) => entry.error = error.to_string().chars().take(Channel::MAX_ERROR / 4).collect(),
        }
        result
    }
}

/// The guest's records.
struct Source<'a> {
    run: &'a Run,
    sender: Sender,
    pace: Pace,
}

impl Source<'_> {
    /// Puts the next record, or the end, into `record`; `false` after the end.
    fn next(&mut self, record: &mut Vec<u8>) -> bool {
        record.clear();
        if self.sender.sent().ended {
            return false;
        }
        let endless = self.run.params.guest_records == Params::ENDLESS;
        if self.sender.is_done() || (endless && self.run.host_ended.get()) {
            self.sender.append_end(record);
        } else {
            self.sender.append(record);
        }
        true
    }

    /// The record is in the channel.
    async fn sent(&mut self) {
        self.run.entry.borrow_mut().sent = self.sender.sent();
        self.pace.wait(1).await;
    }
}

/// Keeps an average distance between records.
struct Pace {
    gap: Duration,
    due: Instant,
    turn: Turn,
}

impl Pace {
    fn new(gap_us: u32) -> Self {
        Self { gap: Duration::from_micros(gap_us.into()), due: Instant::now(), turn: Turn::default() }
    }

    async fn wait(&mut self, records: u64) {
        if self.gap.is_zero() {
            return self.turn.next().await;
        }
        let now = Instant::now();
        // Who was held up does not catch up: the pace is a limit.
        let from = self.due.max(now.checked_sub(self.gap).unwrap_or(now));
        let gap = self.gap.saturating_mul(u32::try_from(records).unwrap_or(u32::MAX));
        self.due = from.checked_add(gap).unwrap_or(now);
        sleep_until(self.due).await;
    }
}
