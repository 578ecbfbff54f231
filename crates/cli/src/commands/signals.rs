//! Signals that a client is sent, and hands on or ends with.

use std::future::poll_fn;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::OWN_FAILURE;
use crate::error::CliError;

const INTERRUPT: i32 = 2;
const QUIT: i32 = 3;
pub const HANG_UP: i32 = 1;
pub const TERMINATE: i32 = 15;

/// What a shell returns of a program that was ended by a signal.
pub fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(OWN_FAILURE)
}

/// Signals that end something, or are handed on, and changes of the terminal's size.
pub struct Signals {
    ending: Vec<(i32, Signal)>,
    resized: Signal,
}

impl Signals {
    /// From now on. What is ignored stays so: whoever started this program wants that (`nohup`).
    pub fn listen() -> Result<Self, CliError> {
        let on = |kind| signal(kind).map_err(CliError::io("listen for signals"));
        let ignored = ignored()?;
        let heeded =
            [INTERRUPT, QUIT, HANG_UP, TERMINATE].into_iter().filter(|number| ignored >> (number - 1) & 1 == 0);
        let ending =
            heeded.map(|number| Ok((number, on(SignalKind::from_raw(number))?))).collect::<Result<_, CliError>>();
        Ok(Self { ending: ending?, resized: on(SignalKind::window_change())? })
    }

    /// The number of the next one that is to end something. Cancel-safe.
    pub async fn ending(&mut self) -> i32 {
        loop {
            if let Some(number) = self.next().await {
                return number;
            }
        }
    }

    /// The next one's number; `None` for another size of the terminal. Cancel-safe.
    pub async fn next(&mut self) -> Option<i32> {
        poll_fn(|context| {
            for (number, signal) in &mut self.ending {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(Some(*number));
                }
            }
            self.resized.poll_recv(context).map(|_| None)
        })
        .await
    }
}

/// The signals that are ignored here, a bit each, as Linux's `/proc` tells (`man 5 proc_pid_status`).
fn ignored() -> Result<u64, CliError> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(CliError::io("find the signals to heed"))?;
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0))
}
