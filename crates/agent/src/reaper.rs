//! One place that reaps children, so that no status is ever lost.
//!
//! Process 1 inherits every orphan, and whoever waits for any child also takes the ones that somebody
//! waits for by name. So only the reaper waits; it hands each status to whoever adopted the child.
//! A child is adopted in the same step that forked it, with no `await` between, and the agent has one
//! thread: a status cannot come before its owner.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait, waitpid};
use throughline_wire::exec::Exit;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Whose statuses to collect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's: as process 1 or a subreaper.
    Everything,
    /// Only the adopted children's: in a process that has other children too.
    Adopted,
}

/// Hands the statuses of ended children to their owners.
#[derive(Debug)]
pub struct Reaper {
    scope: Scope,
    children: RefCell<HashMap<Pid, oneshot::Sender<Exit>>>,
}

/// An adopted child.
#[derive(Debug)]
pub struct Child(oneshot::Receiver<Exit>);

impl Child {
    /// Waits for its end. Cancel-safe.
    pub async fn ended(&mut self) -> Result<Exit, Abandoned> {
        (&mut self.0).await.map_err(|_| Abandoned)
    }
}

/// The agent's end came before the child's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent stopped waiting for its children; this is a bug in the agent")]
pub struct Abandoned;

impl Reaper {
    /// Without children yet.
    pub fn new(scope: Scope) -> Self {
        Self { scope, children: RefCell::default() }
    }

    /// Takes charge of a child that was forked in this very step.
    pub fn adopt(&self, pid: Pid) -> Child {
        let (sender, receiver) = oneshot::channel();
        self.children.borrow_mut().insert(pid, sender);
        Child(receiver)
    }

    /// Signals an adopted child, or its process group, unless it has been reaped: then the number might be
    /// somebody else's by now.
    pub fn kill(&self, pid: Pid, number: i32, group: bool) -> io::Result<()> {
        if self.children.borrow().contains_key(&pid) { crate::sys::kill(pid, number, group) } else { Ok(()) }
    }

    /// Adopted children that have not been reaped.
    pub fn running(&self) -> usize {
        self.children.borrow().len()
    }

    /// Reaps for ever. Ends only if signals cannot be received at all.
    pub async fn run(&self) -> io::Result<()> {
        let mut ends = Ends::new()?;
        loop {
            // Once before the first wait: what ended earlier signals no more.
            self.reap();
            ends.next().await?;
        }
    }

    /// Collects all statuses that are there.
    pub fn reap(&self) {
        match self.scope {
            Scope::Everything => while self.collect(None) {},
            Scope::Adopted => {
                let adopted: Vec<Pid> = self.children.borrow().keys().copied().collect();
                for pid in adopted {
                    self.collect(Some(pid));
                }
            }
        }
    }

    /// Collects one status; whether there was one.
    fn collect(&self, pid: Option<Pid>) -> bool {
        loop {
            // waitpid(None, …) would look at the agent's own process group only, where no child is.
            let found = match pid {
                Some(_) => waitpid(pid, WaitOptions::NOHANG),
                None => wait(WaitOptions::NOHANG),
            };
            match found {
                Ok(Some((pid, status))) => {
                    if let Some(exit) = exit_of(status)
                        && let Some(owner) = self.children.borrow_mut().remove(&pid)
                    {
                        // An owner that has gone does not want to know.
                        let _ = owner.send(exit);
                    }
                    return true;
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    }
}

/// Tells when children have ended.
enum Ends {
    /// Process 1 is never interrupted.
    File(AsyncFd<File>),
    /// A process whose threads are not all the agent's cannot keep a signal from all of them.
    Handler(Signal),
}

impl Ends {
    fn new() -> io::Result<Self> {
        if rustix::process::getpid().is_init() {
            crate::sys::ends_of_children().map(Self::File)
        } else {
            signal(SignalKind::child()).map(Self::Handler)
        }
    }

    /// Waits for the next end, of one child or several. Cancel-safe.
    async fn next(&mut self) -> io::Result<()> {
        match self {
            Self::Handler(signal) => signal.recv().await.ok_or_else(|| io::Error::other("no more signals")),
            Self::File(file) => {
                // Only one end is pending at a time, so one read takes all.
                let mut end = [0; size_of::<libc::signalfd_siginfo>()];
                file.async_io(Interest::READABLE, |file| Ok(rustix::io::read(file, &mut end)?)).await.map(|_| ())
            }
        }
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    status.exit_status().map(Exit::Code).or_else(|| status.terminating_signal().map(Exit::Signal))
}
