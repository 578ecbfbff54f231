//! Serving one command on one channel; see [`throughline_wire::exec`] for what is promised.

mod files;
mod session;
mod stdin;

use std::io;
use std::path::PathBuf;

use serde_bytes::ByteBuf;
use throughline_wire::exec::{Event, Failure, FailureKind, Request, Start};
use throughline_wire::{decode, encode};

use crate::accounts::{AccountError, Accounts};
use crate::channel::{Inbox, Outbox};
use crate::gate::Gate;
use crate::reaper::Reaper;
use crate::spawn::{Files, Spawner, Spec};
use session::Session;

/// What all commands share.
#[derive(Debug)]
pub struct Executor {
    /// Starts processes.
    pub spawner: Spawner,
    /// Collects them.
    pub reaper: Reaper,
    /// Holds them back.
    pub gate: Gate,
    /// Holds back what they have printed, while secrets may not be in place: a pipe may hold pages of their files, which
    /// have no bytes then.
    pub output: Gate,
    /// Where `passwd` and `group` lie: `/etc`.
    pub etc: PathBuf,
}

/// Why a command's channel ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The channel failed, or the host closed it.
    #[error("the channel of a command ended: {0}")]
    Channel(#[from] io::Error),
    /// The host broke the rules; it was told so.
    #[error("a command was ended: {0}")]
    Protocol(String),
}

impl Executor {
    /// Serves one channel from its first message to its end. On an error the command is killed, and the caller
    /// drops the channel.
    pub async fn serve(&self, inbox: impl Inbox, outbox: impl Outbox) -> Result<(), ExecError> {
        self.serve_from(&self.spawner, [&self.gate, &self.output], inbox, outbox).await
    }

    /// The same with another group for its processes, behind other gates.
    pub(crate) async fn serve_from(
        &self,
        spawner: &Spawner,
        [gate, output]: [&Gate; 2],
        mut inbox: impl Inbox,
        mut outbox: impl Outbox,
    ) -> Result<(), ExecError> {
        let started = match first(&mut inbox).await? {
            Ok(start) => {
                let spec = self.spec(start);
                // Nothing awaits between the gate and the adoption of the child.
                gate.opened().await;
                spec.and_then(|spec| spawner.spawn(&spec))
            }
            Err(failure) => Err(failure),
        };
        match started {
            Ok(process) => Session::new(self, process, outbox, output)?.run(inbox).await,
            Err(failure) => {
                send(&mut outbox, &Event::Failed(failure)).await?;
                Ok(outbox.finish().await?)
            }
        }
    }

    fn spec(&self, start: Start) -> Result<Spec, Failure> {
        let account =
            Accounts::read(&self.etc).and_then(|accounts| accounts.find(start.user.as_deref())).map_err(|error| {
                Failure {
                    kind: match error {
                        AccountError::Read { .. } => FailureKind::Other,
                        AccountError::NoUser(_) | AccountError::NoGroup(_) => FailureKind::NoSuchUser,
                    },
                    message: error.to_string(),
                }
            })?;
        Ok(Spec {
            argv: start.argv.into_iter().map(ByteBuf::into_vec).collect(),
            env: start.env.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).collect(),
            cwd: start.cwd.map(ByteBuf::into_vec),
            account,
            files: match start.tty {
                Some(size) => Files::Terminal(size),
                None => Files::Pipes { stdin: start.stdin },
            },
            of_user: true,
        })
    }
}

/// The request that a channel must begin with.
async fn first(inbox: &mut impl Inbox) -> io::Result<Result<Start, Failure>> {
    let Some(message) = inbox.recv().await? else {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was closed before a command came"));
    };
    let wrong = |message: String| Failure { kind: FailureKind::Protocol, message };
    Ok(match decode(&message) {
        Ok(Request::Start(start)) => Ok(start),
        Ok(_) => Err(wrong("the first message of an exec channel must be Start".into())),
        Err(error) => Err(wrong(error.to_string())),
    })
}

async fn send(outbox: &mut impl Outbox, event: &Event<'_>) -> io::Result<()> {
    outbox.send(&encode(event).map_err(io::Error::other)?).await
}
