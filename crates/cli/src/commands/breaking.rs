//! Who breaks a command off (SIGINT, SIGTERM, SIGHUP, SIGQUIT) leaves nothing of what it had begun.

use std::pin::pin;

use super::signals::{Signals, exit_code};
use crate::error::CliError;

/// Told when the user breaks off.
pub struct Breaking {
    signals: Signals,
    json: bool,
}

/// The exit code of a command that was broken off.
#[derive(Clone, Copy, Debug)]
pub struct BrokenOff(pub u8);

impl Breaking {
    /// From here on the signals end nothing by themselves.
    pub fn listen(json: bool) -> Result<Self, CliError> {
        Ok(Self { signals: Signals::listen()?, json })
    }

    /// Waits for the next signal. Cancel-safe.
    pub async fn next(&mut self) -> BrokenOff {
        BrokenOff(exit_code(self.signals.ending().await))
    }

    /// Does something, unless the user breaks off first: then it is dropped.
    pub async fn unless<T>(&mut self, doing: impl Future<Output = T>) -> Result<T, BrokenOff> {
        tokio::select! {
            biased;
            done = doing => Ok(done),
            broken_off = self.next() => {
                self.say("what was begun is ended");
                Err(broken_off)
            }
        }
    }

    /// Has another process make something, which does not stop if this one ends. If the user breaks off, what comes of it
    /// is awaited, and taken back. One who insists is obeyed at once.
    pub async fn or_take_back<T, E>(
        &mut self,
        making: impl Future<Output = Result<T, E>>,
        take_back: impl AsyncFnOnce(T) -> Result<(), CliError>,
    ) -> Result<Result<T, BrokenOff>, CliError>
    where
        CliError: From<E>,
    {
        let mut making = pin!(making);
        let broken_off = tokio::select! {
            biased;
            made = &mut making => return Ok(Ok(made?)),
            broken_off = self.next() => broken_off,
        };
        self.say("what is being made is awaited, and ended");
        let outcome = async {
            match making.await {
                Ok(made) => take_back(made).await,
                Err(error) => match CliError::from(error) {
                    // There is nothing.
                    CliError::Shim(error) if !error.is_unknown() => Ok(()),
                    error => Err(error),
                },
            }
        };
        self.take_back(broken_off, outcome).await.map(Err)
    }

    /// Takes back what was begun, unless the user insists.
    pub async fn take_back(
        &mut self,
        broken_off: BrokenOff,
        taking: impl Future<Output = Result<(), CliError>>,
    ) -> Result<BrokenOff, CliError> {
        tokio::select! {
            taken = taking => taken.map(|()| broken_off),
            insisted = self.next() => Ok(insisted),
        }
    }

    /// Tells people that it is broken off, and what that means.
    pub fn say(&self, what: &str) {
        if !self.json {
            eprintln!("throughline: broken off: {what}");
        }
    }
}
