//! Calls that concern the sandbox as a whole.

use std::path::Path;

use throughline::{ChannelInfo, Kind as Carries};
use throughline_wire::port;

use super::{End, Shared};
use crate::api::{Answer, Call, ChannelEntry, CommandInfo, Failure, Kind, Snapped};

/// Digits of a command's id, at the beginning of its channel's label.
pub(super) const ID_DIGITS: usize = 8;

impl Shared {
    /// Carries a call out. Those of a session's own do not come here.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Failure> {
        match call {
            Call::Commands => Ok(Answer::Commands { commands: self.commands() }),
            Call::Channels => {
                let channels = self.sandbox.link().channels();
                Ok(Answer::Channels { channels: channels.into_iter().map(entry).collect() })
            }
            Call::Record => Ok(Answer::Record { record: Box::new(self.sandbox.record()) }),
            Call::Pause => self.sandbox.pause().await.map(|()| Answer::Done).map_err(Failure::from),
            Call::Resume => self.sandbox.resume().await.map(|()| Answer::Done).map_err(Failure::from),
            Call::Snapshot { place, stop, unquiesced } => self.snapshot(&place, stop, unquiesced).await,
            Call::Kill => {
                self.sandbox.end();
                self.exited().await
            }
            Call::Wait => self.exited().await,
            Call::Hello { .. } | Call::Link | Call::Open(_) | Call::Pair(_) => {
                Err(Failure { kind: Kind::Misuse, message: "this call comes too early or too late".to_owned() })
            }
        }
    }

    /// Why nothing can be done with the machine any more, once it has died and another one takes its place.
    pub(super) fn lost(&self) -> Option<Failure> {
        let message = "the machine died, and goes back to its last checkpoint: ask again".to_owned();
        let lost = matches!(*self.end.borrow(), Some(End::Lost));
        lost.then_some(Failure { kind: Kind::RolledBack, message })
    }

    async fn exited(&self) -> Result<Answer, Failure> {
        let mut end = self.end.subscribe();
        let known = end.wait_for(Option::is_some).await;
        match known.ok().and_then(|end| end.clone()) {
            Some(End::Exited(exit)) => Ok(Answer::Exited { exit }),
            // Whoever waits goes on waiting: his connection ends, and he asks again.
            Some(End::Lost) => std::future::pending().await,
            None => Err(Failure { kind: Kind::Failed, message: "the shim is ending".to_owned() }),
        }
    }

    async fn snapshot(&self, place: &Path, stop: bool, unquiesced: bool) -> Result<Answer, Failure> {
        let mut snapshot = self.sandbox.snapshot_with(place);
        if unquiesced {
            snapshot = snapshot.allow_unquiesced();
        }
        let taken = if stop { snapshot.take_and_stop().await } else { snapshot.take().await };
        let (_, report) = taken.map_err(Failure::from)?;
        Ok(Answer::Snapped(Snapped {
            stand_still_ms: report.stand_still.as_secs_f64() * 1e3,
            total_ms: report.total.as_secs_f64() * 1e3,
            carried_bytes: report.carried.to_guest + report.carried.to_host,
            quiesced: report.quiesced,
        }))
    }

    fn commands(&self) -> Vec<CommandInfo> {
        let channels = self.sandbox.link().channels();
        let commands = channels.into_iter().filter(|channel| channel.port == port::EXEC && channel.opened_here);
        commands.map(|channel| command(&channel)).collect()
    }
}

fn command(channel: &ChannelInfo) -> CommandInfo {
    let (id, label) = channel.label.split_at_checked(ID_DIGITS).unwrap_or((&channel.label, ""));
    CommandInfo {
        id: id.to_owned(),
        label: label.trim_start().to_owned(),
        attached: channel.held,
        unread: channel.unread,
    }
}

fn entry(channel: ChannelInfo) -> ChannelEntry {
    ChannelEntry {
        slot: channel.id.slot,
        generation: channel.id.generation,
        port: channel.port,
        kind: if channel.kind == Carries::Message { "messages" } else { "stream" }.to_owned(),
        label: channel.label,
        held: channel.held,
        sent: channel.sent,
        sent_unread: channel.sent_unread,
        received: channel.received,
        unread: channel.unread,
        corrupt: channel.corrupt.map(|corrupt| corrupt.to_string()),
    }
}
