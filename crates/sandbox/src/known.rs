//! Sandboxes as they lie in their folders: what is known without asking any process.

use std::path::PathBuf;

use serde::Serialize;

use crate::SandboxError;
use crate::bundle::Draft;
use crate::places::{PlaceError, Places};
use crate::sandbox::{Record, Wanted};

/// How a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is being created.
    Unfinished,
    /// Its guest runs.
    Running,
    /// Its guest was paused.
    Paused,
    /// Its machine ended, and how is known.
    Exited,
    /// Its machine has died, and it goes back to its last checkpoint with the next command, if it is not just doing so.
    Lost,
    /// Its machine is gone, and nobody saw it end: killed together with its shim, or the host was restarted.
    Dead,
    /// Another release made it, which alone knows more.
    Foreign,
}

/// A sandbox that somebody made and nobody removed.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What is on paper; `None` while it is unfinished, and where it is foreign.
    pub record: Option<Record>,
    /// How it stands.
    pub state: State,
    /// The folder of its sockets and logs.
    pub runtime: PathBuf,
}

impl Known {
    /// All of this user's, in the order of their names. What creators and others left that died is removed meanwhile.
    pub fn list() -> Result<Vec<Self>, SandboxError> {
        sweep()?;
        let known = Places::names()?.into_iter().filter_map(|name| match Self::find(&name) {
            Ok(known) => Some(known),
            Err(SandboxError::Record(_)) => Self::foreign(name).ok(),
            Err(error) => {
                tracing::debug!(name, %error, "not listed");
                None
            }
        });
        Ok(known.collect())
    }

    /// The one of a name. What a creator left that died is removed, and counts as nothing.
    ///
    /// # Errors
    /// There is none, or it is of another release.
    pub fn find(name: &str) -> Result<Self, SandboxError> {
        let places = Places::open(name)?;
        let mut record = Record::read(places.runtime())?;
        if record.is_none() {
            if places.reclaim()? {
                return Err(PlaceError::Missing(name.to_owned()).into());
            }
            // It may just have become one.
            record = Record::read(places.runtime())?;
        }
        let state = record.as_ref().map_or(State::Unfinished, |record| state(record, &places));
        Ok(Self { name: name.to_owned(), record, state, runtime: places.runtime().to_path_buf() })
    }

    fn foreign(name: String) -> Result<Self, SandboxError> {
        let runtime = Places::open(&name)?.runtime().to_path_buf();
        Ok(Self { name, record: None, state: State::Foreign, runtime })
    }

    /// Whether there is a machine that may be asked for something, or will be.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, State::Running | State::Paused | State::Lost)
    }

    /// Removes what is left of one that is not alive. Nothing happens where there is nothing.
    ///
    /// # Errors
    /// It lives, is being created, or is of another release.
    pub fn remove(name: &str) -> Result<(), SandboxError> {
        // Before the look: what is there by then under the name is not removed, if it is another.
        let places = match Places::open(name) {
            Err(PlaceError::Missing(_)) => return Ok(()),
            places => places?,
        };
        match Self::find(name) {
            Ok(known) if known.is_alive() => Err(PlaceError::Taken(name.to_owned()).into()),
            Ok(known) if known.state == State::Unfinished => {
                Err(PlaceError::Busy { name: name.to_owned(), process: None }.into())
            }
            Ok(known) => {
                if let Some(record) = &known.record {
                    crate::engine::remove_groups(&record.machine.groups);
                }
                // Its last shim may have died in the middle of a snapshot, which nobody can complete.
                if let Some(draft) = known.record.and_then(|record| record.snapshot) {
                    Draft::remove_left(&draft);
                }
                Ok(places.clear()?)
            }
            Err(SandboxError::Place(PlaceError::Missing(_))) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Removes what dead processes left that is no sandbox: machines that waited to be taken, and zygotes in memory.
///
/// # Errors
/// The folders cannot be read.
pub fn sweep() -> Result<(), SandboxError> {
    Places::sweep()?;
    crate::zygote::sweep()
}

fn state(record: &Record, places: &Places) -> State {
    let last = record.checkpoints.last.as_ref().map(|last| places.beside(&last.folder));
    let wanted = record.may_go_back() || record.checkpoints.going_back;
    let may_go_back = || wanted && places.current().is_dir() && last.is_some_and(|last| last.is_dir());
    match (&record.exit, record.wanted) {
        (Some(_), _) => State::Exited,
        (None, _) if !record.machine.is_running() && may_go_back() => State::Lost,
        (None, _) if !record.machine.is_running() => State::Dead,
        (None, Wanted::Running | Wanted::Ended) => State::Running,
        (None, Wanted::Paused) => State::Paused,
    }
}
