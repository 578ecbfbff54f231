//! `fork`: children of a sandbox, all of one moment.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use throughline_sandbox::Known;
use throughline_sandbox::zygote::Place;
use throughline_shim::ShimError;
use throughline_shim::api::{Failure, Kind};
use throughline_shim::start::{Program, Start};
use tokio::sync::Semaphore;

use super::breaking::{Breaking, BrokenOff};
use super::{connect, given, remove};
use crate::OWN_FAILURE;
use crate::arguments::Fork;
use crate::error::CliError;
use crate::output;

/// Why children are taken back of whom none failed.
const BROKEN_OFF: &str = "the command was broken off";

/// What became of one child.
#[derive(Serialize)]
struct Child {
    name: String,
    ok: bool,
    error: Option<String>,
    /// Milliseconds until it was ready, or had failed.
    ms: u64,
    /// Its shim did not say what came of it: there may be a sandbox all the same.
    #[serde(skip)]
    unknown: bool,
}

/// Spawns the children, and says what became of each.
pub async fn run(fork: Fork, json: bool) -> Result<u8, CliError> {
    let names = names(&fork);
    let given = given::read_for_children(fork.given, fork.count, &fork.name)?;
    // What is there under these names later, without having been taken then, is this command's.
    let free: Vec<bool> = names.iter().map(|name| Known::find(name).is_err()).collect();
    let remote = connect(&fork.name).await?;
    // Gone with this process; the children do not need it once they are there.
    let place = Place::new().await?;
    remote.snapshot(place.bundle(), false, false).await?;
    // More at once would only wait for each other.
    let most = std::thread::available_parallelism().map_or(2, |cores| 2 * cores.get());
    let room = Arc::new(Semaphore::new(most));
    let starting: Vec<_> = (1..)
        .zip(names)
        .map(|(index, name)| {
            let bundle = place.bundle();
            let keeping = fork.keep.keeping();
            let start = Start::Fork { name: name.clone(), bundle, index, given: given.clone(), keeping };
            let room = room.clone();
            tokio::spawn(async move {
                let started = Instant::now();
                let Ok(_room) = room.acquire().await else {
                    let unbegun = Failure { kind: Kind::Failed, message: BROKEN_OFF.to_owned() };
                    return child(name, started, Some(unbegun.into()));
                };
                let result = Program::this().start(&start).await;
                child(name, started, result.err())
            })
        })
        .collect();
    if fork.all_or_nothing {
        close_when_broken_off(room.clone(), json)?;
    }
    let mut children = Vec::with_capacity(starting.len());
    for child in starting {
        children.push(child.await.map_err(|error| CliError::io("wait for a child")(error.into()))?);
    }
    let failed = room.is_closed() || children.iter().any(|child| !child.ok);
    if failed && fork.all_or_nothing {
        let why = if room.is_closed() { BROKEN_OFF } else { "another child failed" };
        let ours = |child: &Child, free: bool| child.ok || (child.unknown && free && Known::find(&child.name).is_ok());
        let there = children.iter_mut().zip(free).filter(|(child, free)| ours(child, *free));
        take_back(there.map(|(child, _)| child), why).await;
    }
    tell(&children, json);
    Ok(if failed { OWN_FAILURE } else { 0 })
}

/// One child alone has the name that was given; several are numbered, and so is one that was not named.
fn names(fork: &Fork) -> Vec<String> {
    match &fork.child {
        Some(child) if fork.count == 1 => vec![child.clone()],
        child => {
            let stem = child.as_ref().unwrap_or(&fork.name);
            (1..=fork.count).map(|number| format!("{stem}-{number}")).collect()
        }
    }
}

fn child(name: String, started: Instant, error: Option<ShimError>) -> Child {
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let unknown = error.as_ref().is_some_and(ShimError::is_unknown);
    Child { name, ok: error.is_none(), error: error.map(|error| error.to_string()), ms, unknown }
}

/// Closes the room when the user breaks off: no more children are begun then, and those that are being made are awaited,
/// to be taken back. One who insists is obeyed at once.
fn close_when_broken_off(room: Arc<Semaphore>, json: bool) -> Result<(), CliError> {
    let mut breaking = Breaking::listen(json)?;
    tokio::spawn(async move {
        breaking.next().await;
        room.close();
        if !json {
            eprintln!("throughline: broken off: children that are being made are awaited, and ended");
        }
        let BrokenOff(insisted) = breaking.next().await;
        std::process::exit(insisted.into());
    });
    Ok(())
}

/// Ends children that are there.
async fn take_back(children: impl Iterator<Item = &mut Child>, why: &str) {
    for child in children {
        child.ok = false;
        child.error = Some(match remove::remove(&child.name, true).await {
            Ok(()) => format!("ended, because {why}"),
            Err(error) => format!("{why}, but this child could not be ended, and is there: {error}"),
        });
    }
}

fn tell(children: &[Child], json: bool) {
    if json {
        return output::json(&children);
    }
    for child in children {
        match &child.error {
            None => output::line(&child.name),
            Some(error) => output::complaint(&child.name, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{self, Keep};

    #[test]
    fn children_are_numbered_unless_there_is_one_with_a_name() {
        let named = |child: Option<&str>, count| {
            let (name, child) = ("web".to_owned(), child.map(str::to_owned));
            let given = arguments::Given::default();
            names(&Fork { name, child, count, all_or_nothing: false, given, keep: Keep::default() })
        };
        assert_eq!(named(Some("api"), 1), ["api"]);
        assert_eq!(named(None, 1), ["web-1"]);
        assert_eq!(named(Some("api"), 2), ["api-1", "api-2"]);
        assert_eq!(named(None, 3), ["web-1", "web-2", "web-3"]);
    }
}
