//! Sandboxes as they lie in their folders: what is known without asking any process.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use throughline::Holder;

use crate::SandboxError;
use crate::places::{PlaceError, Places};
use crate::sandbox::{Record, Wanted};

/// How a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being created, or its creator died at it.
    Unfinished,
    /// Its guest runs.
    Running,
    /// Its guest was paused.
    Paused,
    /// Its machine ended, and how is known.
    Exited,
    /// Its machine is gone, and nobody saw it end: killed together with its shim, or the host was restarted.
    Dead,
}

/// A sandbox that somebody made and nobody removed.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What is on paper; `None` while it is unfinished.
    pub record: Option<Record>,
    /// How it stands.
    pub state: State,
    /// The folder of its sockets and logs.
    pub runtime: PathBuf,
}

impl Known {
    /// All of this user's, in the order of their names.
    pub fn list() -> Result<Vec<Self>, SandboxError> {
        let (_, runtime) = Places::folders()?;
        let entries = fs::read_dir(&runtime).map_err(SandboxError::io("list the sandboxes"))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        Ok(names.into_iter().filter_map(|name| Self::find(&name).ok()).collect())
    }

    /// The one of a name.
    ///
    /// # Errors
    /// There is none, or it is of another release.
    pub fn find(name: &str) -> Result<Self, SandboxError> {
        let places = Places::open(name)?;
        let record = Record::read(places.runtime())?;
        let state = record.as_ref().map_or(State::Unfinished, state);
        Ok(Self { name: name.to_owned(), record, state, runtime: places.runtime().to_path_buf() })
    }

    /// Whether there is a machine that may be asked for something.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Running | State::Paused)
    }

    /// Removes what is left of one that is not alive. Nothing happens where there is nothing.
    pub fn remove(name: &str) -> Result<(), SandboxError> {
        match Self::find(name) {
            Ok(known) if known.is_alive() => Err(PlaceError::Taken(name.to_owned()).into()),
            _ => Ok(Places::clear(name)?),
        }
    }
}

fn state(record: &Record) -> State {
    let machine = &record.machine;
    let holder = Holder { pid: machine.pid.cast_unsigned(), started: machine.start_time };
    match (&record.exit, record.wanted) {
        (Some(_), _) => State::Exited,
        (None, _) if !holder.is_running() => State::Dead,
        (None, Wanted::Running) => State::Running,
        (None, Wanted::Paused) => State::Paused,
    }
}
