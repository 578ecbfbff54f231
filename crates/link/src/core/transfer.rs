//! Sending and receiving on one channel.

use std::task::{Context, Poll};

use throughline_ring::{Cause, Full, NEVER, Reason, State, View};
use throughline_shmem::Words;

use super::channel::Peer;
use super::watch::Want;
use super::{Bell, Core, Entry, Use};
use crate::error::Error;

/// Bytes that a batching writer leaves unpublished at most: publishing by bytes is what makes small
/// messages fast, and batches by count would stall small rings.
const BATCH_BYTES: u64 = 16 << 10;

impl Entry {
    fn waits(&mut self, task: Task, cx: &mut Context<'_>) {
        let waker = match task {
            Task::Reader => &mut self.reader,
            Task::Writer => &mut self.writer,
            Task::Observer => &mut self.observer,
        };
        *waker = Some(cx.waker().clone());
    }
}

/// Which of a channel's tasks asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Reader,
    Writer,
    /// Waits for a change of the peer's state alone, beside the other two.
    Observer,
}

/// Whether bytes are handed over for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Copied, scrubbed and freed.
    Consume,
    /// Copied; a commit consumes them.
    Peek,
}

/// When staged bytes become visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// Before the call returns.
    Now,
    /// With a flush, a wait, or a full batch.
    Batch,
}

/// What one attempt came to: a result, or what to wait for.
pub(super) type Attempt<T> = Result<Result<T, Want>, Error>;

impl<W: Words, B: Bell> Core<W, B> {
    /// Makes one attempt; if it must wait, registers and looks again. Without a context it only tries:
    /// pending then means *would block*.
    ///
    /// Inlined into its callers, as all that it calls when nothing is amiss: otherwise results as wide as
    /// an error go through memory at each step, which is a third of a small message's time.
    #[inline]
    pub(super) fn poll<T>(
        &self,
        this: Use,
        task: Task,
        cx: Option<&mut Context<'_>>,
        mut attempt: impl FnMut(&mut Entry, &View<'_, W>, State) -> Attempt<T>,
    ) -> Poll<Result<T, Error>> {
        let mut entry = self.slots[this.slot].entry.lock();
        if let Err(error) = entry.in_use(this) {
            return Poll::Ready(Err(error));
        }
        if self.is_frozen() {
            // The thaw wakes everybody.
            if let Some(cx) = cx {
                entry.waits(task, cx);
            }
            return Poll::Pending;
        }
        let view = self.view(this.slot);
        match once(&mut entry, &view, &mut attempt) {
            Ok(Ok(done)) => Poll::Ready(Ok(done)),
            Ok(Err(want)) => match cx {
                Some(cx) => self.wait(this.slot, task, cx, &mut entry, want, attempt),
                None => Poll::Pending,
            },
            Err(error) => Poll::Ready(Err(self.failed(this.slot, &mut entry, error))),
        }
    }

    /// Registers what a task waits for, and looks again.
    fn wait<T>(
        &self,
        slot: usize,
        task: Task,
        cx: &mut Context<'_>,
        entry: &mut Entry,
        want: Want,
        mut attempt: impl FnMut(&mut Entry, &View<'_, W>, State) -> Attempt<T>,
    ) -> Poll<Result<T, Error>> {
        let view = self.view(slot);
        // Whoever waits publishes first, or both sides would wait.
        self.publish(entry, &view);
        entry.waits(task, cx);
        self.waiting.set(slot);
        self.slots[slot].watch.register(&view, want);
        match once(entry, &view, &mut attempt) {
            Ok(Err(_)) => Poll::Pending,
            Ok(Ok(done)) => {
                self.slots[slot].watch.withdraw(&view, want);
                Poll::Ready(Ok(done))
            }
            Err(error) => Poll::Ready(Err(self.failed(slot, entry, error))),
        }
    }

    /// A peer that breaks the protocol loses the channel.
    #[cold]
    fn failed(&self, slot: usize, entry: &mut Entry, error: Error) -> Error {
        if let (Error::Corrupt(corrupt), None) = (&error, entry.channel.corrupt) {
            self.give_up(slot, entry, &self.view(slot), *corrupt);
        }
        error
    }

    #[inline]
    fn publish(&self, entry: &mut Entry, view: &View<'_, W>) {
        if entry.channel.tx.publish(view) {
            self.notify(view, Cause::Data(entry.channel.tx.produced().0));
        }
    }

    #[inline]
    pub(super) fn consume(&self, entry: &mut Entry, view: &View<'_, W>, bytes: u64) {
        entry.peeked = None;
        entry.channel.rx.commit(view, bytes);
        self.notify(view, Cause::Space(entry.channel.rx.freed().0));
    }

    /// Receives one message into `out`, which gets its length; `false` when the peer has finished.
    pub fn poll_recv(
        &self,
        this: Use,
        take: Take,
        cx: Option<&mut Context<'_>>,
        out: &mut Vec<u8>,
    ) -> Poll<Result<bool, Error>> {
        self.poll(this, Task::Reader, cx, |entry, view, peer| {
            readable(entry.channel.relate(peer))?;
            let Some(frame) = entry.channel.rx.next_frame(view)? else {
                return Ok(end_or_wait(entry, peer, false, entry.channel.rx.taken().0));
            };
            out.resize(frame.len(), 0);
            entry.channel.rx.read_frame(view, frame, out);
            still_readable(entry, view)?;
            match take {
                Take::Consume => self.consume(entry, view, frame.span()),
                Take::Peek => entry.peeked = Some(frame.span()),
            }
            Ok(Ok(true))
        })
    }

    /// Reads bytes of a stream into `out`, from `skip` bytes after the cursor; zero when the peer has
    /// finished and nothing is left.
    pub fn poll_read(
        &self,
        this: Use,
        take: Take,
        cx: Option<&mut Context<'_>>,
        out: &mut [u8],
    ) -> Poll<Result<usize, Error>> {
        self.poll(this, Task::Reader, cx, |entry, view, peer| {
            readable(entry.channel.relate(peer))?;
            let count = entry.channel.rx.read_stream(view, 0, out)?;
            if count == 0 && !out.is_empty() {
                return Ok(end_or_wait(entry, peer, 0, entry.channel.rx.taken().0));
            }
            still_readable(entry, view)?;
            match take {
                Take::Consume => self.consume(entry, view, count as u64),
                Take::Peek => entry.peeked = Some(count as u64),
            }
            Ok(Ok(count))
        })
    }

    /// Consumes what was peeked at: a whole message (`None`), or so many bytes of it.
    pub fn poll_commit(&self, this: Use, bytes: Option<u64>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(this, Task::Reader, Some(cx), |entry, view, _| {
            let peeked = entry.peeked.unwrap_or(0);
            let bytes = bytes.unwrap_or(peeked);
            if bytes > peeked {
                return Err(Error::NotPeeked { peeked, asked: bytes });
            }
            self.consume(entry, view, bytes);
            entry.peeked = Some(peeked - bytes);
            Ok(Ok(()))
        })
    }

    /// Sends one message.
    pub fn poll_send(
        &self,
        this: Use,
        publish: Publish,
        cx: Option<&mut Context<'_>>,
        payload: &[u8],
    ) -> Poll<Result<(), Error>> {
        self.poll_stage(this, publish, cx, |entry, view| entry.channel.tx.stage_message(view, payload))
    }

    /// Writes as many of the bytes as there is space for: at least one.
    pub fn poll_write(
        &self,
        this: Use,
        publish: Publish,
        cx: Option<&mut Context<'_>>,
        bytes: &[u8],
    ) -> Poll<Result<usize, Error>> {
        self.poll_stage(this, publish, cx, |entry, view| entry.channel.tx.stage_stream(view, bytes))
    }

    #[inline]
    fn poll_stage<T>(
        &self,
        this: Use,
        publish: Publish,
        cx: Option<&mut Context<'_>>,
        mut stage: impl FnMut(&mut Entry, &View<'_, W>) -> Result<T, Full>,
    ) -> Poll<Result<T, Error>> {
        self.poll(this, Task::Writer, cx, |entry, view, peer| {
            if let Err(wait) = self.writable(entry, peer)? {
                return Ok(Err(wait));
            }
            match stage(entry, view) {
                Ok(done) => {
                    if publish == Publish::Now || entry.channel.tx.unpublished() >= BATCH_BYTES {
                        self.publish(entry, view);
                    }
                    Ok(Ok(done))
                }
                Err(Full::Until(position)) => {
                    // What is staged must become visible, or its space would never come back.
                    self.publish(entry, view);
                    Ok(Err(Want::Space(position.0)))
                }
                Err(Full::TooLong { len, max }) => Err(Error::TooLong { len, max }),
                Err(Full::Corrupt(corrupt)) => Err(corrupt.into()),
            }
        })
    }

    #[inline]
    fn writable(&self, entry: &Entry, peer: State) -> Attempt<()> {
        if entry.channel.mine.tx_shut {
            return Err(Error::Shut);
        }
        match entry.channel.relate(peer) {
            // The guest cannot make memory exist: it writes only once the host has answered.
            Peer::Behind if self.side == throughline_ring::Side::Guest => Ok(Err(Want::Space(NEVER))),
            Peer::Behind | Peer::Live { .. } => Ok(Ok(())),
            Peer::Closed => Err(Error::Closed),
            Peer::Gone(reason) => Err(gone(reason)),
        }
    }

    /// Publishes what is staged.
    pub fn poll_flush(&self, this: Use, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(this, Task::Writer, Some(cx), |entry, view, _| {
            self.publish(entry, view);
            Ok(Ok(()))
        })
    }

    /// Ends this side's direction; the peer reads what was written, and then the end.
    pub fn poll_shutdown(&self, this: Use, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(this, Task::Writer, Some(cx), |entry, view, _| {
            if !entry.channel.mine.tx_shut {
                entry.channel.shutdown(view);
                self.notify(view, Cause::State);
            }
            Ok(Ok(()))
        })
    }

    /// Waits until the peer has accepted the channel, or refused it.
    pub fn poll_answer(&self, this: Use, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(this, Task::Reader, Some(cx), |entry, _, peer| match entry.channel.relate(peer) {
            Peer::Behind => Ok(Err(Want::Data(NEVER))),
            Peer::Live { .. } | Peer::Closed => Ok(Ok(())),
            Peer::Gone(reason) => Err(gone(reason)),
        })
    }
}

/// Looks at the peer's state, and attempts.
#[inline]
fn once<T, W: Words>(
    entry: &mut Entry,
    view: &View<'_, W>,
    attempt: &mut impl FnMut(&mut Entry, &View<'_, W>, State) -> Attempt<T>,
) -> Attempt<T> {
    let peer = entry.channel.look(view)?;
    attempt(entry, view, peer)
}

pub(super) fn gone(reason: Reason) -> Error {
    if reason == Reason::Refused { Error::Refused } else { Error::Reset }
}

#[inline]
pub(super) fn readable(peer: Peer) -> Result<(), Error> {
    if let Peer::Gone(reason) = peer { Err(gone(reason)) } else { Ok(()) }
}

/// After a copy: a channel that was reset meanwhile (its bytes zeroed under the copy) gives nothing.
#[inline]
pub(super) fn still_readable<W: Words>(entry: &mut Entry, view: &View<'_, W>) -> Result<(), Error> {
    let peer = entry.channel.look(view)?;
    readable(entry.channel.relate(peer))
}

/// Nothing is there at `from`. It is the end only if the peer's state, which was read before its cursor, says so.
#[inline]
pub(super) fn end_or_wait<T>(entry: &Entry, peer: State, end: T, from: u64) -> Result<T, Want> {
    match entry.channel.relate(peer) {
        Peer::Live { finished: true } | Peer::Closed => Ok(end),
        _ => Err(Want::Data(from + 1)),
    }
}
