//! A command that runs: its files, its requests, its end.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::rc::Rc;

use rustix::process::{Pid, Signal};
use throughline_wire::decode;
use throughline_wire::exec::{Event, Exit, Failure, FailureKind, MAX_DATA, Request, Status};
use tokio::sync::Mutex;

use super::files::{Files, Sink, Source};
use super::stdin::Input;
use super::{ExecError, Executor, send};
use crate::channel::{Inbox, Outbox};
use crate::gate::Gate;
use crate::reaper::{Child, Reaper};
use crate::spawn::Spawned;
use crate::terminal::Terminal;

/// One command. Dropped before the command has ended, it kills it.
pub(super) struct Session<'a, O> {
    reaper: &'a Reaper,
    pid: Pid,
    child: Option<Child>,
    exit: Cell<Option<Exit>>,
    input: Input,
    /// Fair: output and errors take turns.
    outbox: Mutex<O>,
    files: Option<Files>,
    terminal: Option<Rc<Terminal>>,
    /// Open while output may be read.
    output: &'a Gate,
}

/// Which output.
#[derive(Debug, Clone, Copy)]
enum Output {
    Stdout,
    Stderr,
}

impl<'a, O: Outbox> Session<'a, O> {
    /// Adopts a process that was spawned in this very step.
    pub(super) fn new(
        executor: &'a Executor,
        spawned: Spawned,
        outbox: O,
        output: &'a Gate,
    ) -> Result<Self, ExecError> {
        let reaper = &executor.reaper;
        let mut session = Self {
            reaper,
            pid: spawned.pid,
            child: Some(reaper.adopt(spawned.pid)),
            exit: Cell::new(None),
            input: Input::new(spawned.stdin.is_some() || spawned.terminal.is_some()),
            outbox: Mutex::new(outbox),
            files: None,
            terminal: None,
            output,
        };
        // From here on an error kills the command.
        let (files, terminal) = Files::new(spawned)?;
        (session.files, session.terminal) = (Some(files), terminal);
        Ok(session)
    }

    /// Serves the command until it has ended and its output is at its end.
    pub(super) async fn run(mut self, inbox: impl Inbox) -> Result<(), ExecError> {
        let (Some(files), Some(child)) = (self.files.take(), self.child.take()) else {
            return Ok(());
        };
        let pid = self.pid.as_raw_pid().cast_unsigned();
        self.send(&Event::Started { pid }).await?;
        let outputs = async {
            tokio::try_join!(
                self.pump(Output::Stdout, Some(files.stdout)),
                self.pump(Output::Stderr, files.stderr),
                self.wait(child),
            )
        };
        // Requests never end the session by coming to their end, only by failing.
        let inputs = async { tokio::try_join!(self.requests(inbox), self.feed(files.stdin)) };
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

    /// Carries one output to the host. While the ring is full nothing is read, and the command waits.
    async fn pump(&self, which: Output, source: Option<Source>) -> Result<(), ExecError> {
        let Some(mut source) = source else { return Ok(()) };
        let mut buffer = vec![0; MAX_DATA];
        let mut at = 0;
        loop {
            let length = source.read(&mut buffer, self.output).await?;
            let Some(data) = buffer.get(..length).filter(|data| !data.is_empty()) else {
                return Ok(());
            };
            let event = match which {
                Output::Stdout => Event::Stdout { at, data },
                Output::Stderr => Event::Stderr { at, data },
            };
            self.send(&event).await?;
            // A snapshot may come long before the next output does.
            buffer[..length].fill(0);
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
                Request::Resize(size) => {
                    if let Some(terminal) = &self.terminal {
                        // One that is hung up has nobody who could care.
                        let _ = terminal.resize(size);
                    }
                }
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
    async fn feed(&self, mut sink: Option<Sink>) -> Result<(), ExecError> {
        let (mut told, mut last) = (0, None);
        while let Some(chunk) = self.input.next().await {
            last = chunk.last().copied();
            if let Some(open) = &mut sink
                && open.write_all(&chunk).await.is_err()
            {
                sink = None;
                self.input.close();
                self.send(&Event::StdinClosed).await?;
            }
            if let Some(total) = self.input.taken(chunk.len(), told) {
                told = total;
                self.send(&Event::StdinTaken { total }).await?;
            }
        }
        if let Some(sink) = sink {
            // Whoever has closed its terminal needs no end of input.
            let _ = sink.end(last).await;
        }
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
            tty: self.terminal.is_some(),
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
