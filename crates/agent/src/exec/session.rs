//! A command that runs: its pipes, its requests, its end.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal};
use throughline_wire::decode;
use throughline_wire::exec::{Event, Exit, Failure, FailureKind, MAX_DATA, Request, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::Mutex;

use super::stdin::Input;
use super::{ExecError, Executor, send};
use crate::channel::{Inbox, Outbox};
use crate::reaper::{Child, Reaper};
use crate::spawn::{Spawned, reader, writer};

/// One command. Dropped before the command has ended, it kills it.
pub(super) struct Session<'a, O> {
    reaper: &'a Reaper,
    pid: Pid,
    child: Option<Child>,
    exit: Cell<Option<Exit>>,
    input: Input,
    /// Fair: output and errors take turns.
    outbox: Mutex<O>,
    pipes: Option<Pipes>,
}

struct Pipes {
    stdin: Option<Sender>,
    stdout: Receiver,
    stderr: Receiver,
}

/// Which pipe.
#[derive(Debug, Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

impl<'a, O: Outbox> Session<'a, O> {
    /// Adopts a process that was spawned in this very step.
    pub(super) fn new(executor: &'a Executor, spawned: Spawned, outbox: O) -> Result<Self, ExecError> {
        let reaper = &executor.reaper;
        let mut session = Self {
            reaper,
            pid: spawned.pid,
            child: Some(reaper.adopt(spawned.pid)),
            exit: Cell::new(None),
            input: Input::new(spawned.stdin.is_some()),
            outbox: Mutex::new(outbox),
            pipes: None,
        };
        // From here on an error kills the command.
        let missing = || io::Error::other("a command was started without pipes");
        let pipe = |fd: Option<OwnedFd>| fd.ok_or_else(missing).and_then(reader);
        session.pipes = Some(Pipes {
            stdin: spawned.stdin.map(writer).transpose()?,
            stdout: pipe(spawned.stdout)?,
            stderr: pipe(spawned.stderr)?,
        });
        Ok(session)
    }

    /// Serves the command until it has ended and both pipes are at their end.
    pub(super) async fn run(mut self, inbox: impl Inbox) -> Result<(), ExecError> {
        let (Some(pipes), Some(child)) = (self.pipes.take(), self.child.take()) else {
            return Ok(());
        };
        let pid = self.pid.as_raw_pid().cast_unsigned();
        self.send(&Event::Started { pid }).await?;
        let outputs = async {
            tokio::try_join!(
                self.pump(Output::Stdout, pipes.stdout),
                self.pump(Output::Stderr, pipes.stderr),
                self.wait(child),
            )
        };
        // Requests never end the session by coming to their end, only by failing.
        let inputs = async { tokio::try_join!(self.requests(inbox), self.feed(pipes.stdin)) };
        let result = tokio::select! {
            done = outputs => done.map(|_| ()),
            failed = inputs => failed.map(|_| ()),
        };
        match result {
            Ok(()) => Ok(self.outbox.lock().await.finish().await?),
            Err(ExecError::Protocol(message)) => {
                self.kill();
                let failure = Failure { kind: FailureKind::Protocol, message: message.clone() };
                self.send(&Event::Failed(failure)).await?;
                Err(ExecError::Protocol(message))
            }
            Err(error) => Err(error),
        }
    }

    /// Carries one pipe to the host. While the ring is full nothing is read, and the command waits.
    async fn pump(&self, which: Output, mut pipe: Receiver) -> Result<(), ExecError> {
        let mut buffer = vec![0; MAX_DATA];
        let mut at = 0;
        loop {
            let length = pipe.read(&mut buffer).await?;
            let Some(data) = buffer.get(..length).filter(|data| !data.is_empty()) else {
                return Ok(());
            };
            let event = match which {
                Output::Stdout => Event::Stdout { at, data },
                Output::Stderr => Event::Stderr { at, data },
            };
            self.send(&event).await?;
            at += length as u64;
        }
    }

    /// Tells the end of the process as soon as it has come.
    async fn wait(&self, mut child: Child) -> Result<(), ExecError> {
        let exit = child.ended().await.map_err(io::Error::other)?;
        self.exit.set(Some(exit));
        Ok(self.send(&Event::Exited(exit)).await?)
    }

    /// Acts on requests as they come; none of them waits for the command.
    async fn requests(&self, mut inbox: impl Inbox) -> Result<(), ExecError> {
        while let Some(message) = inbox.recv().await? {
            let request = decode(&message).map_err(|error| ExecError::Protocol(error.to_string()))?;
            let wrong = |what: &dyn std::fmt::Display| ExecError::Protocol(what.to_string());
            match request {
                Request::Start(_) => return Err(wrong(&"a second Start on the channel of a command")),
                Request::Stdin(data) if data.len() > MAX_DATA => {
                    return Err(wrong(&format!("{} bytes of input in one message; at most {MAX_DATA}", data.len())));
                }
                Request::Stdin(data) => self.input.push(data).map_err(|refused| wrong(&refused))?,
                Request::StdinEnd => self.input.end(),
                Request::Signal { number: number @ 1..=64, group } => {
                    // The process may be a zombie, or have changed its user: nothing that concerns us.
                    let _ = self.reaper.kill(self.pid, number, group);
                }
                Request::Signal { number, .. } => return Err(wrong(&format!("there is no signal {number}"))),
                Request::Query => self.send(&Event::Status(self.status())).await?,
            }
        }
        self.input.end();
        // The host has shut its sending down, or closed the channel. Only sending can tell, and a command
        // that prints nothing would run on for nobody.
        let (_, total, _) = self.input.status();
        self.send(&Event::StdinTaken { total }).await?;
        pending().await
    }

    /// Carries input to the command, and acknowledges it.
    async fn feed(&self, mut pipe: Option<Sender>) -> Result<(), ExecError> {
        let mut told = 0;
        while let Some(chunk) = self.input.next().await {
            if let Some(open) = &mut pipe
                && open.write_all(&chunk).await.is_err()
            {
                pipe = None;
                self.input.close();
                self.send(&Event::StdinClosed).await?;
            }
            if let Some(total) = self.input.taken(chunk.len(), told) {
                told = total;
                self.send(&Event::StdinTaken { total }).await?;
            }
        }
        drop(pipe);
        pending().await
    }

    fn status(&self) -> Status {
        let (stdin_received, stdin_taken, stdin_open) = self.input.status();
        Status {
            pid: self.pid.as_raw_pid().cast_unsigned(),
            stdin_received,
            stdin_taken,
            stdin_open,
            exit: self.exit.get(),
        }
    }

    async fn send(&self, event: &Event<'_>) -> io::Result<()> {
        send(&mut *self.outbox.lock().await, event).await
    }
}

impl<O> Session<'_, O> {
    fn kill(&self) {
        let _ = self.reaper.kill(self.pid, Signal::KILL.as_raw(), true);
    }
}

impl<O> Drop for Session<'_, O> {
    /// Nobody is left who could want the command; after its end this does nothing.
    fn drop(&mut self) {
        self.kill();
    }
}
