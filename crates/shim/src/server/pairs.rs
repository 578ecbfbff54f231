//! Channels of the guest carried to a client's link, and back.

use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use throughline::{ChannelId, ChannelInfo, Doorbell, Ended, Link, Region, Relay};
use throughline_sandbox::files::ends_with_its_owner;
use throughline_wire::port;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::calls::ID_DIGITS;
use super::session::LAST_READS;
use crate::api::{Failure, Kind, Open, Opened, PORT, Pair, Reply, RolledBack};
use crate::line::Outgoing;

/// How long a client's open may take to be seen.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long the end of a client is looked at, once it has gone, for what it closed before.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// Between two looks whether a client's ring has what a dead machine left.
const LOOK: Duration = Duration::from_millis(5);

/// Why a session's pairs are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The client has gone, or the machine has ended.
    Ended,
    /// The machine's timeline was lost.
    Lost,
}

/// A client's link.
#[derive(Debug)]
pub(super) struct ClientLink {
    link: Link,
    /// Tells that a channel was accepted.
    accepted: Arc<Notify>,
    accepting: AbortHandle,
}

impl Drop for ClientLink {
    fn drop(&mut self) {
        // It holds the link, which would outlive its client.
        self.accepting.abort();
    }
}

impl ClientLink {
    /// Attaches to the memory that a client handed over: region, what wakes the client, what wakes the shim.
    pub(super) fn attach(descriptors: Vec<OwnedFd>) -> Result<Self, Failure> {
        let misuse = |message: String| Failure { kind: Kind::Misuse, message };
        let [region, ring, wake] = <[OwnedFd; 3]>::try_from(descriptors)
            .map_err(|found| misuse(format!("a link has 3 descriptors, and {} came", found.len())))?;
        let region = Region::from_fd(region).map_err(|error| misuse(error.to_string()))?;
        let doorbell = Doorbell::eventfds(ring, wake).map_err(|error| misuse(error.to_string()))?;
        let link = Link::guest(region).doorbell(doorbell).listen(PORT).attach();
        let link = link.map_err(|error| misuse(error.to_string()))?;
        let accepted = Arc::new(Notify::new());
        let accepting = tokio::spawn(accept(link.clone(), accepted.clone())).abort_handle();
        Ok(Self { link, accepted, accepting })
    }

    /// Resets the client's channel of a pair that cannot be: nothing will come of it.
    pub(super) async fn abort(&self, pair: &Pair) {
        if let Ok(channel) = self.channel(pair).await {
            abort(channel);
        }
    }

    /// The client's channel, once it is there.
    async fn channel(&self, pair: &Pair) -> Result<throughline::Channel, Failure> {
        let id = ChannelId { timeline: self.link.timeline(), slot: pair.slot, generation: pair.generation };
        let found = async {
            loop {
                let changed = self.accepted.notified();
                if let Ok(channel) = self.link.adopt(id) {
                    return channel;
                }
                changed.await;
            }
        };
        let missing = || Failure { kind: Kind::Missing, message: "the client's channel was not opened".to_owned() };
        timeout(DEADLINE, found).await.map_err(|_| missing())
    }
}

/// Where a channel stands, which is let go of as it is.
fn looked_at(channel: throughline::Channel) -> Option<ChannelInfo> {
    let info = match &channel {
        throughline::Channel::Stream(stream) => stream.info().ok(),
        throughline::Channel::Messages(messages) => messages.info().ok(),
    };
    match channel {
        throughline::Channel::Stream(stream) => stream.release(),
        throughline::Channel::Messages(messages) => messages.release(),
    };
    info
}

/// Resets a channel.
fn abort(channel: throughline::Channel) {
    match channel {
        throughline::Channel::Stream(stream) => stream.abort(),
        throughline::Channel::Messages(messages) => messages.abort(),
    }
}

/// Accepts whatever the client opens; a pair adopts it.
async fn accept(link: Link, accepted: Arc<Notify>) {
    let Ok(mut listener) = link.listener(PORT) else { return };
    while let Ok(channel) = listener.accept().await {
        match channel {
            throughline::Channel::Stream(stream) => drop(stream.release()),
            throughline::Channel::Messages(messages) => drop(messages.release()),
        }
        accepted.notify_waiters();
    }
}

impl Shared {
    /// The guest's channel of an id.
    fn of(&self, id: &str) -> Option<ChannelInfo> {
        let channels = self.sandbox.link().channels();
        channels.into_iter().find(|channel| channel.opened_here && channel.label.get(..ID_DIGITS) == Some(id))
    }

    /// Opens a channel to the guest, unless it is there.
    pub(super) async fn open(&self, open: Open) -> Result<Opened, Failure> {
        if open.id.len() != ID_DIGITS || !open.id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(Failure { kind: Kind::Misuse, message: format!("{:?} is no id of a channel", open.id) });
        }
        if let Some(info) = self.of(&open.id) {
            return opened(&info);
        }
        let label = format!("{} {}", open.id, open.label);
        let connect = self.sandbox.link().connect_with(open.port).unanswered();
        let connect = connect.label(&label).ring_bytes(open.ring_bytes);
        let connect = if open.port == port::FILES { ends_with_its_owner(connect) } else { connect };
        let failed = |error: throughline::Error| Failure { kind: Kind::Failed, message: error.to_string() };
        if open.messages {
            connect.messages().await.map_err(failed)?.release();
        } else {
            connect.stream().await.map_err(failed)?.release();
        }
        self.found(&open.id)
    }

    /// Resets the guest's channel of an id, unless somebody has it, or it has ended.
    pub(super) fn reset(&self, id: &str) {
        let channel = self.of(id).and_then(|info| self.sandbox.link().adopt(info.id).ok());
        channel.into_iter().for_each(abort);
    }

    /// Where the channel of an id stands.
    pub(super) fn found(&self, id: &str) -> Result<Opened, Failure> {
        let missing = || Failure {
            kind: Kind::Missing,
            message: format!("there is no command {id:?}: it has ended and everything of it was read, or it never was"),
        };
        opened(&self.of(id).ok_or_else(missing)?)
    }

    /// What became of a pair of a timeline that was lost; `None` where it belongs to the one that runs.
    pub(super) async fn rolled_back(&self, client: &ClientLink, pair: &Pair) -> Option<RolledBack> {
        if pair.timeline == self.sandbox.link().timeline() {
            return None;
        }
        let gone = RolledBack { received: 0, sent: 0, gone: true };
        let Some(channel) = self.of(&pair.id) else { return Some(gone) };
        // How far the client has come, which is more than the lost timeline knows of.
        let below = client.channel(pair).await.ok().and_then(looked_at);
        let came = below.map_or((pair.received, pair.sent), |below| {
            let received = below.sent - below.sent_unread - below.sent_from;
            (pair.received + received, pair.sent + (below.received + below.unread - below.received_from))
        });
        let undone = |came: u64, to: u64| came.saturating_sub(to);
        Some(RolledBack { received: undone(came.0, channel.received), sent: undone(came.1, channel.sent), gone: false })
    }

    /// Pairs the guest's channel with the client's.
    pub(super) async fn pair(&self, client: &ClientLink, pair: &Pair) -> Result<Relay, Failure> {
        let id = self.found(&pair.id).and_then(|_| {
            self.of(&pair.id).ok_or_else(|| Failure { kind: Kind::Missing, message: "it has just ended".to_owned() })
        })?;
        let failed = |error: throughline::Error| Failure { kind: Kind::Failed, message: error.to_string() };
        let below = client.channel(pair).await?;
        let above = self.sandbox.link().adopt(id.id).map_err(|error| Failure {
            kind: if error == throughline::AdoptError::Held { Kind::Taken } else { Kind::Missing },
            message: format!("command {:?}: {error}", pair.id),
        })?;
        let relay = Relay::new(above, below, pair.began()).map_err(failed)?;
        Ok(if pair.keep { relay.keep() } else { relay })
    }
}

fn opened(info: &ChannelInfo) -> Result<Opened, Failure> {
    if info.held {
        let message = "another client follows this command, and one at a time can: end that one first".to_owned();
        return Err(Failure { kind: Kind::Taken, message });
    }
    Ok(Opened {
        timeline: info.id.timeline,
        received: info.received,
        sent: info.sent,
        ring_bytes: info.ring_bytes,
        messages: info.kind == throughline::Kind::Message,
    })
}

/// Carries a dead machine's last bytes until the client's own ring has them; `None` where neither ended the channel.
async fn last_reads(relay: &Relay) -> Option<Result<Ended, throughline::Error>> {
    let mut run = pin!(relay.run());
    while relay.pending() > 0 {
        tokio::select! {
            ended = &mut run => return Some(ended),
            () = sleep(LOOK) => {}
        }
    }
    None
}

/// Whether nobody can go on with a channel whose client has gone: it had not come to using it, so that nobody else knows
/// of it; or it copied files, of which nobody else knows how far they are.
fn is_useless(relay: &Relay) -> bool {
    relay.upstream().is_ok_and(|above| {
        let silent = above.sent == above.sent_from && above.received == above.received_from && above.unread == 0;
        silent || above.port == port::FILES
    })
}

/// Carries a pair until it ends, or its client has gone.
pub(super) async fn carry(relay: Relay, pair: Pair, outgoing: Outgoing, mut over: watch::Receiver<Option<Over>>) {
    let ended = tokio::select! {
        ended = relay.run() => Ok(ended),
        over = over.wait_for(Option::is_some) => Err(over.ok().and_then(|over| *over)),
    };
    let ended = match ended {
        Ok(ended) => Some(ended),
        // The client pairs its channel anew, and is told then.
        Err(Some(Over::Lost)) => return relay.release(),
        // It may have closed the channel before it went.
        Err(_) if outgoing.has_gone() => match timeout(LAST_LOOK, relay.run()).await {
            // A guest that stands still has not read the last words.
            Err(_) => timeout(Duration::ZERO, relay.closed()).await.ok().map(Ok),
            ended => ended.ok(),
        },
        // The machine has: what it said last is passed on. As a rule that was done before; on a busy host it takes its time.
        Err(_) => timeout(LAST_READS, last_reads(&relay)).await.ok().flatten(),
    };
    match ended {
        Some(Ok(Ended::Upstream)) => relay.close(),
        Some(Ok(Ended::Downstream)) if !pair.keep => relay.close(),
        Some(Ok(Ended::Reset)) => relay.abort(),
        Some(Ok(Ended::Downstream)) | None if outgoing.has_gone() && is_useless(&relay) => relay.abort(),
        Some(Ok(Ended::Downstream)) | None => {
            // What it consumed is gone, the rest is for the next one.
            if let Err(error) = relay.settle().await {
                tracing::debug!(id = pair.id, %error, "nothing is left to settle");
            }
            relay.detach();
        }
        Some(Err(error)) => {
            tracing::debug!(id = pair.id, %error, "the guest's channel ended early");
            relay.abort();
        }
    }
    // A client that has gone need not know.
    let _ = outgoing.send(&Reply::Unpaired(pair.id, pair.slot, pair.generation)).await;
}
