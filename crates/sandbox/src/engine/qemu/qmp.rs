//! The monitor's control socket. Every call has a deadline.

use std::fs::File;
use std::io::{self, Cursor, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use qapi::futures::{QapiEvents, QapiService, QapiStream, QmpStreamTokio};
use qapi::qmp::{Event, MigrationStatus, QmpCommand, ShutdownCause, StatusInfo};
use qapi::{ExecuteError, qmp};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Chain, ReadHalf, WriteHalf};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::engine::EngineError;
use crate::sockets;

/// How long the monitor may take for one answer. Only a hung or starved one needs so long.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// Of the command that no answer to anybody else's is taken for.
const ID: &str = "throughline";

/// What comes from the monitor: its greeting once more, and what comes after the negotiation.
type Heard = Chain<Cursor<Vec<u8>>, BufReader<ReadHalf<UnixStream>>>;

/// Why a state does not load.
const DAMAGED: &str = "the saved state is damaged or of another machine";

/// What the monitor has said on its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Why the machine is shutting down.
    pub(super) shutdown: Option<ShutdownCause>,
    /// Whether the guest said that it panicked.
    pub(super) panicked: bool,
    /// Where an incoming migration stands.
    pub(super) migration: Option<MigrationStatus>,
    /// Nothing more will come.
    pub(super) closed: bool,
}

/// A connection to the monitor. It serves one client at a time.
pub(super) struct Qmp {
    service: QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>,
    /// The same socket, to send descriptors through.
    socket: std::os::unix::net::UnixStream,
    seen: watch::Receiver<Seen>,
    reader: JoinHandle<()>,
}

impl Drop for Qmp {
    fn drop(&mut self) {
        // The reader holds the socket open; while it is, nobody else can take the monitor over.
        self.reader.abort();
    }
}

impl Qmp {
    /// Connects and negotiates. The socket must be listening, the monitor need not be up yet.
    pub(super) async fn connect(folder: &Path, name: &str) -> Result<Self, EngineError> {
        let doing = "open its control socket";
        let socket = sockets::connect(folder, name).and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok((socket.try_clone()?, UnixStream::from_std(socket)?))
        });
        let (same, socket) =
            socket.map_err(|source| EngineError::io("connect to the control socket in", folder, source))?;
        let stream = in_time(doing, open(socket)).await?.map_err(|error| refused(doing, &ExecuteError::Io(error)))?;
        let (service, events) = stream.into_parts();
        let (sender, seen) = watch::channel(Seen::default());
        Ok(Self { service, socket: same, seen, reader: tokio::spawn(read(events, sender)) })
    }

    /// Has a command carried out, to its end, also where nobody waits any more: the reader gives up at an answer that
    /// nobody takes.
    async fn execute<C>(&self, doing: &'static str, command: C) -> Result<C::Ok, EngineError>
    where
        C: QmpCommand + 'static,
        C::Ok: Send,
    {
        let answer = tokio::spawn(self.service.execute(command));
        let answer = in_time(doing, answer).await?.unwrap_or_else(|error| Err(io::Error::from(error).into()));
        answer.map_err(|error| refused(doing, &error))
    }

    /// Stops the processors.
    pub(super) async fn stop(&self) -> Result<(), EngineError> {
        self.execute("pause", qmp::stop {}).await.map(drop)
    }

    /// Lets the processors run.
    pub(super) async fn cont(&self) -> Result<(), EngineError> {
        self.execute("resume", qmp::cont {}).await.map(drop)
    }

    /// Asks for the run state.
    pub(super) async fn status(&self) -> Result<StatusInfo, EngineError> {
        self.execute("tell its state", qmp::query_status {}).await
    }

    /// Writes the device state of a paused machine to `file`, which is open for writing only: the monitor opens no
    /// path of the host's.
    pub(super) async fn save_devices(&self, file: File) -> Result<(), EngineError> {
        let doing = "save its devices";
        self.send(&file).map_err(|error| refused(doing, &ExecuteError::Io(error)))?;
        let set = self.execute(doing, qmp::add_fd { fdset_id: None, opaque: None }).await?.fdset_id;
        // Without `live`, a paused machine keeps its disk, and can go on.
        let command = qmp::xen_save_devices_state { live: Some(false), filename: format!("/dev/fdset/{set}") };
        let saved = self.execute(doing, command).await.map(drop);
        let forgotten = self.execute(doing, qmp::remove_fd { fd: None, fdset_id: set }).await.map(drop);
        saved.and(forgotten)
    }

    /// Sends a descriptor, for the next command to take: along with a space, which means nothing between commands.
    fn send(&self, file: &File) -> io::Result<()> {
        let descriptors = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&self.socket, &[IoSlice::new(b" ")], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Has the device state loaded that the monitor has inherited as this descriptor.
    pub(super) async fn load_devices(&self, fd: i32) -> Result<(), EngineError> {
        let doing = "load its devices";
        let incoming = qmp::migrate_incoming { uri: Some(format!("fd:{fd}")), channels: None, exit_on_error: None };
        self.execute(doing, incoming).await.map(drop)
    }

    /// Waits until the device state has been loaded. Where that fails, the monitor ends.
    pub(super) async fn loaded(&self) -> Result<(), EngineError> {
        let doing = "load its devices";
        // What it said before anybody listened is lost.
        let status = self.execute(doing, qmp::query_migrate {}).await?.status;
        if matches!(status, Some(MigrationStatus::completed)) {
            return Ok(());
        }
        let mut seen = self.seen.clone();
        let ended = |seen: &Seen| {
            seen.closed || matches!(seen.migration, Some(MigrationStatus::completed | MigrationStatus::failed))
        };
        let last = in_time(doing, seen.wait_for(ended)).await?.map(|seen| seen.migration);
        match last {
            Ok(Some(MigrationStatus::completed)) => Ok(()),
            _ => Err(EngineError::Refused { doing, reason: DAMAGED.into() }),
        }
    }

    /// What the monitor said until it closed the socket, which its death does.
    pub(super) async fn last_words(&self) -> Seen {
        let mut seen = self.seen.clone();
        let closed = tokio::time::timeout(DEADLINE, seen.wait_for(|seen| seen.closed)).await;
        match closed {
            Ok(Ok(seen)) => seen.clone(),
            _ => self.seen.borrow().clone(),
        }
    }
}

/// Negotiates by itself, with an id: whatever comes before that answer may be for who was connected before, and died
/// without it, even what comes before the greeting. The monitor carries out one command after the other, so that nothing
/// of his comes later.
async fn open(
    socket: UnixStream,
) -> io::Result<QapiStream<QmpStreamTokio<Heard>, QmpStreamTokio<WriteHalf<UnixStream>>>> {
    let (read, mut write) = tokio::io::split(socket);
    let mut read = BufReader::new(read);
    let greeting = until(&mut read, |line| line.get("QMP").is_some()).await?;
    let negotiate = serde_json::json!({ "execute": "qmp_capabilities", "id": ID });
    write.write_all(format!("{negotiate}\n").as_bytes()).await?;
    let answer = until(&mut read, |line| line["id"] == ID).await?;
    if let Some(error) = answer.get("error") {
        return Err(io::Error::other(error["desc"].to_string()));
    }
    let read = Cursor::new(format!("{greeting}\n").into_bytes()).chain(read);
    Ok(QmpStreamTokio::open_split(read, write).await?.stream)
}

/// The next line that is wanted.
async fn until(
    read: &mut BufReader<ReadHalf<UnixStream>>,
    wanted: impl Fn(&serde_json::Value) -> bool,
) -> io::Result<serde_json::Value> {
    let mut text = String::new();
    loop {
        text.clear();
        if read.read_line(&mut text).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = serde_json::from_str(&text)?;
        if wanted(&line) {
            return Ok(line);
        }
    }
}

async fn read(mut events: QapiEvents<QmpStreamTokio<Heard>>, seen: watch::Sender<Seen>) {
    while let Some(Ok(event)) = events.next().await {
        seen.send_if_modified(|seen| {
            match event {
                Event::SHUTDOWN { data, .. } => seen.shutdown = Some(data.reason),
                Event::GUEST_PANICKED { .. } => seen.panicked = true,
                Event::MIGRATION { data, .. } => seen.migration = Some(data.status),
                _ => return false,
            }
            true
        });
    }
    seen.send_modify(|seen| seen.closed = true);
}

async fn in_time<T>(doing: &'static str, work: impl Future<Output = T>) -> Result<T, EngineError> {
    tokio::time::timeout(DEADLINE, work).await.map_err(|_| EngineError::Deadline { doing, deadline: DEADLINE })
}

fn refused(doing: &'static str, error: &ExecuteError) -> EngineError {
    let reason = match error {
        ExecuteError::Qapi(error) => error.desc.clone(),
        ExecuteError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => "its control socket closed".into(),
        ExecuteError::Io(error) => error.to_string(),
    };
    EngineError::Refused { doing, reason }
}
