//! Running a command in the guest: one message channel a command.
//!
//! ```text
//!   host                                  guest
//!   Start ──────────────────────────────►
//!         ◄────────────────────────────── Started, or Failed and the end
//!   Stdin, at most a window ahead ──────►
//!         ◄────────────────────────────── StdinTaken
//!         ◄────────────────────────────── Stdout, Stderr
//!   StdinEnd, Signal ───────────────────►
//!         ◄────────────────────────────── Exited, as soon as the process has ended
//!         ◄────────────────────────────── Stdout, Stderr that were still in the pipes
//!         ◄────────────────────────────── end of sending, when both pipes are at end of file
//! ```
//!
//! *Nothing is dropped after the exit.* A background process may hold the pipes open long after
//! [`Event::Exited`]; whoever does not want to wait for it closes the channel.
//!
//! *A command that does not read its input delays nothing.* The host keeps at most
//! [`STDIN_WINDOW`] bytes unacknowledged ([`StdinWindow`] counts), which the guest holds in memory and
//! which is less than a ring; so a signal always gets through.
//!
//! *Whoever takes over a channel* knows nothing of what its predecessor sent: it sends
//! [`Request::Query`], and the answer says how much input has arrived, in order with everything before.
//! Output carries its position, so a reader that joins late sees that nothing is missing.
//!
//! *A terminal.* With [`Start::tty`] the command's input, output and errors are a terminal of its own, and it is
//! the leader of the terminal's session. What is printed comes as [`Event::Stdout`]; input is what is typed, so
//! that control characters do what the terminal's settings say (Ctrl-C interrupts the foreground group), and its
//! end is the terminal's end-of-file character. Output ends when nobody has the terminal open any more.
//!
//! *Closing.* When the host shuts its sending down, input ends. When it closes or resets the channel,
//! the command's session is killed: nobody is left who could want it.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::Message;

/// Most bytes of input, output or errors in one message.
pub const MAX_DATA: usize = 16 * 1024;

/// Input in bytes that may be on its way, unacknowledged.
pub const STDIN_WINDOW: u64 = 32 * 1024;

/// Longest request or event. Long argument lists need a channel with rings of this size.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments; a program without a slash is looked up in the command's `PATH`.
    pub argv: Vec<ByteBuf>,
    /// Variables, on top of the guest's defaults (`PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL`, `TERM`).
    pub env: Vec<(ByteBuf, ByteBuf)>,
    /// Working directory; the user's home without one.
    pub cwd: Option<ByteBuf>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root without one.
    pub user: Option<String>,
    /// Whether input follows; otherwise the command reads from `/dev/null`. With a terminal it always may.
    pub stdin: bool,
    /// Runs it on a terminal of this size.
    pub tty: Option<WindowSize>,
}

/// Size of a terminal in characters; zero = unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// From host to guest. [`Request::Start`] is the first, and comes once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Run this.
    Start(Start),
    /// Input, at most [`MAX_DATA`] bytes.
    Stdin(#[serde(borrow, with = "serde_bytes")] &'a [u8]),
    /// No more input.
    StdinEnd,
    /// Send a signal; nothing happens if the command has ended.
    Signal {
        /// 1 to 64.
        number: i32,
        /// To the whole process group, as a terminal does, not only to the command itself.
        group: bool,
    },
    /// Ask for [`Event::Status`].
    Query,
    /// The terminal has another size; nothing happens without one.
    Resize(WindowSize),
}

impl Message for Request<'_> {
    const NAME: &'static str = "exec request";
    const MAX_LEN: usize = MAX_MESSAGE;
}

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// The command runs; the first event, unless it is `Failed`.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Output, at most [`MAX_DATA`] bytes.
    Stdout {
        /// Bytes of output before these.
        at: u64,
        /// The bytes.
        #[serde(borrow, with = "serde_bytes")]
        data: &'a [u8],
    },
    /// Error output, at most [`MAX_DATA`] bytes.
    Stderr {
        /// Bytes of error output before these.
        at: u64,
        /// The bytes.
        #[serde(borrow, with = "serde_bytes")]
        data: &'a [u8],
    },
    /// The process has ended and is reaped. Output may still follow.
    Exited(Exit),
    /// The command did not start, or the request broke the rules. The last event.
    Failed(Failure),
    /// Input that has left the window.
    StdinTaken {
        /// Bytes since the start, whether the command read them or had closed its input.
        total: u64,
    },
    /// The command closed its input; more is thrown away.
    StdinClosed,
    /// Answer to [`Request::Query`].
    Status(Status),
}

impl Message for Event<'_> {
    const NAME: &'static str = "exec event";
    const MAX_LEN: usize = MAX_MESSAGE;
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl Exit {
    /// What a shell would return: the code, or 128 + the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => number.saturating_add(128),
        }
    }
}

/// Why a command did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind, for the exit code.
    pub kind: FailureKind,
    /// What was wrong, in a sentence.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such program, or no interpreter for it.
    NotFound,
    /// It exists and cannot be executed.
    NotExecutable,
    /// The user or group is unknown.
    NoSuchUser,
    /// The working directory cannot be entered.
    BadCwd,
    /// The request broke the protocol; nothing runs any more.
    Protocol,
    /// Anything else: no memory, no processes left.
    Other,
}

impl FailureKind {
    /// The exit code that a host hands on, as shells and container tools do.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::NotFound => 127,
            Self::NotExecutable => 126,
            Self::NoSuchUser | Self::BadCwd | Self::Protocol | Self::Other => 125,
        }
    }
}

/// A command at the moment when the query was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its process id.
    pub pid: u32,
    /// Bytes of input that have arrived.
    pub stdin_received: u64,
    /// Bytes of input that have left the window.
    pub stdin_taken: u64,
    /// Whether more input is accepted: none was refused, and the host has not ended it.
    pub stdin_open: bool,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// Whether it runs on a terminal.
    pub tty: bool,
}

/// The host's account of input on its way.
///
/// ```
/// use throughline_wire::exec::{STDIN_WINDOW, StdinWindow};
///
/// let mut window = StdinWindow::new();
/// window.sent(STDIN_WINDOW);
/// assert_eq!(window.available(), 0);
/// window.taken(100);
/// assert_eq!(window.available(), 100);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StdinWindow {
    sent: u64,
    taken: u64,
}

impl StdinWindow {
    /// Of a command that has just been started.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of a command that was taken over.
    pub fn resume(status: &Status) -> Self {
        Self { sent: status.stdin_received, taken: status.stdin_taken.min(status.stdin_received) }
    }

    /// Bytes that may be sent now.
    pub fn available(&self) -> u64 {
        STDIN_WINDOW.saturating_sub(self.sent - self.taken)
    }

    /// Counts bytes as sent.
    pub fn sent(&mut self, bytes: u64) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// Notes [`Event::StdinTaken`]; a total that goes back, or beyond what was sent, is ignored.
    pub fn taken(&mut self, total: u64) {
        if total <= self.sent {
            self.taken = self.taken.max(total);
        }
    }
}
