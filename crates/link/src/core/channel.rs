//! One channel's life, as a state machine over its words. No locks, no bells, no waiting.

use throughline_ring::{
    Consumer, Corrupt, Fault, Generation, Kind, PeerWord, Phase, Position, Producer, Reason, RecordWord, State, View,
};
use throughline_shmem::Words;

use super::rolled_back::RolledBack;

/// A channel as its side knows it.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Whether this side opens the slot.
    pub(crate) i_open: bool,
    pub(crate) mine: State,
    /// The peer's last state that passed its check.
    seen: Option<State>,
    /// Its word, as long as mine is the state that it was judged beside: the same word again needs no
    /// second judgement.
    judged: Option<(u64, State)>,
    pub(crate) tx: Producer,
    pub(crate) rx: Consumer,
    /// Set for ever once the peer broke the protocol here.
    pub(crate) corrupt: Option<Corrupt>,
}

/// Where the peer stands in the use that I am in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// It has not answered my open.
    Behind,
    /// It takes part; `finished` once its direction has ended.
    Live { finished: bool },
    /// It has closed, and what it wrote is to be read.
    Closed,
    /// It has closed, and what it wrote is to be dropped.
    Gone(Reason),
}

impl Channel {
    /// Takes over what a predecessor kept: finishes its scrub and shows its words again, cursors
    /// before the state. `None` where the kept state is no state, which only damage explains.
    pub(crate) fn attach(view: &View<'_, impl Words>, i_open: bool) -> Option<Self> {
        let mine = State::decode(view.kept(RecordWord::State)).ok()?;
        let tx = Producer::attach(view);
        let rx = Consumer::attach(view);
        view.show(RecordWord::State, mine.encode());
        let corrupt = Corrupt::from_mark(view.kept(RecordWord::Corrupt), view.kept(RecordWord::CorruptValue));
        let mut this = Self { i_open, mine, seen: None, judged: None, tx, rx, corrupt };
        if let Some(corrupt) = corrupt {
            // A predecessor may have died between the mark and the close.
            this.give_up(view, corrupt);
        }
        Some(this)
    }

    /// Reads the peer's state, once, and judges it.
    #[inline]
    pub(crate) fn look(&mut self, view: &View<'_, impl Words>) -> Result<State, Corrupt> {
        let word = view.alleged(RecordWord::State);
        if let Some((judged, peer)) = self.judged
            && judged == word
        {
            return Ok(peer);
        }
        let peer = State::decode(word)?;
        self.mine.check_peer(self.i_open, self.seen, peer)?;
        self.seen = Some(peer);
        self.judged = Some((word, peer));
        Ok(peer)
    }

    /// What a state of the peer means for the use that I am in (live or closed).
    #[inline]
    pub(crate) fn relate(&self, peer: State) -> Peer {
        match peer.phase {
            _ if peer.generation != self.mine.generation => Peer::Behind,
            Phase::Live => Peer::Live { finished: peer.tx_shut },
            Phase::Closed if peer.reason == Reason::Normal => Peer::Closed,
            Phase::Closed => Peer::Gone(peer.reason),
            // It was closed before that, and I did not look in between.
            Phase::Free => Peer::Closed,
        }
    }

    /// Whether the peer has opened a use that I have not answered.
    pub(crate) fn is_incoming(&self, peer: State) -> bool {
        !self.i_open
            && self.mine.phase == Phase::Free
            && peer.phase != Phase::Free
            && peer.generation == self.mine.generation.next()
    }

    /// Whether I may open: both free, of one generation.
    pub(crate) fn can_open(&self, peer: State) -> bool {
        self.i_open
            && self.corrupt.is_none()
            && self.mine.phase == Phase::Free
            && peer == State::free(self.mine.generation)
    }

    /// Opens the next use. Both rings must be empty: nobody reads what another connection left.
    pub(crate) fn open(&mut self, view: &View<'_, impl Words>, kind: Kind, port: u32) -> Result<(), Corrupt> {
        self.begin(view, self.mine.generation.next(), kind, port)
    }

    /// Answers the use that the peer opened.
    pub(crate) fn accept(&mut self, view: &View<'_, impl Words>, peer: State) -> Result<(), Corrupt> {
        self.begin(view, peer.generation, peer.kind, peer.port)
    }

    fn begin(
        &mut self,
        view: &View<'_, impl Words>,
        generation: Generation,
        kind: Kind,
        port: u32,
    ) -> Result<(), Corrupt> {
        let not_empty = |word, value| Corrupt { word, fault: Fault::NotEmpty, value };
        let freed = self.tx.refresh(view)?;
        if freed != self.tx.produced() {
            return Err(not_empty(PeerWord::Freed, freed.0));
        }
        // The acceptor may find the opener's first bytes there already.
        let unread = self.rx.refresh(view)?;
        if self.i_open && unread != 0 {
            return Err(not_empty(PeerWord::Produced, self.rx.taken().plus(unread).0));
        }
        RolledBack::told(view);
        view.keep(RecordWord::SentFrom, self.tx.produced().0);
        view.keep(RecordWord::ReceivedFrom, self.rx.taken().0);
        self.set(view, State::live(generation, kind, port));
        Ok(())
    }

    /// Refuses the use that the peer opened.
    pub(crate) fn refuse(&mut self, view: &View<'_, impl Words>, peer: State) {
        self.set(view, State::live(peer.generation, peer.kind, peer.port).closed(Reason::Refused));
    }

    /// Ends my direction; what is staged is published first, and then final.
    pub(crate) fn shutdown(&mut self, view: &View<'_, impl Words>) {
        let _ = self.tx.publish(view);
        self.set(view, self.mine.shut());
    }

    /// Ends both directions; what is staged is published first. After a reset the peer drops it.
    pub(crate) fn close(&mut self, view: &View<'_, impl Words>, reason: Reason) {
        if self.mine.phase == Phase::Live {
            let _ = self.tx.publish(view);
            self.set(view, self.mine.closed(reason));
        }
    }

    /// Once both sides have closed: drops what nobody will read, and is free for the next use.
    /// Returns whether that happened. Also passes over a use that the peer opened and gave up before
    /// I answered, when it left nothing to read.
    pub(crate) fn settle(&mut self, view: &View<'_, impl Words>, peer: State) -> Result<bool, Corrupt> {
        let both_closed = self.mine.phase == Phase::Closed
            && matches!(self.relate(peer), Peer::Closed | Peer::Gone(_))
            && self.corrupt.is_none();
        let abandoned = self.is_incoming(peer) && peer.phase == Phase::Closed;
        if !both_closed && !abandoned {
            return Ok(false);
        }
        // What somebody wrote, and closed, before it was answered is still to be read.
        let whatever = both_closed || peer.is_reset();
        if !self.rx.discard(view, |unread| whatever || unread == 0)? {
            return Ok(false);
        }
        self.tx.align(view);
        self.set(view, State::free(peer.generation));
        Ok(true)
    }

    /// The peer broke the protocol: remembers it for ever, and closes.
    pub(crate) fn give_up(&mut self, view: &View<'_, impl Words>, corrupt: Corrupt) {
        self.corrupt = Some(corrupt);
        view.keep(RecordWord::CorruptValue, corrupt.value);
        view.keep(RecordWord::Corrupt, corrupt.mark());
        if self.mine.phase == Phase::Live {
            self.set(view, self.mine.closed(Reason::Corrupt));
        }
    }

    /// Position at which this use began, of my bytes and of the peer's.
    pub(crate) fn began(view: &View<'_, impl Words>) -> (Position, Position) {
        (Position(view.kept(RecordWord::SentFrom)), Position(view.kept(RecordWord::ReceivedFrom)))
    }

    fn set(&mut self, view: &View<'_, impl Words>, state: State) {
        self.mine = state;
        self.judged = None;
        view.publish(RecordWord::State, state.encode());
    }
}
