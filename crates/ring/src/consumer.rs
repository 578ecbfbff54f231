//! The reading end of a ring.

use throughline_shmem::{WORD, Words};

use crate::cursor::check_produced;
use crate::{Corrupt, Fault, Frame, PeerWord, Position, RecordWord, View};

#[cfg(feature = "test-switches")]
use crate::switches::scrubs;

/// Always: what is shipped has no switch.
#[cfg(not(feature = "test-switches"))]
const fn scrubs() -> bool {
    true
}

/// The reading end of a ring.
///
/// Reading copies out and changes nothing; [`commit`](Self::commit) counts bytes as consumed, scrubs
/// them and frees their space. Two cursors stand for that: with one, a successor of a killed reader
/// would take scrubbed zeros for data, or release bytes that are not scrubbed yet.
#[derive(Debug)]
pub struct Consumer {
    freed: Position,
    taken: Position,
    /// Last value of the peer's `produced` that passed its check.
    produced: Position,
}

impl Consumer {
    /// Takes over where a predecessor stopped: finishes its scrub, and shows `freed` again.
    pub fn attach(view: &View<'_, impl Words>) -> Self {
        let taken = Position(view.kept(RecordWord::Taken));
        let freed = Position(view.kept(RecordWord::Freed));
        // A predecessor may have closed and freed beyond what it took.
        let taken = taken.max(freed);
        let mut this = Self { freed, taken, produced: taken };
        this.release(view);
        view.show(RecordWord::Freed, this.freed.0);
        this
    }

    /// End of what was handed to the reader.
    pub fn taken(&self) -> Position {
        self.taken
    }

    /// End of the space given back.
    pub fn freed(&self) -> Position {
        self.freed
    }

    /// Looks at the peer's `produced` and returns the number of unread bytes.
    #[inline]
    pub fn refresh(&mut self, view: &View<'_, impl Words>) -> Result<u64, Corrupt> {
        self.produced = check_produced(view.alleged(RecordWord::Produced), self.produced, self.freed, view.capacity())?;
        Ok(self.produced.since(self.taken))
    }

    /// Copies up to `out.len()` unread bytes of a stream, from `skip` bytes after the cursor; zero if
    /// there are none. Nothing is consumed.
    pub fn read_stream(&mut self, view: &View<'_, impl Words>, skip: u64, out: &mut [u8]) -> Result<usize, Corrupt> {
        let known = self.produced.since(self.taken);
        let unread = if known > skip { known } else { self.refresh(view)? };
        let count = out.len().min(unread.saturating_sub(skip) as usize);
        view.receiving().copy_out(self.taken.plus(skip), &mut out[..count]);
        Ok(count)
    }

    /// Judges the next message's header, which is loaded once; `None` if there is no message.
    /// Nothing is consumed.
    #[inline]
    pub fn next_frame(&mut self, view: &View<'_, impl Words>) -> Result<Option<Frame>, Corrupt> {
        self.frame_at(view, 0)
    }

    /// The same for the message that begins `skip` bytes after the cursor, where one before it ended.
    #[inline]
    pub fn frame_at(&mut self, view: &View<'_, impl Words>, skip: u64) -> Result<Option<Frame>, Corrupt> {
        let known = self.produced.since(self.taken);
        let unread = if known > skip { known } else { self.refresh(view)? }.saturating_sub(skip);
        if unread == 0 {
            return Ok(None);
        }
        if self.produced.in_word() != 0 {
            return Err(Corrupt { word: PeerWord::Produced, fault: Fault::Unaligned, value: self.produced.0 });
        }
        let at = self.taken.plus(skip);
        Frame::decode(view.receiving().load(at), at, unread).map(Some)
    }

    /// Copies a message's payload into the first [`Frame::len`] bytes of `out`.
    ///
    /// # Panics
    /// When `out` is shorter, which is the caller's mistake.
    #[inline]
    pub fn read_frame(&self, view: &View<'_, impl Words>, frame: Frame, out: &mut [u8]) {
        view.receiving().copy_out(frame.payload(), &mut out[..frame.len()]);
    }

    /// Counts `bytes` as consumed, scrubs them and frees their space.
    ///
    /// Order: `taken`, then the scrub, then `freed`. A successor that finds `taken` ahead of `freed`
    /// finishes the scrub.
    #[inline]
    pub fn commit(&mut self, view: &View<'_, impl Words>, bytes: u64) {
        debug_assert!(bytes <= self.produced.since(self.taken), "committed more than was read");
        self.taken = self.taken.plus(bytes);
        view.keep(RecordWord::Taken, self.taken.0);
        self.release(view);
    }

    /// Drops everything up to the peer's final position, its partial last word included: the end of a
    /// use, when both sides have closed. May be repeated. First asks whether so many unread bytes may
    /// go, and returns the answer.
    pub fn discard(&mut self, view: &View<'_, impl Words>, may_go: impl FnOnce(u64) -> bool) -> Result<bool, Corrupt> {
        let alleged = view.alleged(RecordWord::Produced);
        // The final position is rounded up below; a peer that has not rounded it yet is not going back.
        let rounded = self.taken.0 >= alleged && self.taken.0 - alleged < WORD as u64;
        let end =
            if rounded { self.taken } else { check_produced(alleged, self.produced, self.freed, view.capacity())? };
        if !may_go(end.since(self.taken)) {
            return Ok(false);
        }
        self.taken = end.max(self.produced).max(self.taken).ceil();
        self.produced = self.taken;
        view.keep(RecordWord::Taken, self.taken.0);
        self.release(view);
        Ok(true)
    }

    /// Scrubs whole consumed words and frees them.
    #[inline]
    fn release(&mut self, view: &View<'_, impl Words>) {
        let to = self.taken.floor();
        if to > self.freed {
            if scrubs() {
                view.receiving().scrub(self.freed, to);
            }
            self.freed = to;
            view.publish(RecordWord::Freed, to.0);
        }
    }
}
