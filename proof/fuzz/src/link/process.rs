//! One side's process: its core, and those who own channels in it.

use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use throughline::core::{Bell, Core, OpenOptions, Policy, Use};
use throughline::{Error, Event, Identity, Kind, Rung};
use throughline_ring::{LinkWord, Reason};

use super::model::Model;
use super::world::{Memory, RING};
use super::{Act, Who, publish, take};

/// Pieces longer than this fail as this one does.
const LONGEST: usize = RING as usize + 20;
/// Looks of a side that finds something each time, with nobody doing anything: it is kept busy.
const MOST_LOOKS: usize = 40;

/// Rings nobody: whoever is to look is made to.
#[derive(Debug)]
pub(super) struct NoBell;

impl Bell for NoBell {
    fn ring(&self) -> Rung {
        Rung::Accepted
    }
}

/// A side's process.
pub(super) struct Process {
    pub(super) core: Core<Memory, NoBell>,
    /// What its owners opened, accepted and adopted.
    pub(super) handles: Vec<(Use, Kind)>,
}

/// Nobody waits: whoever would is asked again.
pub(super) fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Process {
    fn handle(&self, channel: u8) -> Option<(Use, Kind)> {
        let count = self.handles.len().max(1);
        self.handles.get(usize::from(channel) % count).copied()
    }

    pub(super) fn settle(&self) {
        assert!((0..MOST_LOOKS).any(|_| self.core.serve() == 0), "the driver is kept busy");
    }

    /// Nobody is told that a channel is corrupt on which nobody lied.
    pub(super) fn look_at_events(&self, model: &Model) {
        while let Poll::Ready(event) = self.core.poll_event(&mut nobody()) {
            if let Event::Corrupt { channel, why } = event {
                assert!(model.lied.contains(&channel), "channel {channel}, on which nobody lied: {why}");
            }
        }
    }

    pub(super) fn act(&mut self, who: Who, act: Act, model: &mut Model) {
        let handle = |channel| self.handle(channel);
        let core = &self.core;
        match act {
            Act::Open { way, port, waits, expires } => self.open(way.into(), port % 3, waits, expires),
            Act::Accept => self.accept(),
            Act::Send { channel, len, now, waits } => self.send(who, channel, (len, now, waits), model),
            Act::Receive { channel, len, peek, waits } => {
                self.receive(who, channel, (len, peek, waits), model);
            }
            Act::Commit { channel, bytes } => self.commit(who, channel, bytes, model),
            Act::Flush(channel) => drop(handle(channel).map(|(this, _)| core.poll_flush(this, &mut nobody()))),
            Act::Shut(channel) => drop(handle(channel).map(|(this, _)| core.poll_shutdown(this, &mut nobody()))),
            Act::Answer(channel) => drop(handle(channel).map(|(this, _)| core.poll_answer(this, &mut nobody()))),
            Act::Close { channel, reset } => {
                let reason = if reset { Reason::Reset } else { Reason::Normal };
                if let Some((this, _)) = handle(channel) {
                    core.close(this, reason);
                }
            }
            Act::Release(channel) => {
                if let Some((this, _)) = handle(channel) {
                    core.release(this);
                }
            }
            Act::Adopt(channel) => self.adopt(channel),
            Act::Listen(port) => drop(core.listen((port % 3).into())),
            Act::Unlisten(port) => core.unlisten((port % 3).into()),
            Act::Serve => drop(core.serve()),
            Act::Sleep => {
                assert!(!core.fall_asleep() || core.serve() == 0, "asleep with work to do");
                core.wake_up();
            }
            Act::Expire => drop(core.expire(Instant::now() + Duration::from_hours(1))),
            Act::List => drop(core.channels()),
            Act::Freeze => core.freeze(),
            Act::Thaw => core.thaw(),
            Act::Anew => {}
            Act::Say { word, value } => self.say(who, word, value),
        }
    }

    fn open(&mut self, kind: Kind, port: u8, waits: bool, expires: bool) {
        let unadopted = expires.then_some(Duration::from_millis(1));
        let policy = Policy { unadopted, ..Policy::default() };
        let options = OpenOptions { port: port.into(), kind, ring_bytes: 0, label: [7; 32], policy };
        let opened = if waits {
            self.core.poll_open(&options, &mut nobody())
        } else {
            Poll::Ready(self.core.try_open(&options))
        };
        if let Poll::Ready(Ok(this)) = opened {
            self.handles.push((this, kind));
        }
    }

    fn accept(&mut self) {
        for port in 0..3 {
            if let Poll::Ready(Ok(accepted)) = self.core.poll_accept(port, &mut nobody()) {
                self.handles.push(accepted);
            }
        }
    }

    fn adopt(&mut self, channel: u8) {
        let channels = self.core.channels();
        let Some(channel) = channels.get(usize::from(channel) % channels.len().max(1)) else { return };
        if let Ok(adopted) = self.core.adopt(channel.id)
            && !self.handles.contains(&adopted)
        {
            self.handles.push(adopted);
        }
    }

    fn send(&self, who: Who, channel: u8, (len, now, waits): (u16, bool, bool), model: &mut Model) {
        let Some((this, kind)) = self.handle(channel) else { return };
        let piece = model.bytes.take(usize::from(len) % LONGEST);
        let mut cx = nobody();
        let cx = waits.then_some(&mut cx);
        let sent = match kind {
            Kind::Message => self.core.poll_send(this, publish(now), cx, &piece).map_ok(|()| piece.len()),
            Kind::Stream => self.core.poll_write(this, publish(now), cx, &piece),
        };
        match sent {
            Poll::Ready(Ok(count)) => model.sent(this, who, kind, &piece[..count]),
            Poll::Ready(Err(error)) => Self::failed(this, error, model),
            Poll::Pending => {}
        }
    }

    /// Whether something came.
    fn receive(&self, who: Who, channel: u8, (len, peek, waits): (u16, bool, bool), model: &mut Model) -> bool {
        let Some((this, kind)) = self.handle(channel) else { return false };
        let mut cx = nobody();
        let cx = waits.then_some(&mut cx);
        let mut out = vec![0; usize::from(len) % LONGEST];
        let received = match kind {
            Kind::Message => self.core.poll_recv(this, take(peek), cx, &mut out).map_ok(|any| any.then_some(out.len())),
            Kind::Stream => {
                let any = |count| (count > 0).then_some(count);
                self.core.poll_read(this, take(peek), cx, &mut out).map_ok(any)
            }
        };
        match received {
            Poll::Ready(Ok(Some(count))) if kind == Kind::Message => model.received(this, who, &out[..count], !peek),
            Poll::Ready(Ok(Some(count))) => model.read(this, who, &out[..count], !peek),
            Poll::Ready(Ok(None)) if kind == Kind::Message || !out.is_empty() => model.complete(this, who),
            Poll::Ready(Err(error)) => Self::failed(this, error, model),
            _ => {}
        }
        matches!(received, Poll::Ready(Ok(Some(_))))
    }

    fn commit(&self, who: Who, channel: u8, bytes: Option<u8>, model: &mut Model) {
        let Some((this, kind)) = self.handle(channel) else { return };
        // A message goes whole.
        let bytes = bytes.filter(|_| kind == Kind::Stream).map(u64::from);
        let before = self.core.channel(this.slot).map_or(0, |channel| channel.received);
        let committed = self.core.poll_commit(this, bytes, &mut nobody());
        if committed == Poll::Ready(Ok(())) {
            let after = self.core.channel(this.slot).map_or(0, |channel| channel.received);
            if after > before {
                model.consumed(this, who, kind, (after - before) as usize);
            }
        }
    }

    /// Nothing of this may happen where nobody lied.
    fn failed(this: Use, error: Error, model: &Model) {
        let corrupt = matches!(error, Error::Corrupt(_));
        assert!(!corrupt || model.lied.contains(&this.slot), "channel {}: {error}", this.slot);
    }

    pub(super) fn receive_all(&self, who: Who, channel: u8, model: &mut Model) {
        let Some((this, _)) = self.handle(channel) else { return };
        while self.receive(who, channel, (4096, false, false), model) {}
        // Whoever can still receive has now received all.
        let again = self.core.poll_flush(this, &mut nobody());
        if again == Poll::Ready(Ok(())) && !self.is_reset(this) {
            model.complete(this, who);
        }
    }

    /// Whether what was sent to this side is to be dropped.
    fn is_reset(&self, this: Use) -> bool {
        matches!(self.core.poll_answer(this, &mut nobody()), Poll::Ready(Err(_)))
    }

    fn say(&self, who: Who, word: u8, value: u8) {
        let words = [LinkWord::Identity, LinkWord::Quiesce, LinkWord::Agent];
        match (who, word % 6) {
            (Who::Host, 0) => {
                let seq = self.core.last_identity() + 1;
                let entropy = [value; 64];
                self.core.write_identity(&Identity {
                    seq,
                    epoch: 1,
                    parent: 2,
                    index: 3,
                    clock_ns: 4,
                    flags: 0,
                    entropy,
                    hostname: None,
                });
            }
            (Who::Host, 1) => self.core.erase_entropy(),
            (Who::Guest, 0 | 1) => drop(self.core.read_identity()),
            (_, 2) => drop(self.core.poll_link(&mut nobody(), |core| (core.peer_word(words[0]) == 9).then_some(()))),
            (_, word) => self.core.publish_link(words[usize::from(word) % 3], value.into()),
        }
    }
}
