//! A sandbox through its shim.

mod connection;
mod memory;
mod reach;
mod wait;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use throughline::{Kind as Carries, Messages, Stream};
use throughline_sandbox::engine::Exit;
use throughline_sandbox::guest::{Guest, Opening};
use throughline_sandbox::steps::step;
use throughline_sandbox::{Child, Command, Record, SandboxError};
use tokio::sync::oneshot;

use crate::ShimError;
use crate::api::{Answer, Call, ChannelEntry, CommandInfo, Open, Opened, PORT, Pair, RolledBack, Snapped};
use crate::start::Program;
use connection::Connection;
use memory::Memory;

pub use connection::Event;
use wait::Wait;

/// Longest label that is sent, in bytes. A channel keeps less of it.
const MOST_LABEL: usize = 256;

/// A sandbox through its shim. Cheap to clone.
///
/// Whoever kills the shim loses nothing: the next call starts another one, and commands and streams that are open go
/// on at the next byte; an [`Event`] tells.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

struct Inner {
    name: String,
    memory: Arc<Memory>,
    connection: Connection,
    wait: Wait,
}

impl Remote {
    /// Connects to the shim of a sandbox; where it has died, starts another one.
    ///
    /// # Errors
    /// There is no such sandbox, it has ended, or its shim is of another release.
    pub async fn connect(name: &str, program: Program) -> Result<Self, ShimError> {
        let memory = Arc::new(Memory::create()?);
        let connection = Connection::open(name.to_owned(), program, memory.clone()).await?;
        Ok(Self(Arc::new(Inner { name: name.to_owned(), memory, connection, wait: Wait::default() })))
    }

    /// The sandbox's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The next thing that happened to the shim. Cancel-safe; one task at a time gets each.
    pub async fn event(&self) -> Event {
        self.0.connection.event().await
    }

    /// A command to run in the guest. Dropping it kills it; [`guest`](Self::guest) with `keep` has another way.
    pub fn command(&self, program: impl AsRef<[u8]>) -> Command {
        Command::new(self.guest(false), program)
    }

    /// The way to the guest. With `keep`, channels outlive this process, if anything was said on them: they wait to be
    /// attached to.
    pub fn guest(&self, keep: bool) -> Arc<Way> {
        Arc::new(Way { remote: self.clone(), keep, id: std::sync::Mutex::default() })
    }

    /// Goes on with a command of which nobody else follows the events, at the byte where the last one stopped.
    /// Dropping it kills the command; with `keep` it leaves it to the next one. To give up in the middle is to drop it.
    pub async fn attach(&self, id: &str, keep: bool) -> Result<Child, ShimError> {
        let open = Open { id: id.to_owned(), port: 0, messages: true, ring_bytes: 0, label: String::new() };
        let opened = self.opened(open).await?;
        if !opened.messages {
            return Err(ShimError::Channel(throughline::Error::Kind(Carries::Stream)));
        }
        let channel = self.paired(id.to_owned(), opened, keep).await?;
        Ok(Child::adopt(channel.messages()?, self.guest(keep)))
    }

    /// Commands that were started through a shim, and not read to their end. One whose end was read may stay in the
    /// list for the moment that its shim takes to close it.
    pub async fn commands(&self) -> Result<Vec<CommandInfo>, ShimError> {
        match self.call(Call::Commands).await? {
            Answer::Commands { commands } => Ok(commands),
            _ => Err(self.nonsense()),
        }
    }

    /// Every channel between host and guest.
    pub async fn channels(&self) -> Result<Vec<ChannelEntry>, ShimError> {
        match self.call(Call::Channels).await? {
            Answer::Channels { channels } => Ok(channels),
            _ => Err(self.nonsense()),
        }
    }

    /// What is on paper.
    pub async fn record(&self) -> Result<Record, ShimError> {
        match self.call(Call::Record).await? {
            Answer::Record { record } => Ok(*record),
            _ => Err(self.nonsense()),
        }
    }

    /// What became of the channel of an id that has just ended with [`Reset`](throughline::Error::Reset), if that was
    /// because the machine died and went back to its last checkpoint. Waits for the news for a second.
    ///
    /// # Errors
    /// It was because a successor of the shim did not go on with it, and why not.
    pub async fn rolled_back(&self, id: &str) -> Result<Option<RolledBack>, ShimError> {
        self.0.connection.rolled_back(id).await
    }

    /// The shim's process id.
    pub fn shim(&self) -> u32 {
        self.0.connection.shim()
    }

    /// Stops the guest's processors.
    pub async fn pause(&self) -> Result<(), ShimError> {
        self.done(Call::Pause).await
    }

    /// Lets them run.
    pub async fn resume(&self) -> Result<(), ShimError> {
        self.done(Call::Resume).await
    }

    /// Takes a snapshot at an absolute path, where nothing may be yet.
    ///
    /// # Errors
    /// [`Died`](ShimError::Died) where the shim did: the bundle is there, whole, or it is not.
    pub async fn snapshot(&self, place: PathBuf, stop: bool, unquiesced: bool) -> Result<Snapped, ShimError> {
        match self.call(Call::Snapshot { place, stop, unquiesced }).await? {
            Answer::Snapped(snapped) => Ok(snapped),
            _ => Err(self.nonsense()),
        }
    }

    /// Waits until the machine has ended. Cancel-safe.
    pub async fn wait(&self) -> Result<Exit, ShimError> {
        self.exit(self.0.wait.answer(&self.0.connection, &self.0.name).await)
    }

    /// Ends the machine.
    pub async fn kill(&self) -> Result<Exit, ShimError> {
        self.exit(self.call(Call::Kill).await)
    }

    fn exit(&self, answer: Result<Answer, ShimError>) -> Result<Exit, ShimError> {
        match answer {
            Ok(Answer::Exited { exit }) => Ok(exit),
            Ok(_) => Err(self.nonsense()),
            // It ended while nobody looked.
            Err(ShimError::Sandbox(SandboxError::Ended(exit))) => Ok(*exit),
            Err(error) => Err(error),
        }
    }

    async fn done(&self, call: Call) -> Result<(), ShimError> {
        match self.call(call).await? {
            Answer::Done => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    async fn call(&self, call: Call) -> Result<Answer, ShimError> {
        self.0.connection.ask(call).await
    }

    fn nonsense(&self) -> ShimError {
        ShimError::Nonsense(self.0.name.clone())
    }

    async fn opened(&self, open: Open) -> Result<Opened, ShimError> {
        match self.call(Call::Open(open)).await? {
            Answer::Opened(opened) => Ok(opened),
            _ => Err(self.nonsense()),
        }
    }

    /// Opens a channel of the own link, and has the guest's carried to it.
    async fn paired(&self, id: String, opened: Opened, keep: bool) -> Result<throughline::Channel, ShimError> {
        let connect = self.0.memory.link.connect_with(PORT).unanswered().ring_bytes(opened.ring_bytes);
        let channel = if opened.messages {
            throughline::Channel::Messages(connect.messages().await?)
        } else {
            throughline::Channel::Stream(connect.stream().await?)
        };
        let channel_id = match &channel {
            throughline::Channel::Messages(messages) => messages.id(),
            throughline::Channel::Stream(stream) => stream.id(),
        };
        let Opened { timeline, received, sent, .. } = opened;
        let (slot, generation) = (channel_id.slot, channel_id.generation);
        self.0.connection.pair(Pair { id, slot, generation, timeline, received, sent, keep }).await?;
        step("paired");
        Ok(channel)
    }
}

/// A channel that somebody waits for. Dropped, it is reset: nobody has said anything on it.
struct Wanted(Option<throughline::Channel>);

impl Drop for Wanted {
    fn drop(&mut self) {
        match self.0.take() {
            Some(throughline::Channel::Stream(stream)) => stream.abort(),
            Some(throughline::Channel::Messages(messages)) => messages.abort(),
            None => {}
        }
    }
}

/// The way to a guest through its shim.
pub struct Way {
    remote: Remote,
    keep: bool,
    /// The channel that was opened last.
    id: std::sync::Mutex<String>,
}

impl Way {
    /// The id of the channel that was opened last.
    pub fn id(&self) -> String {
        self.id.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    async fn open(&self, opening: Opening<'_>, messages: bool) -> Result<throughline::Channel, ShimError> {
        let id = new_id()?;
        let Opening { port, ring_bytes, label } = opening;
        let label = label[..label.floor_char_boundary(MOST_LABEL)].to_owned();
        let open = Open { id: id.clone(), port, messages, ring_bytes, label };
        let (remote, keep, paired) = (self.remote.clone(), self.keep, id.clone());
        let (give, given) = oneshot::channel();
        // In a task of its own: a channel that was opened and never paired would stay for as long as this process.
        tokio::spawn(async move {
            let opening = async {
                let opened = remote.opened(open).await?;
                remote.paired(paired, opened, keep).await
            };
            // Nobody may be interested any more.
            let _ = give.send(opening.await.map(|channel| Wanted(Some(channel))));
        });
        let mut wanted = given.await.map_err(|_| self.remote.nonsense())??;
        let channel = wanted.0.take().ok_or_else(|| self.remote.nonsense())?;
        *self.id.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = id;
        Ok(channel)
    }
}

#[async_trait]
impl Guest for Way {
    async fn messages(&self, opening: Opening<'_>) -> Result<Messages, SandboxError> {
        Ok(self.open(opening, true).await?.messages()?)
    }

    async fn stream(&self, opening: Opening<'_>) -> Result<Stream, SandboxError> {
        Ok(self.open(opening, false).await?.stream()?)
    }

    async fn ended(&self) -> SandboxError {
        self.remote.0.connection.ended().await.into()
    }
}

/// Eight hexadecimal digits that nobody else has.
fn new_id() -> Result<String, ShimError> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ShimError::io("choose an id")(error.into()))?;
    Ok(format!("{:08x}", u32::from_ne_bytes(bytes)))
}
