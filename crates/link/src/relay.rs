//! Carrying one channel's bytes on to another channel, so that whoever carries them may be killed at any moment.
//!
//! ```text
//!   upstream ──► look ahead ──► send ──► downstream
//!       ▲                                    │
//!       └──────── consume ◄──── freed ◄──────┘
//! ```
//!
//! Bytes are consumed upstream only once they were consumed downstream, and every message (or piece of a stream)
//! takes as many bytes in one ring as in the other. So the two positions of a byte differ by what they differed by
//! when the carrying began, and a successor finds in the rings how far its predecessor came: nothing is lost and
//! nothing doubled, and nothing is to be written down.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use throughline_ring::{Kind, Reason};

use crate::core::Publish;
use crate::handle::Handle;
use crate::link::Channel;
use crate::{ChannelInfo, Error};

/// How long downstream's last words may take on their way up, once it has closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where the carrying of an upstream channel began: positions in it. A successor must be given the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Began {
    /// Of the peer's bytes: the reader's position.
    pub received: u64,
    /// Of this side's bytes.
    pub sent: u64,
}

impl Began {
    /// Here and now.
    pub fn now(upstream: &ChannelInfo) -> Self {
        Self { received: upstream.received, sent: upstream.sent }
    }
}

/// Which of the two channels ended the carrying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Upstream's peer has finished or closed, and downstream has consumed everything.
    Upstream,
    /// Downstream's peer has closed.
    Downstream,
    /// Downstream's peer has reset: what it said, and upstream's peer has not read, is to be dropped.
    Reset,
}

/// Carries an upstream channel's bytes to a downstream one, and back.
#[derive(Debug)]
pub struct Relay {
    up: Arc<Handle>,
    down: Arc<Handle>,
    began: Began,
    /// Whether upstream is to outlive what downstream's peer says.
    kept: bool,
}

/// Why one of the ways stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Everything that there was has arrived, and was consumed.
    From,
    /// Nobody reads it any more.
    To,
}

/// The same before it is known whether it is an error.
enum Halt {
    From(Error),
    To,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::From(error)
    }
}

/// One of the two ways.
struct Way<'a> {
    from: &'a Handle,
    to: &'a Handle,
    /// Position in `from` that stands for `to_began` in `to`.
    from_began: u64,
    to_began: u64,
    /// Whether `to` is told that `from` has ended.
    tells: bool,
}

fn handle_of(channel: Channel) -> Arc<Handle> {
    match channel {
        Channel::Stream(stream) => stream.reader.0,
        Channel::Messages(messages) => messages.receiver.0,
    }
}

impl Relay {
    /// Pairs two channels of one kind. `downstream` carries nothing else from its opening on.
    ///
    /// # Errors
    /// [`Error::Kind`] where one carries messages and the other a stream; [`Error::TooLong`] where downstream's ring
    /// is shorter than upstream's, so that a message might not fit.
    pub fn new(upstream: Channel, downstream: Channel, began: Began) -> Result<Self, Error> {
        let (up, down) = (handle_of(upstream), handle_of(downstream));
        let (above, below) = (up.info()?, down.info()?);
        if above.kind != below.kind {
            return Err(Error::Kind(above.kind));
        }
        if below.ring_bytes != above.ring_bytes {
            return Err(Error::TooLong { len: above.ring_bytes as usize, max: below.ring_bytes as usize });
        }
        Ok(Self { up, down, began, kept: false })
    }

    /// Keeps the end of what downstream's peer says from upstream: whoever comes after it may have more to say.
    #[must_use]
    pub fn keep(mut self) -> Self {
        self.kept = true;
        self
    }

    /// Carries until one of the channels has ended, and what was on its way has arrived. Cancel-safe: to go on, call
    /// it again.
    ///
    /// # Errors
    /// Upstream was reset, refused or given up: downstream is then to be [reset](Self::abort).
    pub async fn run(&self) -> Result<Ended, Error> {
        let (out, back) = self.ways()?;
        let (mut out, mut back) = (pin!(out.carry()), pin!(back.carry()));
        let first = tokio::select! {
            biased;
            stopped = &mut out => stopped?,
            _ = &mut back => match out.await? {
                // Whether downstream reset or finished: it has nothing more to say.
                Stop::From => return Ok(Ended::Upstream),
                Stop::To => return Ok(self.closed().await),
            },
        };
        if first == Stop::From {
            // Half closed: downstream may go on sending.
            let _ = back.await;
            return Ok(Ended::Upstream);
        }
        let closed = self.closed().await;
        if closed == Ended::Downstream {
            // Its last words; upstream's peer need not read them for ever.
            let _ = tokio::time::timeout(LAST_WORDS, back).await;
        }
        Ok(closed)
    }

    /// How downstream's peer has closed, once it has. What it said last may be on its way still. Cancel-safe.
    pub async fn closed(&self) -> Ended {
        let this = self.down.this;
        match self.down.wait(|core, cx| core.poll_over(this, cx)).await {
            Err(Error::Reset) => Ended::Reset,
            Ok(()) | Err(_) => Ended::Downstream,
        }
    }

    fn ways(&self) -> Result<(Way<'_>, Way<'_>), Error> {
        let below = self.down.info()?;
        let Began { received, sent } = self.began;
        let out = Way { from: &self.up, to: &self.down, from_began: received, to_began: below.sent_from, tells: true };
        let back =
            Way { from: &self.down, to: &self.up, from_began: below.received_from, to_began: sent, tells: !self.kept };
        Ok((out, back))
    }

    /// Bytes of upstream's peer that have not been passed on to downstream's ring, which is as long as upstream's: what was
    /// passed on is there to be read, whatever becomes of this.
    pub fn pending(&self) -> u64 {
        let (Ok(above), Ok(below)) = (self.up.info(), self.down.info()) else { return 0 };
        let passed = self.began.received + (below.sent - below.sent_from);
        (above.received + above.unread).saturating_sub(passed)
    }

    /// The upstream channel.
    pub fn upstream(&self) -> Result<ChannelInfo, Error> {
        self.up.info()
    }

    /// Consumes upstream what downstream's peer has consumed, which may have ended without a word.
    pub async fn settle(&self) -> Result<(), Error> {
        let below = self.down.info()?;
        self.ways()?.0.consume(below.sent - below.sent_unread).await
    }

    /// Closes both channels, after what was sent.
    pub fn close(self) {}

    /// Lets go of the upstream channel, which can be adopted again, and closes the other.
    pub fn detach(self) {
        if let Some(up) = Arc::into_inner(self.up) {
            up.release();
        }
    }

    /// Lets go of both without closing them: a successor goes on with what was given to [`new`](Self::new).
    pub fn release(self) {
        for handle in [self.up, self.down] {
            if let Some(handle) = Arc::into_inner(handle) {
                handle.release();
            }
        }
    }

    /// Closes both channels and drops what is on its way.
    pub fn abort(self) {
        self.down.close(Reason::Reset);
        self.up.close(Reason::Reset);
    }
}

impl Way<'_> {
    /// The position in `from` of a position in `to`.
    fn back(&self, to: u64) -> u64 {
        self.from_began + (to - self.to_began)
    }

    async fn carry(&self) -> Result<Stop, Error> {
        let over = self.to.this;
        let passed = tokio::select! {
            biased;
            passed = self.pass_all() => passed,
            _ = self.to.wait(|core, cx| core.poll_over(over, cx)) => Err(Halt::To),
        };
        match passed {
            Ok(()) => Ok(Stop::From),
            Err(Halt::To) => Ok(Stop::To),
            Err(Halt::From(error)) => Err(error),
        }
    }

    async fn pass_all(&self) -> Result<(), Halt> {
        let quarter = self.sent()?.1 / 4;
        let mut bytes = Vec::new();
        loop {
            let (sent, _) = self.sent()?;
            let consumed = self.consumed()?;
            tokio::select! {
                biased;
                ahead = self.ahead(self.back(sent), &mut bytes) => {
                    if !ahead? {
                        break;
                    }
                    self.send(&bytes).await?;
                }
                freed = self.freed(sent.min(consumed + quarter)), if consumed < sent => self.consume(freed?).await?,
            }
        }
        self.finish().await
    }

    /// Downstream has everything: it is told so, and when it has consumed it, upstream is told.
    async fn finish(&self) -> Result<(), Halt> {
        let this = self.to.this;
        if self.tells {
            match self.to.wait(|core, cx| core.poll_shutdown(this, cx)).await {
                Ok(()) | Err(Error::Shut) => {}
                Err(_) => return Err(Halt::To),
            }
        }
        let (sent, _) = self.sent()?;
        // A stream's last bytes, within a word, are freed only with the channel.
        self.freed(sent & !7).await?;
        Ok(self.consume(sent).await?)
    }

    /// End of what was sent to `to`, and the bytes of its ring.
    fn sent(&self) -> Result<(u64, u64), Halt> {
        self.to.info().map(|info| (info.sent, info.ring_bytes)).map_err(|_| Halt::To)
    }

    /// How far `from` has been consumed, as a position of `to`.
    fn consumed(&self) -> Result<u64, Error> {
        Ok(self.to_began + (self.from.info()?.received - self.from_began))
    }

    async fn ahead(&self, from: u64, bytes: &mut Vec<u8>) -> Result<bool, Error> {
        let this = self.from.this;
        let end = self.from.wait(|core, cx| core.poll_ahead(this, from, cx, bytes)).await?;
        Ok(end.is_some())
    }

    async fn send(&self, mut bytes: &[u8]) -> Result<(), Halt> {
        let this = self.to.this;
        if self.from.info()?.kind == Kind::Message {
            let sent = self.to.wait(|core, cx| core.poll_send(this, Publish::Now, Some(cx), bytes));
            return sent.await.map_err(|_| Halt::To);
        }
        while !bytes.is_empty() {
            let count = self.to.wait(|core, cx| core.poll_write(this, Publish::Now, Some(cx), bytes)).await;
            bytes = &bytes[count.map_err(|_| Halt::To)?..];
        }
        Ok(())
    }

    async fn freed(&self, until: u64) -> Result<u64, Halt> {
        let this = self.to.this;
        self.to.wait(|core, cx| core.poll_freed(this, until, cx)).await.map_err(|_| Halt::To)
    }

    async fn consume(&self, freed: u64) -> Result<(), Error> {
        let (this, until) = (self.from.this, self.back(freed));
        if until <= self.from.info()?.received {
            return Ok(());
        }
        self.from.wait(|core, cx| core.poll_consume(this, until, cx)).await
    }
}
