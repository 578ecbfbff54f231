//! Reading ahead of what is consumed, and following what the peer consumes: for whoever passes bytes on.

use std::task::{Context, Poll};

use throughline_ring::{Kind, Position};
use throughline_shmem::Words;

use super::channel::Peer;
use super::transfer::{Task, end_or_wait, gone, readable, still_readable};
use super::watch::Want;
use super::{Bell, Core, Entry, Use};
use crate::error::Error;

/// Most bytes of a stream that one look copies.
const LOOK_BYTES: u64 = 16 << 10;

impl<W: Words, B: Bell> Core<W, B> {
    /// Copies what stands at `from`, a position at or after the reader's, into `out`: a message, or some bytes of
    /// a stream. Nothing is consumed. The position after it; `None` when the peer has finished there.
    pub fn poll_ahead(
        &self,
        this: Use,
        from: u64,
        cx: &mut Context<'_>,
        out: &mut Vec<u8>,
    ) -> Poll<Result<Option<u64>, Error>> {
        self.poll(this, Task::Reader, Some(cx), |entry, view, peer| {
            readable(entry.channel.relate(peer))?;
            let skip = beyond(entry, from)?;
            let end = match entry.channel.mine.kind {
                Kind::Message => entry.channel.rx.frame_at(view, skip)?.map(|frame| {
                    out.resize(frame.len(), 0);
                    entry.channel.rx.read_frame(view, frame, out);
                    from + frame.span()
                }),
                Kind::Stream => {
                    let unread = entry.channel.rx.refresh(view)?.saturating_sub(skip);
                    out.resize(unread.min(LOOK_BYTES) as usize, 0);
                    let count = entry.channel.rx.read_stream(view, skip, out)? as u64;
                    (count > 0).then_some(from + count)
                }
            };
            if end.is_none() {
                return Ok(end_or_wait(entry, peer, None, from));
            }
            still_readable(entry, view)?;
            Ok(Ok(end))
        })
    }

    /// Consumes everything before a position, which [`poll_ahead`](Self::poll_ahead) has passed. Waits only for a
    /// freeze to end.
    pub fn poll_consume(&self, this: Use, until: u64, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(this, Task::Reader, Some(cx), |entry, view, _| {
            let bytes = beyond(entry, until)?;
            let there = entry.channel.rx.refresh(view)?;
            if bytes > there {
                return Err(Error::NotPeeked { peeked: there, asked: bytes });
            }
            self.consume(entry, view, bytes);
            Ok(Ok(()))
        })
    }

    /// Waits until the peer has freed what was sent before a position, and returns how far it has come; an error
    /// once it has closed.
    pub fn poll_freed(&self, this: Use, until: u64, cx: &mut Context<'_>) -> Poll<Result<u64, Error>> {
        self.poll(this, Task::Writer, Some(cx), |entry, view, peer| {
            let Position(freed) = entry.channel.tx.refresh(view)?;
            if freed >= until {
                return Ok(Ok(freed));
            }
            match entry.channel.relate(peer) {
                Peer::Behind | Peer::Live { .. } => Ok(Err(Want::Space(until))),
                Peer::Closed => Err(Error::Closed),
                Peer::Gone(reason) => Err(gone(reason)),
            }
        })
    }

    /// Waits until the peer has closed: no byte that is sent now would be read. An error where what it sent is to be
    /// dropped, too.
    pub fn poll_over(&self, this: Use, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll(this, Task::Observer, Some(cx), |entry, _, peer| match entry.channel.relate(peer) {
            Peer::Behind | Peer::Live { .. } => Ok(Err(Want::Change)),
            Peer::Closed => Ok(Ok(())),
            Peer::Gone(reason) => Err(gone(reason)),
        })
    }
}

/// How far a position lies beyond the reader's; one before it is the caller's mistake.
fn beyond(entry: &Entry, position: u64) -> Result<u64, Error> {
    let taken = entry.channel.rx.taken().0;
    position.checked_sub(taken).ok_or(Error::Consumed { asked: position, taken })
}
