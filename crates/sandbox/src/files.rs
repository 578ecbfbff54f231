//! Copying files into a guest and out of it.
//!
//! [`upload`], [`download`] and [`stat`] take a channel that was opened to [`port::FILES`] on any link; [`connect`]
//! opens one. [`Files`] does it all for a [`Sandbox`].
//!
//! Destinations are read as by `cp -r`: into a folder that exists, else under the destination's own name; a source that
//! ends with `/.` stands for a folder's contents. Permissions, times (in seconds) and symbolic links are kept. In the
//! guest everything belongs to root unless told otherwise; here, to this process's user, and the set-user-id,
//! set-group-id and sticky bits are not taken over. Devices, sockets and pipes are errors.
//!
//! Nothing leaves its place: what a guest sends is written below the destination only, and through no symbolic link.
//!
//! Dropping a future ends its transfer. What was copied until then, or before a failure, stays.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_bytes::ByteBuf;
use throughline::{Connect, Error, Link, MessageReceiver, Messages, OnFork};
use throughline_files::{Input, Output, Root, failure, found, pack, pump, unpack};
use throughline_wire::files::{Failure, FailureKind, Form, Frame, Get, Put, Reply, Request};
use throughline_wire::port;

use crate::{Sandbox, SandboxError};

pub use throughline_wire::files::{Content, Found, Kind, Summary};

/// The ring that a transfer wants, in bytes a direction: big enough that neither side waits for each piece.
pub const RING: u64 = 1 << 20;

/// Where an upload comes from.
pub enum Source {
    /// A file, folder or symbolic link of the host.
    Path(PathBuf),
    /// A tar archive, whose entries go into the folder at the destination.
    Archive(Box<dyn Read + Send>),
    /// The bytes of one file.
    Bytes {
        /// Where they come from, to its end.
        reader: Box<dyn Read + Send>,
        /// The file's permissions.
        mode: u32,
    },
}

/// Where a download goes to.
pub enum Target {
    /// A path of the host.
    Path(PathBuf),
    /// A tar archive, in which the source has its own name.
    Archive(Box<dyn Write + Send>),
    /// The bytes of one file.
    Bytes(Box<dyn Write + Send>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Archive(_) => f.write_str("Archive"),
            Self::Bytes { mode, .. } => f.debug_struct("Bytes").field("mode", mode).finish_non_exhaustive(),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Archive(_) => f.write_str("Archive"),
            Self::Bytes(_) => f.write_str("Bytes"),
        }
    }
}

/// Choices of a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Whom the copies belong to in the guest: `name`, `uid`, `name:group` or `uid:gid`; root without it.
    pub owner: Option<String>,
    /// Copies what a symbolic link at the source names, instead of the link.
    pub follow: bool,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have passed, names and the like included.
    pub bytes: u64,
    /// How many there are to be, without names and the like; known for a single file.
    pub total: Option<u64>,
}

/// How long a channel is kept, after its process has died, for another one to adopt it: a shim's successor does.
const UNADOPTED: Duration = Duration::from_mins(2);

/// Opens a channel for one transfer.
pub async fn connect(link: &Link) -> Result<Messages, SandboxError> {
    Ok(ends_with_its_owner(link.connect_with(port::FILES).unanswered().ring_bytes(RING)).messages().await?)
}

/// Has a channel end where nobody has it: only who began a transfer can go on with it. A child of a fork has nobody who
/// did.
pub fn ends_with_its_owner(connect: Connect) -> Connect {
    connect.on_fork(OnFork::Reset).close_unadopted(UNADOPTED)
}

/// What there is at a path in the guest; `follow` looks at what a symbolic link names.
pub async fn stat(mut channel: Messages, path: impl AsRef<[u8]>, follow: bool) -> Result<Found, SandboxError> {
    channel.send(&Frame::of(&Request::Stat { path: ByteBuf::from(path.as_ref()), follow })?).await?;
    let (_sender, mut receiver) = channel.into_split();
    found_reply(&mut receiver).await
}

/// Copies into the guest. `progress` is called for each piece.
pub async fn upload(
    channel: Messages,
    source: Source,
    dest: impl AsRef<[u8]>,
    options: Options,
    progress: impl FnMut(Progress),
) -> Result<Summary, SandboxError> {
    let (source, content, total) = prepare(source, options.follow).await?;
    let put = Put { dest: ByteBuf::from(dest.as_ref()), content, owner: options.owner };
    let (mut sender, mut receiver) = channel.into_split();
    sender.send(&Frame::of(&Request::Put(put))?).await?;
    let sending = async {
        let work = move |output: &mut Output, copied: &mut Summary| source.send(output, copied);
        let (sent, _) = pump::send(&mut sender, work, counted(total, progress)).await?;
        if let Err(failure) = sent {
            return Ok(Some(failure));
        }
        sender.send(&Frame::of(&Request::End)?).await?;
        Ok::<_, SandboxError>(None)
    };
    tokio::select! {
        biased;
        // The guest says why it takes no more.
        reply = last_reply(&mut receiver) => reply,
        sent = sending => match sent {
            Ok(None) | Err(SandboxError::Channel(_)) => last_reply(&mut receiver).await,
            Ok(Some(failure)) => Err(SandboxError::Files { failure, before: Summary::default() }),
            Err(error) => Err(error),
        },
    }
}

/// Copies out of the guest, and counts what was copied; of an archive only its bytes. `progress` is called for each piece.
pub async fn download(
    mut channel: Messages,
    source: impl AsRef<[u8]>,
    target: Target,
    options: Options,
    progress: impl FnMut(Progress),
) -> Result<Summary, SandboxError> {
    let source = source.as_ref();
    let form = match (&target, base_name(source)) {
        (Target::Bytes(_), _) => Form::Bytes,
        (_, Some(name)) => Form::Tree(ByteBuf::from(name)),
        (_, None) => Form::Contents,
    };
    let get = Get { source: ByteBuf::from(source), form, follow: options.follow };
    channel.send(&Frame::of(&Request::Get(get))?).await?;
    let (_sender, mut receiver) = channel.into_split();
    let there = found_reply(&mut receiver).await?;
    let total = (there.kind == Kind::File).then_some(there.size);
    let content = content(base_name(source), there.kind == Kind::Folder);
    let end = |message: &[u8]| match Frame::control(message) {
        Ok(Reply::Done(_)) => Ok(()),
        Ok(Reply::Failed { failure, .. }) => Err(failure),
        Ok(Reply::Found(_)) => Err(wrong("an answer that was not asked for")),
        Err(error) => Err(wrong(&error.to_string())),
    };
    let work = move |input: &mut Input, copied: &mut Summary| target.take(&content, input, copied);
    match pump::receive(&mut receiver, work, counted(total, progress), end).await? {
        (Ok(()), copied) => Ok(copied),
        (Err(failure), before) => Err(SandboxError::Files { failure, before }),
    }
}

/// The guest's files. Each copy has a channel of its own.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    sandbox: &'a Sandbox,
}

impl<'a> Files<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox) -> Self {
        Self { sandbox }
    }

    /// Copies a file, folder or symbolic link into the guest.
    pub async fn upload(&self, source: impl AsRef<Path>, dest: impl AsRef<[u8]>) -> Result<Summary, SandboxError> {
        self.upload_with(Source::Path(source.as_ref().into()), dest, Options::default(), |_| {}).await
    }

    /// Copies a file, folder or symbolic link out of the guest.
    pub async fn download(&self, source: impl AsRef<[u8]>, dest: impl AsRef<Path>) -> Result<Summary, SandboxError> {
        self.download_with(source, Target::Path(dest.as_ref().into()), Options::default(), |_| {}).await
    }

    /// See [`upload`].
    pub async fn upload_with(
        &self,
        source: Source,
        dest: impl AsRef<[u8]>,
        options: Options,
        progress: impl FnMut(Progress),
    ) -> Result<Summary, SandboxError> {
        let work = async { upload(connect(self.sandbox.link()).await?, source, dest, options, progress).await };
        self.sandbox.alive(work).await?
    }

    /// See [`download`].
    pub async fn download_with(
        &self,
        source: impl AsRef<[u8]>,
        target: Target,
        options: Options,
        progress: impl FnMut(Progress),
    ) -> Result<Summary, SandboxError> {
        let work = async { download(connect(self.sandbox.link()).await?, source, target, options, progress).await };
        self.sandbox.alive(work).await?
    }

    /// See [`stat`].
    pub async fn stat(&self, path: impl AsRef<[u8]>, follow: bool) -> Result<Found, SandboxError> {
        let work = async { stat(connect(self.sandbox.link()).await?, path, follow).await };
        self.sandbox.alive(work).await?
    }
}

/// Counts what passes.
fn counted(total: Option<u64>, mut progress: impl FnMut(Progress)) -> impl FnMut(u64) {
    let mut bytes = 0;
    move |more| {
        bytes += more;
        progress(Progress { bytes, total });
    }
}

/// A source that is known to exist.
enum Prepared {
    Tree { path: Vec<u8>, form: Form, follow: bool },
    Reader(Box<dyn Read + Send>),
}

async fn prepare(source: Source, follow: bool) -> Result<(Prepared, Content, Option<u64>), SandboxError> {
    let path = match source {
        Source::Path(path) => path,
        Source::Archive(reader) => return Ok((Prepared::Reader(reader), Content::Contents, None)),
        Source::Bytes { reader, mode } => {
            let content = Content::Bytes { name: None, mode, mtime: None };
            return Ok((Prepared::Reader(reader), content, None));
        }
    };
    let given = path.as_os_str().as_bytes().to_vec();
    let path = absolute(&path)?;
    let looked = path.clone();
    let there = pump::apart(move || found(&root()?, &looked, follow)).await;
    let there = there.map_err(|failure| SandboxError::Files { failure, before: Summary::default() })?;
    let name = base_name(&given);
    let content = content(name, there.kind == Kind::Folder);
    let form = name.map_or(Form::Contents, |name| Form::Tree(ByteBuf::from(name)));
    let total = (there.kind == Kind::File).then_some(there.size);
    Ok((Prepared::Tree { path, form, follow }, content, total))
}

impl Prepared {
    fn send(self, output: &mut Output, copied: &mut Summary) -> Result<(), Failure> {
        match self {
            Self::Tree { path, form, follow } => pack(&root()?, (&path, &form, follow), &|_| false, output, copied),
            Self::Reader(mut reader) => pass(&mut reader, output)
                .map_err(|error| failure(FailureKind::Other, b"input", format!("cannot be read: {error}"))),
        }
    }
}

/// Passes bytes on as they come.
fn pass(reader: &mut impl Read, output: &mut Output) -> io::Result<()> {
    loop {
        match reader.read(output.space()?) {
            Ok(0) => return output.pass_on(),
            Ok(length) => output.filled(length),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Target {
    fn take(self, content: &Content, input: &mut Input, copied: &mut Summary) -> Result<(), Failure> {
        let mut writer = match self {
            Self::Path(path) => {
                let dest = absolute(&path).map_err(|error| failure(FailureKind::Other, b".", error.to_string()))?;
                return unpack(&root()?, &dest, content, input, copied);
            }
            Self::Archive(writer) | Self::Bytes(writer) => writer,
        };
        let unwritable = |error: io::Error| failure(FailureKind::Other, b"output", error.to_string());
        loop {
            let bytes = input.fill_buf().map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => wrong("it ended before it was complete"),
                _ => wrong(&error.to_string()),
            })?;
            if bytes.is_empty() {
                return writer.flush().map_err(unwritable);
            }
            writer.write_all(bytes).map_err(unwritable)?;
            let length = bytes.len();
            input.consume(length);
            copied.bytes += length as u64;
        }
    }
}

/// The host's own root.
fn root() -> Result<Root, Failure> {
    Root::open(Path::new("/"), None, Root::PLAIN_MODES)
}

/// A path of the host from its root, with the slash or dot at its end, which means something.
fn absolute(path: &Path) -> Result<Vec<u8>, SandboxError> {
    let whole = std::env::current_dir().map(|here| here.join(path)).map_err(SandboxError::io("find this folder"))?;
    Ok(whole.into_os_string().into_encoded_bytes())
}

/// What something is called; nothing where only its contents are meant.
fn base_name(path: &[u8]) -> Option<&[u8]> {
    let trimmed = path.len() - path.iter().rev().take_while(|&&byte| byte == b'/').count();
    let last = path.get(..trimmed)?.rsplit(|&byte| byte == b'/').next()?;
    Some(last)
        .filter(|name| !name.is_empty() && ![OsStr::new("."), OsStr::new("..")].contains(&OsStr::from_bytes(name)))
}

fn content(name: Option<&[u8]>, is_folder: bool) -> Content {
    name.map_or(Content::Contents, |name| Content::Tree { name: ByteBuf::from(name), is_folder })
}

fn wrong(message: &str) -> Failure {
    failure(FailureKind::Protocol, b"transfer", message)
}

async fn found_reply(receiver: &mut MessageReceiver) -> Result<Found, SandboxError> {
    match reply(receiver).await? {
        Reply::Found(found) => Ok(found),
        Reply::Failed { failure, before } => Err(SandboxError::Files { failure, before }),
        Reply::Done(_) => Err(SandboxError::Nonsense("a transfer was done before it began".to_owned())),
    }
}

async fn last_reply(receiver: &mut MessageReceiver) -> Result<Summary, SandboxError> {
    match reply(receiver).await? {
        Reply::Done(summary) => Ok(summary),
        Reply::Failed { failure, before } => Err(SandboxError::Files { failure, before }),
        Reply::Found(_) => Err(SandboxError::Nonsense("a transfer was answered with what there is".to_owned())),
    }
}

async fn reply(receiver: &mut MessageReceiver) -> Result<Reply, SandboxError> {
    let message = receiver.recv().await?.ok_or(SandboxError::Channel(Error::Closed))?;
    Frame::control(&message).map_err(|error| SandboxError::Nonsense(error.to_string()))
}
