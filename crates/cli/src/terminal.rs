//! This program's own terminal.

use std::io::stdin;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Rows and columns, if there is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).or_else(|_| tcgetwinsize(std::io::stdout())).ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// The terminal hands every key on; it is as it was when this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// `None` where there is no terminal.
    pub fn enter() -> Option<Self> {
        if !isatty(stdin()) {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}
