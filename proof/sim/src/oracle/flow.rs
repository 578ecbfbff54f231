//! One direction of one use: what was sent, and how much of it was handed over.

use throughline::Kind;

use super::{Judged, ensure};
use crate::call::RING;
use crate::desk::span;

/// Positions count from where the use began.
#[derive(Clone, Debug, Default)]
pub(super) struct Flow {
    /// A stream's bytes.
    bytes: Vec<u8>,
    /// Messages, with their positions.
    messages: Vec<(u64, Vec<u8>)>,
    /// End of what was accepted.
    pub(super) staged: u64,
    /// End of what must be visible to the reader.
    pub(super) published: u64,
    /// End of what was handed over.
    pub(super) taken: u64,
}

impl Flow {
    /// Accepts what was written.
    pub(super) fn push(&mut self, kind: Kind, bytes: &[u8]) {
        match kind {
            Kind::Stream => {
                self.bytes.extend_from_slice(bytes);
                self.staged += bytes.len() as u64;
            }
            Kind::Message => {
                self.messages.push((self.staged, bytes.to_vec()));
                self.staged += span(bytes.len());
            }
        }
    }

    /// End of the space that the reader must have given back.
    pub(super) fn freed(&self) -> u64 {
        self.taken / 8 * 8
    }

    /// Space for the writer.
    pub(super) fn space(&self) -> u64 {
        RING - (self.staged - self.freed())
    }

    fn next_message(&self) -> Option<&[u8]> {
        let at = self.messages.binary_search_by_key(&self.taken, |(at, _)| *at).ok()?;
        Some(&self.messages[at].1)
    }

    /// Bytes that the next read of at most `max` may take.
    pub(super) fn next_span(&self, kind: Kind, max: usize) -> u64 {
        match kind {
            Kind::Stream => (max as u64).min(self.staged - self.taken),
            Kind::Message => self.next_message().map_or(0, |message| span(message.len())),
        }
    }

    /// Judges bytes that were handed over, or shown.
    pub(super) fn got(&mut self, kind: Kind, got: &[u8], max: usize, peek: bool) -> Judged {
        let at = self.taken;
        match kind {
            Kind::Stream => {
                let end = at as usize + got.len();
                ensure!(end <= self.bytes.len(), "{end} bytes were read, and {} were sent", self.bytes.len());
                ensure!(got == &self.bytes[at as usize..end], "the bytes from {at} to {end} are not what was sent");
                ensure!(!got.is_empty() && got.len() <= max, "{} bytes where {max} were asked for", got.len());
                let must = (self.published - at).min(max as u64);
                // A reader may have looked before more came; it never overlooks all.
                ensure!(got.len() as u64 >= must.min(1), "nothing of {must} bytes");
            }
            Kind::Message => {
                let Some(message) = self.next_message() else {
                    return Err(super::Violation(format!("a message at {at} that was never sent")));
                };
                ensure!(got == message, "the message at {at} is not what was sent");
            }
        }
        if !peek {
            self.taken += if kind == Kind::Stream { got.len() as u64 } else { span(got.len()) };
        }
        Ok(())
    }

    /// Holds a kept cursor of the writer against what it did.
    pub(super) fn check_kept_produced(&self, produced: u64) -> Judged {
        let (published, staged) = (self.published, self.staged);
        ensure!(
            (published..=staged).contains(&produced),
            "{produced} bytes are kept as sent, of {published} published and {staged} accepted"
        );
        Ok(())
    }

    /// The writer is dead, and its successor finds this end. `writing` is what it was about to write.
    pub(super) fn cut(&mut self, kind: Kind, end: u64, shown: u64, writing: Option<&[u8]>) -> Judged {
        let published = self.published;
        if let Some(writing) = writing {
            self.push(kind, writing);
        }
        ensure!(
            (published..=self.staged).contains(&end) && shown <= end,
            "{end} bytes survive of {published} published and {} accepted; {shown} are shown",
            self.staged
        );
        self.bytes.truncate(end as usize);
        self.messages.retain(|(at, message)| at + span(message.len()) <= end);
        let whole = self.messages.last().map_or(0, |(at, message)| at + span(message.len()));
        ensure!(kind == Kind::Stream || whole == end, "{end} lies within a message");
        self.staged = end;
        self.published = shown.max(published);
        Ok(())
    }
}
