//! A command for nobody, so that an emulator has translated what the first real one will execute.

use std::future::pending;
use std::io;
use std::time::Duration;

use throughline_wire::exec::{Event, Request, Start};
use throughline_wire::{decode, encode};
use tokio::time::timeout;

use super::session::Session;
use super::{ExecError, Executor, first};
use crate::channel::{Inbox, Outbox};

/// A program that does nothing, and is there in most images. Where it is not, the fork alone is rehearsed.
const PROGRAM: &[u8] = b"true";
/// How long it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Says one thing, and then nothing.
struct Once(Option<Vec<u8>>);

impl Inbox for Once {
    async fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.0.take() {
            Some(message) => Ok(Some(message)),
            None => pending().await,
        }
    }
}

/// Takes whatever is an event.
struct Nobody;

impl Outbox for Nobody {
    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        decode::<Event<'_>>(message).map(drop).map_err(io::Error::other)
    }

    async fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Executor {
    /// Serves a command as [`serve`](Self::serve) does, while the gate is closed: it is none of the user's.
    ///
    /// # Errors
    /// What kept it from its end, or that it did not come to it.
    pub async fn rehearse(&self) -> Result<(), ExecError> {
        let start = Start { argv: vec![PROGRAM.to_vec().into()], ..Start::default() };
        let request = encode(&Request::Start(start)).map_err(io::Error::other)?;
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the program of a rehearsal does not end");
        timeout(LIMIT, self.perform(Once(Some(request)))).await.map_err(late)?
    }

    async fn perform(&self, mut inbox: Once) -> Result<(), ExecError> {
        let start = first(&mut inbox).await?;
        let spec = start.and_then(|start| self.spec(start)).map(|spec| crate::spawn::Spec { of_user: false, ..spec });
        match spec.and_then(|spec| self.spawner.spawn(&spec)) {
            Ok(spawned) => Session::new(self, spawned, Nobody)?.run(inbox).await,
            // Nothing can be said of an image that has no such program.
            Err(_) => Ok(()),
        }
    }
}
