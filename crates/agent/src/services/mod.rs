//! The services on their ports: each channel is a task of its own.

mod echo;
mod files;
mod info;
mod power;
mod report;
mod secrets;
mod sequence;
mod ticker;

use std::io;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use throughline::{Channel, Error, Link, Listener, Messages};
use throughline_wire::{Message, decode, encode, port};
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::agent::Agent;

pub use sequence::Ledger;

/// Why a channel of a service ended early. Nobody is told: the host sees its channel close.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error(transparent)]
    Channel(#[from] Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Exec(#[from] crate::exec::ExecError),
    #[error(transparent)]
    Decode(#[from] throughline_wire::DecodeError),
    #[error(transparent)]
    Encode(#[from] throughline_wire::EncodeError),
    #[error(transparent)]
    Params(#[from] throughline_wire::sequence::ParamsError),
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
}

/// How long a port pauses after an accept that failed, so that a lasting reason does not occupy the guest.
const PAUSE: Duration = Duration::from_millis(20);

/// Operations between two looks at everybody else's needs, for tasks that might never have to wait.
const BURST: u32 = 64;

/// Lets the others run once in a while.
#[derive(Debug, Default)]
struct Turn(u32);

impl Turn {
    async fn next(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(BURST) {
            tokio::task::yield_now().await;
        }
    }
}

/// Takes the listeners of all ports but the secrets', which the link's builder was given.
pub(crate) fn listeners(link: &Link) -> Result<Vec<Listener>, Error> {
    port::ALL.iter().filter(|port| **port != port::SECRETS).map(|&port| link.listener(port)).collect()
}

/// Accepts on one port for ever.
pub(crate) async fn serve(agent: Rc<Agent>, link: Link, mut listener: Listener) {
    let port = listener.port();
    loop {
        match listener.accept().await {
            Ok(channel) => {
                let (agent, link) = (Rc::clone(&agent), link.clone());
                spawn_local(async move {
                    if handle(&agent, &link, port, channel).await.is_err() {
                        agent.failed_channels.set(agent.failed_channels.get() + 1);
                    }
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn handle(agent: &Agent, link: &Link, port: u32, channel: Channel) -> Result<(), ServiceError> {
    match (port, channel) {
        (port::ECHO, Channel::Stream(stream)) => echo::stream(stream).await,
        (port::SEQUENCE, Channel::Stream(stream)) => sequence::stream(&agent.ledger, stream).await,
        (port::EXEC, Channel::Messages(messages)) => {
            let (sender, receiver) = messages.into_split();
            let _counted = Counted::new(&agent.commands);
            Ok(agent.executor.serve(receiver, sender).await?)
        }
        (port::ECHO, Channel::Messages(messages)) => echo::messages(messages).await,
        (port::ECHO_POLL, Channel::Messages(messages)) => echo::polled(messages).await,
        (port::SEQUENCE, Channel::Messages(messages)) => sequence::messages(&agent.ledger, messages).await,
        (port::REPORT, Channel::Messages(messages)) => report::serve(&agent.ledger, messages).await,
        (port::TICKER, Channel::Messages(messages)) => ticker::serve(messages).await,
        (port::FILES, Channel::Messages(messages)) => files::serve(agent, messages).await,
        (port::INFO, Channel::Messages(messages)) => info::serve(agent, link, messages).await,
        (port::SECRETS, Channel::Messages(messages)) => secrets::serve(&agent.secrets, messages).await,
        (port::POWER, Channel::Messages(messages)) => power::serve(agent, messages).await,
        // A kind that the port does not serve: the channel closes.
        (_, Channel::Stream(_) | Channel::Messages(_)) => Ok(()),
    }
}

/// One more, until it is dropped.
struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Receives one typed message; `None` once the peer has finished.
async fn recv<M: Message + DeserializeOwned>(messages: &mut Messages) -> Result<Option<M>, ServiceError> {
    let Some(bytes) = messages.recv().await? else { return Ok(None) };
    Ok(Some(decode(&bytes)?))
}

/// Sends one typed message.
async fn send<M: Message + Serialize>(messages: &mut Messages, message: &M) -> Result<(), ServiceError> {
    Ok(messages.send(&encode(message)?).await?)
}
