//! What can go wrong with a machine, and how one can end.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Machine;

/// Why an engine or a machine did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The monitor is not installed.
    #[error("{binary} was not found; install it with: {install}")]
    Missing {
        /// The program.
        binary: String,
        /// The command that installs it.
        install: &'static str,
    },
    /// The monitor is there, but answered a question about itself in a way nobody understands.
    #[error("{binary} {question} gave no usable answer ({answer}); is this QEMU 7.2 or later?")]
    Unusable {
        /// The program.
        binary: String,
        /// What it was asked.
        question: &'static str,
        /// The beginning of its answer.
        answer: String,
    },
    /// A saved machine differs from what this host's engine runs.
    #[error("the machine was saved as {saved:?}, but this engine runs {here:?}; restore it where these agree")]
    OtherMachine {
        /// What it was saved from.
        saved: Box<Machine>,
        /// What would load it.
        here: Box<Machine>,
    },
    /// A machine cannot have so many processors, or so few.
    #[error("a machine with {asked} processors cannot be had: ask for 1 to {most} ({because})")]
    Processors {
        /// How many it was to have.
        asked: u32,
        /// The most that it can have.
        most: u32,
        /// Why no more.
        because: &'static str,
    },
    /// A machine cannot have so much memory, or so little.
    #[error("a machine with {asked} MiB of memory cannot be had: ask for {least} to {most}")]
    Memory {
        /// MiB that it was to have.
        asked: u32,
        /// MiB that it needs.
        least: u32,
        /// The most MiB that it can have.
        most: u32,
    },
    /// The machine ended while it was asked to do something.
    #[error("the machine ended while it was to {doing}: {exit}")]
    Ended {
        /// What it was asked.
        doing: &'static str,
        /// How it ended.
        exit: Box<Exit>,
    },
    /// The monitor did not answer in time.
    #[error(
        "the monitor did not {doing} within {deadline:?}; it may be overloaded or hung: kill the machine, or try again"
    )]
    Deadline {
        /// What it was asked.
        doing: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// The monitor refused.
    #[error("the monitor refused to {doing}: {reason}")]
    Refused {
        /// What it was asked.
        doing: &'static str,
        /// Its words.
        reason: String,
    },
    /// The process that a record names is gone.
    #[error("the monitor with process id {pid} is gone; its guest cannot be taken over")]
    Gone {
        /// The recorded process id.
        pid: i32,
    },
    /// No space for a RAM image or a machine.
    #[error("no space to {doing} {path}; make room there, or choose another folder")]
    NoSpace {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl EngineError {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { doing, path },
            _ => Self::Io { doing, path, source },
        }
    }
}

/// How a machine ended, with what it said last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The reason.
    pub reason: ExitReason,
    /// The end of the guest's console, at most 4 KiB. The guest wrote it: show it, trust nothing.
    pub console: String,
    /// The end of the monitor's own messages, at most 4 KiB.
    pub messages: String,
    /// How often it was then tried in vain to bring the sandbox back from its last checkpoint.
    #[serde(default)]
    pub vain_tries: u32,
    /// Why the last of these tries came to nothing; without one, why none was made.
    #[serde(default)]
    pub vain_error: Option<String>,
}

/// What touching memory of a file gives that has no room on its file system.
const BUS: i32 = 7;

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest restarted itself, which ends a machine.
    Restarted,
    /// The monitor was asked to quit.
    Quit,
    /// The monitor was ended by this signal.
    Signal(i32),
    /// The monitor gave up with this exit code.
    Failed(i32),
    /// The monitor is gone, and as it was not our child, nobody said why.
    Unknown,
}

impl ExitReason {
    /// Whether the monitor died: the guest had no part in it, and nobody asked for it.
    #[must_use]
    pub fn is_death(self) -> bool {
        matches!(self, Self::Signal(_) | Self::Failed(_) | Self::Unknown)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::Restarted => f.write_str("the guest restarted, which ends the machine"),
            Self::Quit => f.write_str("the monitor was asked to quit"),
            Self::Signal(BUS) => f.write_str(
                "the monitor was ended by signal 7: no space for its memory, on /dev/shm or where the snapshot lies; make room there",
            ),
            Self::Signal(signal) => write!(f, "the monitor was ended by signal {signal}"),
            Self::Failed(code) => write!(f, "the monitor failed with exit code {code}"),
            Self::Unknown => f.write_str("the monitor is gone"),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        match (self.vain_tries, &self.vain_error) {
            (0, None) => {}
            (0, Some(error)) => write!(f, "; {error}")?,
            (tries, error) => {
                write!(f, "; {tries} tries to go back to the last checkpoint came to nothing")?;
                if let Some(error) = error {
                    write!(f, "\nthe last try: {error}")?;
                }
            }
        }
        if !self.messages.trim().is_empty() {
            write!(f, "\nmonitor: {}", self.messages.trim())?;
        }
        if !self.console.trim().is_empty() {
            write!(f, "\nconsole: {}", self.console.trim())?;
        }
        Ok(())
    }
}
