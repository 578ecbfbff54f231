//! The writing end of a ring.

use throughline_shmem::{WORD, Words};

use crate::cursor::check_freed;
use crate::frame::{self, HEADER_BYTES};
use crate::{Corrupt, Position, RecordWord, View};

/// The writing end of a ring: private cursors, and the operations on the shared words.
///
/// *Stage* copies bytes into the ring; [`publish`](Self::publish) makes all that is staged visible with
/// one store. What is not published does not exist, for the peer and for a successor alike.
#[derive(Debug)]
pub struct Producer {
    produced: Position,
    staged: Position,
    /// Last value of the peer's `freed` that passed its check.
    freed: Position,
    /// The bytes of the partial last word, which is always rewritten whole: the ring's own copy of
    /// it is never read back, because the peer may have scribbled there.
    tail: u64,
}

/// Why nothing was staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// There is no space now; there will be when the peer has freed up to this position.
    #[error("the ring is full")]
    Until(Position),
    /// It will never fit.
    #[error("a message of {len} bytes is longer than the {max} that the channel's ring holds")]
    TooLong {
        /// Bytes of the message.
        len: usize,
        /// The most that fit.
        max: usize,
    },
    /// The peer's `freed` is impossible.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

impl Producer {
    /// Takes over where a predecessor stopped, and shows again what it had published.
    ///
    /// The peer's `freed` is judged at first use.
    pub fn attach(view: &View<'_, impl Words>) -> Self {
        let produced = Position(view.kept(RecordWord::Produced));
        view.show(RecordWord::Produced, produced.0);
        // The kept tail may already hold bytes that were never published: keep those that were.
        let tail = view.kept(RecordWord::Tail) & ((1 << (8 * produced.in_word())) - 1);
        let freed = Position(produced.0.saturating_sub(view.capacity())).ceil();
        Self { produced, staged: produced, freed, tail }
    }

    /// End of what is published.
    pub fn produced(&self) -> Position {
        self.produced
    }

    /// End of what is staged.
    pub fn staged(&self) -> Position {
        self.staged
    }

    /// Bytes staged and not yet published.
    pub fn unpublished(&self) -> u64 {
        self.staged.since(self.produced)
    }

    /// Last known end of the peer's freed space.
    pub fn freed(&self) -> Position {
        self.freed
    }

    /// Looks at the peer's `freed`.
    pub fn refresh(&mut self, view: &View<'_, impl Words>) -> Result<Position, Corrupt> {
        self.freed = check_freed(view.alleged(RecordWord::Freed), self.freed, self.produced)?;
        Ok(self.freed)
    }

    /// Bytes of space, looking at the peer's word only where the known space does not suffice.
    #[inline]
    fn space(&mut self, view: &View<'_, impl Words>, needed: u64) -> Result<u64, Corrupt> {
        let space = |this: &Self| view.capacity() - this.staged.since(this.freed);
        if space(self) < needed {
            self.refresh(view)?;
        }
        Ok(space(self))
    }

    /// Stages as many of the bytes as fit, at most `limit` a call so that a call's work is bounded, and
    /// returns their number: zero is never returned for a non-empty `bytes`.
    pub fn stage_stream(&mut self, view: &View<'_, impl Words>, bytes: &[u8]) -> Result<usize, Full> {
        let count = bytes.len().min(self.space(view, bytes.len() as u64)? as usize);
        if count == 0 && !bytes.is_empty() {
            // One word more than has been freed so far: the peer frees whole words.
            return Err(Full::Until(self.freed.plus(WORD as u64)));
        }
        let ring = view.sending();
        let mut rest = &bytes[..count];
        let from = self.staged.in_word();
        if from != 0 {
            let (head, more) = rest.split_at(rest.len().min(WORD - from));
            self.tail |= little_endian(head) << (8 * from);
            ring.store(self.staged.floor(), self.tail);
            self.staged = self.staged.plus(head.len() as u64);
            rest = more;
        }
        if self.staged.in_word() == 0 {
            let (words, partial) = rest.split_at(rest.len() / WORD * WORD);
            ring.copy_in(self.staged, words);
            self.staged = self.staged.plus(words.len() as u64);
            self.tail = little_endian(partial);
            if !partial.is_empty() {
                ring.store(self.staged, self.tail);
                self.staged = self.staged.plus(partial.len() as u64);
            }
        }
        Ok(count)
    }

    /// Stages one whole message.
    #[inline]
    pub fn stage_message(&mut self, view: &View<'_, impl Words>, payload: &[u8]) -> Result<(), Full> {
        let len = payload.len() as u64;
        let max = view.capacity() - HEADER_BYTES;
        if len > max {
            return Err(Full::TooLong { len: payload.len(), max: max as usize });
        }
        let span = frame::span(len);
        if self.space(view, span)? < span {
            return Err(Full::Until(Position(self.staged.0 + span - view.capacity())));
        }
        let ring = view.sending();
        ring.store(self.staged, frame::encode(len as u32, self.staged));
        let (words, partial) = payload.split_at(payload.len() / WORD * WORD);
        let at = self.staged.plus(HEADER_BYTES);
        ring.copy_in(at, words);
        if !partial.is_empty() {
            ring.store(at.plus(words.len() as u64), little_endian(partial));
        }
        self.staged = self.staged.plus(span);
        Ok(())
    }

    /// Makes everything staged visible; returns whether there was anything.
    ///
    /// Order: payload (already in the ring), then the kept tail, then the kept cursor, then the shown
    /// one. The kept tail belongs to the word of the kept cursor, so a partial word that gets completed
    /// is published by itself before the tail of a later word replaces it.
    #[must_use = "the peer may have to be woken"]
    #[inline]
    pub fn publish(&mut self, view: &View<'_, impl Words>) -> bool {
        if self.staged == self.produced {
            return false;
        }
        if self.staged.in_word() != 0 {
            if self.produced.in_word() != 0 && self.produced.floor() != self.staged.floor() {
                view.publish(RecordWord::Produced, self.produced.ceil().0);
            }
            view.keep(RecordWord::Tail, self.tail);
        }
        self.produced = self.staged;
        view.publish(RecordWord::Produced, self.produced.0);
        true
    }

    /// After both sides have closed: moves to a word's boundary, where the next use begins. Nobody needs the
    /// kept tail any more, and it is bytes that the peer has consumed.
    pub fn align(&mut self, view: &View<'_, impl Words>) {
        self.produced = self.produced.ceil();
        self.staged = self.produced;
        self.tail = 0;
        view.keep(RecordWord::Tail, 0);
        view.publish(RecordWord::Produced, self.produced.0);
    }
}

/// Up to eight bytes as the low bytes of a word.
fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}
