//! Input that has arrived and that the command has not taken yet: at most a window of it.

use std::cell::RefCell;
use std::collections::VecDeque;

use throughline_wire::exec::STDIN_WINDOW;
use tokio::sync::Notify;

/// The queue between the channel and the command's input.
#[derive(Debug, Default)]
pub(super) struct Input {
    state: RefCell<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Vec<u8>>,
    received: u64,
    taken: u64,
    ended: bool,
    closed: bool,
}

/// The host sent more than the window allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("more than {STDIN_WINDOW} bytes of input are unacknowledged; the host must wait for StdinTaken")]
    Window,
    #[error("input came after its end")]
    Ended,
}

impl Input {
    /// Of a command with (`open`) or without input.
    pub(super) fn new(open: bool) -> Self {
        let input = Self::default();
        input.state.borrow_mut().ended = !open;
        input
    }

    /// Input has arrived.
    pub(super) fn push(&self, data: &[u8]) -> Result<(), Refused> {
        let mut state = self.state.borrow_mut();
        if state.ended {
            return Err(Refused::Ended);
        }
        state.received += data.len() as u64;
        if state.received - state.taken > STDIN_WINDOW {
            return Err(Refused::Window);
        }
        // Empty pieces would cost memory that the window does not count.
        if !data.is_empty() {
            state.chunks.push_back(data.to_vec());
        }
        self.changed.notify_one();
        Ok(())
    }

    /// No more will come.
    pub(super) fn end(&self) {
        self.state.borrow_mut().ended = true;
        self.changed.notify_one();
    }

    /// The command has closed its end.
    pub(super) fn close(&self) {
        self.state.borrow_mut().closed = true;
    }

    /// The next piece; `None` at the end. For one caller.
    pub(super) async fn next(&self) -> Option<Vec<u8>> {
        loop {
            {
                let mut state = self.state.borrow_mut();
                if let Some(chunk) = state.chunks.pop_front() {
                    return Some(chunk);
                }
                if state.ended {
                    return None;
                }
            }
            // A notification between the look and here is kept for us.
            self.changed.notified().await;
        }
    }

    /// Bytes have left the window. The new total, if the host should be told now: rarely while a lot is
    /// queued, always when nothing is.
    pub(super) fn taken(&self, bytes: usize, told: u64) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        state.taken += bytes as u64;
        let due = state.chunks.is_empty() || state.taken - told >= STDIN_WINDOW / 4;
        due.then_some(state.taken)
    }

    /// Bytes received, bytes taken, and whether more is welcome.
    pub(super) fn status(&self) -> (u64, u64, bool) {
        let state = self.state.borrow();
        (state.received, state.taken, !state.ended && !state.closed)
    }
}
