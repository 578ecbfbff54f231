//! Signals that a client is sent, and hands on or ends with.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::OWN_FAILURE;
use crate::error::CliError;

pub const HANG_UP: i32 = 1;
pub const TERMINATE: i32 = 15;

/// What a shell returns of a program that was ended by a signal.
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(OWN_FAILURE)
}

/// Signals to hand on.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    resized: Signal,
}

impl Signals {
    /// From now on.
    pub fn listen() -> Result<Self, CliError> {
        let on = |kind| signal(kind).map_err(CliError::io("listen for signals"));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
            quit: on(SignalKind::quit())?,
            resized: on(SignalKind::window_change())?,
        })
    }

    /// The number of the next one that is to end something.
    pub async fn ending(&mut self) -> i32 {
        loop {
            if let Some(number) = self.next().await {
                return number;
            }
        }
    }

    /// The next one's number; `None` for another size of the terminal.
    pub async fn next(&mut self) -> Option<i32> {
        tokio::select! {
            _ = self.interrupt.recv() => Some(2),
            _ = self.terminate.recv() => Some(TERMINATE),
            _ = self.hang_up.recv() => Some(HANG_UP),
            _ = self.quit.recv() => Some(3),
            _ = self.resized.recv() => None,
        }
    }
}
