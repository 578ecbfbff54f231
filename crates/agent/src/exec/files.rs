//! Our ends of a command's standard files: pipes, or a terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::{Receiver, Sender};

use crate::gate::Gate;
use crate::spawn::{Spawned, reader, writer};
use crate::terminal::Terminal;

/// Our ends of the command's standard files.
pub(super) struct Files {
    pub(super) stdin: Option<Sink>,
    pub(super) stdout: Source,
    /// A terminal has none of their own.
    pub(super) stderr: Option<Source>,
}

/// Where output comes from.
pub(super) enum Source {
    Pipe(Receiver),
    Terminal(Rc<Terminal>),
}

impl Source {
    /// Reads while the gate is open. Zero at the end. Cancel-safe.
    pub(super) async fn read(&mut self, buffer: &mut [u8], gate: &Gate) -> io::Result<usize> {
        loop {
            gate.opened().await;
            match self {
                // At once: by the time that there is something the gate may have closed.
                Self::Pipe(pipe) => match pipe.try_read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => pipe.readable().await?,
                    read => return read,
                },
                // It holds copies.
                Self::Terminal(terminal) => return terminal.read(buffer).await,
            }
        }
    }
}

/// Where input goes to.
pub(super) enum Sink {
    Pipe(Sender),
    Terminal(Rc<Terminal>),
}

impl Sink {
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal(terminal) => terminal.write_all(bytes).await,
        }
    }

    /// Ends the input, whose last byte was `last`.
    pub(super) async fn end(self, last: Option<u8>) -> io::Result<()> {
        match self {
            Self::Pipe(_) => Ok(()),
            Self::Terminal(terminal) => terminal.write_end(last).await,
        }
    }
}

impl Files {
    /// Of a process that was just started; with its terminal, if it has one.
    pub(super) fn new(spawned: Spawned) -> io::Result<(Self, Option<Rc<Terminal>>)> {
        if let Some(end) = spawned.terminal {
            let terminal = Rc::new(Terminal::new(end)?);
            let stdin = Some(Sink::Terminal(terminal.clone()));
            let files = Self { stdin, stdout: Source::Terminal(terminal.clone()), stderr: None };
            return Ok((files, Some(terminal)));
        }
        let missing = || io::Error::other("a command was started without pipes");
        let pipe = |fd: Option<OwnedFd>| fd.ok_or_else(missing).and_then(reader).map(Source::Pipe);
        let stdin = spawned.stdin.map(writer).transpose()?.map(Sink::Pipe);
        Ok((Self { stdin, stdout: pipe(spawned.stdout)?, stderr: Some(pipe(spawned.stderr)?) }, None))
    }
}
