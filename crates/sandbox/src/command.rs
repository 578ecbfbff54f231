//! Running commands in a guest, and following them across processes and timelines.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_bytes::ByteBuf;
use throughline::{ChannelId, MessageReceiver, MessageSender, Messages};
use throughline_wire::exec::{self, Event, Exit, Failure, MAX_DATA, Request, Start, StdinWindow, WindowSize};
use throughline_wire::{decode, encode, port};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::SandboxError;
use crate::guest::{Guest, Opening, alive};

/// A command to run in a guest, in the manner of `std::process::Command`.
#[must_use = "nothing runs before `spawn` or `output`"]
pub struct Command {
    guest: Arc<dyn Guest>,
    start: Start,
    label: String,
}

/// A finished command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it printed as errors.
    pub stderr: Vec<u8>,
}

impl Command {
    /// A command for a guest.
    pub fn new(guest: Arc<dyn Guest>, program: impl AsRef<[u8]>) -> Self {
        let start = Start { argv: vec![ByteBuf::from(program.as_ref())], ..Start::default() };
        Self { guest, start, label: String::new() }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.start.argv.push(ByteBuf::from(argument.as_ref()));
        self
    }

    /// Adds arguments.
    pub fn args(self, arguments: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        arguments.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable, on top of the guest's defaults.
    pub fn env(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.start.env.push((ByteBuf::from(name.as_ref()), ByteBuf::from(value.as_ref())));
        self
    }

    /// Sets the working directory; the user's home without this.
    pub fn current_dir(mut self, folder: impl AsRef<[u8]>) -> Self {
        self.start.cwd = Some(ByteBuf::from(folder.as_ref()));
        self
    }

    /// Runs it as this user: `name`, `uid`, `name:group` or `uid:gid`; root without this.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.start.user = Some(user.into());
        self
    }

    /// Gives it an input to be written; otherwise it reads from `/dev/null`.
    pub fn stdin(mut self) -> Self {
        self.start.stdin = true;
        self
    }

    /// Runs it on a terminal of this size, in characters. What it prints, errors too, is its stdout, and its input
    /// is what is typed there.
    pub fn tty(mut self, rows: u16, cols: u16) -> Self {
        self.start.tty = Some(WindowSize { rows, cols });
        self
    }

    /// What to call its channel, for whoever takes it over.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Starts it, and returns when it runs. Dropping the future, or what it returns, kills the command; one that the
    /// guest has not begun by then is never begun.
    pub async fn spawn(self) -> Result<Child, SandboxError> {
        let request = encode(&Request::Start(self.start))?;
        let guest = self.guest;
        let work = async {
            let opening = Opening { port: port::EXEC, ring_bytes: request.len() as u64 + 16, label: &self.label };
            let mut asked = Asked(Some(guest.messages(opening).await?));
            let answer = asked.first_answer(&request).await?;
            let Some(messages) = asked.0.take() else { return Err(SandboxError::Channel(throughline::Error::Ended)) };
            let mut child = Child::adopt(messages, guest.clone());
            let first = match answer {
                Some(message) => child.events.understand(&message)?,
                None => child.events.next().await?,
            };
            match first {
                Some(ChildEvent::Started { .. }) => Ok(child),
                other => Err(SandboxError::Nonsense(format!("a command began with {other:?}"))),
            }
        };
        alive(&*guest, work).await?
    }

    /// Runs it to its end, and collects what it printed. Its input is empty.
    pub async fn output(self) -> Result<Output, SandboxError> {
        self.spawn().await?.events.collect().await
    }
}

/// The channel of a command that was asked for. Dropped before there is an answer, it is reset: then a guest that has not
/// read the request never does.
struct Asked(Option<Messages>);

impl Asked {
    async fn first_answer(&mut self, request: &[u8]) -> Result<Option<Vec<u8>>, SandboxError> {
        let Some(messages) = &mut self.0 else { return Ok(None) };
        messages.send(request).await?;
        Ok(messages.recv().await?)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(messages) = self.0.take() {
            messages.abort();
        }
    }
}

/// Something that a running command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// It runs, with this process id in the guest.
    Started {
        /// The id.
        pid: u32,
    },
    /// It printed.
    Stdout {
        /// Bytes printed before these.
        at: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// It printed errors.
    Stderr {
        /// Bytes printed before these.
        at: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// It ended; output may follow.
    Exited(Exit),
    /// How it stands, asked for by [`ChildInput::query`].
    Status(exec::Status),
}

/// A running command. Dropping both halves kills it.
pub struct Child {
    /// What it does.
    pub events: ChildEvents,
    /// What is done to it.
    pub input: ChildInput,
    id: ChannelId,
}

/// How long the news of a machine's end may take, once a command's channel has ended without the command's.
const ENDING: Duration = Duration::from_secs(1);

/// Input that may be sent, shared by the halves.
#[derive(Debug, Default)]
struct Window {
    /// Nobody knows of a command that was taken over, before it says how it stands.
    account: Mutex<Option<StdinWindow>>,
    changed: Notify,
    /// Nothing more is coming that could make room.
    ended: AtomicBool,
}

impl Window {
    fn with<T>(&self, change: impl FnOnce(&mut Option<StdinWindow>) -> T) -> T {
        change(&mut self.account.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The guest has taken so much; before anything is known, it says what is.
    fn taken(&self, total: u64, known: Option<StdinWindow>) {
        self.with(|account| match account {
            Some(account) => account.taken(total),
            None => *account = known,
        });
        self.changed.notify_one();
    }
}

impl Child {
    /// Takes over a command whose channel nobody holds: after a restore, or in a new process. Its
    /// events go on where the last reader stopped. Its input waits until it has said how it stands, which the first
    /// [`write`](ChildInput::write) asks for: the answer is among the events, which must be taken meanwhile.
    pub fn adopt(messages: Messages, guest: Arc<dyn Guest>) -> Self {
        let id = messages.id();
        let window = Arc::new(Window::default());
        let (sender, receiver) = messages.into_split();
        let events = ChildEvents { receiver, window: window.clone(), guest: guest.clone(), exited: false };
        Self { events, input: ChildInput { sender, window, asked: false, guest }, id }
    }

    /// The name of its channel, for whoever takes it over.
    pub fn id(&self) -> ChannelId {
        self.id
    }
}

/// What a command does, in order.
pub struct ChildEvents {
    receiver: MessageReceiver,
    window: Arc<Window>,
    guest: Arc<dyn Guest>,
    /// Whether the command's end was told.
    exited: bool,
}

impl ChildEvents {
    /// The next event; `None` when the command has ended and all its output has come. Cancel-safe.
    /// If the machine ends, that is the error, once everything that had arrived has been taken.
    pub async fn next(&mut self) -> Result<Option<ChildEvent>, SandboxError> {
        while let Some(message) = alive(&*self.guest, self.receiver.recv()).await?? {
            if let Some(event) = self.understand(&message)? {
                self.exited |= matches!(event, ChildEvent::Exited(_));
                return Ok(Some(event));
            }
        }
        // The machine's end shows on the channel first, where another process stands in between.
        if !self.exited
            && let Ok(ended) = timeout(ENDING, self.guest.ended()).await
        {
            return Err(ended);
        }
        self.window.ended.store(true, Ordering::Release);
        self.window.changed.notify_one();
        Ok(None)
    }

    fn understand(&self, message: &[u8]) -> Result<Option<ChildEvent>, SandboxError> {
        let event = decode::<Event>(message).map_err(|error| SandboxError::Nonsense(error.to_string()))?;
        Ok(Some(match event {
            Event::Started { pid } => {
                self.window.taken(0, Some(StdinWindow::new()));
                ChildEvent::Started { pid }
            }
            Event::Stdout { at, data } => ChildEvent::Stdout { at, data: data.to_vec() },
            Event::Stderr { at, data } => ChildEvent::Stderr { at, data: data.to_vec() },
            Event::Exited(exit) => ChildEvent::Exited(exit),
            Event::Failed(failure) => return Err(failed(failure)),
            Event::StdinTaken { total } => {
                self.window.taken(total, None);
                return Ok(None);
            }
            // What is sent from now on is thrown away, which the guest counts as taken.
            Event::StdinClosed => return Ok(None),
            Event::Status(status) => {
                self.window.taken(status.stdin_taken, Some(StdinWindow::resume(&status)));
                ChildEvent::Status(status)
            }
        }))
    }

    /// Waits for the end, and collects what comes until then.
    pub async fn collect(&mut self) -> Result<Output, SandboxError> {
        let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
        while let Some(event) = self.next().await? {
            match event {
                ChildEvent::Stdout { data, .. } => stdout.extend(data),
                ChildEvent::Stderr { data, .. } => stderr.extend(data),
                ChildEvent::Exited(how) => exit = Some(how),
                ChildEvent::Started { .. } | ChildEvent::Status(_) => {}
            }
        }
        let exit = exit.ok_or_else(|| SandboxError::Nonsense("a command ended without an exit".to_owned()))?;
        Ok(Output { exit, stdout, stderr })
    }
}

fn failed(failure: Failure) -> SandboxError {
    SandboxError::Command(failure)
}

/// What is done to a command.
pub struct ChildInput {
    sender: MessageSender,
    window: Arc<Window>,
    /// Whether the command was asked how it stands.
    asked: bool,
    guest: Arc<dyn Guest>,
}

impl ChildInput {
    /// Writes input. Waits while the command does not read; the events must be taken meanwhile. Once the
    /// command has ended, that is an error.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), SandboxError> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write(bytes).await?..];
        }
        Ok(())
    }

    /// Writes some input, and returns how much: as [`write_all`](Self::write_all), but cancel-safe.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<usize, SandboxError> {
        if !self.asked && self.window.with(|account| account.is_none()) {
            self.query().await?;
        }
        let space = alive(&*self.guest, self.space()).await?;
        let piece = &bytes[..bytes.len().min(MAX_DATA).min(space)];
        alive(&*self.guest, self.sender.send(&encode(&Request::Stdin(piece))?)).await??;
        self.window.with(|account| account.iter_mut().for_each(|account| account.sent(piece.len() as u64)));
        Ok(piece.len())
    }

    async fn space(&self) -> usize {
        loop {
            match self.window.with(|account| account.map_or(0, |account| account.available())) {
                // Sending tells what became of the channel.
                0 if self.window.ended.load(Ordering::Acquire) => return MAX_DATA,
                0 => self.window.changed.notified().await,
                space => return usize::try_from(space).unwrap_or(usize::MAX),
            }
        }
    }

    /// Ends the input.
    pub async fn end(&mut self) -> Result<(), SandboxError> {
        self.request(&Request::StdinEnd).await
    }

    /// Tells it that its terminal has another size, in characters. Nothing happens if it has none.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), SandboxError> {
        self.request(&Request::Resize(WindowSize { rows, cols })).await
    }

    /// Sends a signal, to the command's whole process group if asked.
    pub async fn signal(&mut self, number: i32, group: bool) -> Result<(), SandboxError> {
        self.request(&Request::Signal { number, group }).await
    }

    /// Asks how it stands; the answer is a [`ChildEvent::Status`].
    pub async fn query(&mut self) -> Result<(), SandboxError> {
        self.request(&Request::Query).await?;
        self.asked = true;
        Ok(())
    }

    async fn request(&mut self, request: &Request<'_>) -> Result<(), SandboxError> {
        Ok(alive(&*self.guest, self.sender.send(&encode(request)?)).await??)
    }
}
