//! `pool`: children that wait to be taken.

use std::time::Instant;

use serde::Serialize;
use throughline_sandbox::{Known, PlaceError, SandboxError};
use throughline_shim::pool::{self, Create, Listed, Source, Standing};
use throughline_shim::start::{Program, Take};

use super::breaking::{Breaking, BrokenOff};
use super::{given, remove, snapshot_place};
use crate::OWN_FAILURE;
use crate::arguments::PoolVerb;
use crate::error::CliError;
use crate::output;

/// What became of the child that was to be taken.
#[derive(Serialize)]
struct Taken {
    /// `None` if none was given, and none taken.
    name: Option<String>,
    ok: bool,
    error: Option<String>,
    /// Milliseconds until it was ready, or had failed.
    ms: u64,
}

/// A pool, for programs.
#[derive(Serialize)]
struct Row {
    name: String,
    /// What its children are children of: a sandbox's name, or a snapshot's folder.
    source: Option<String>,
    size: Option<usize>,
    waiting: Option<usize>,
    /// The keeper's process.
    pid: Option<u32>,
    /// How many tries in a row to make a child have come to nothing.
    failures: Option<u32>,
    /// Why the last of these did.
    last_error: Option<String>,
    /// Why its keeper does not say all this.
    error: Option<String>,
}

/// Does it. The exit code.
pub async fn run(verb: PoolVerb, json: bool) -> Result<u8, CliError> {
    match verb {
        PoolVerb::Create { source, pool, count } => {
            let size = usize::try_from(count).unwrap_or(usize::MAX);
            let create = Create { pool, source: find(&source)?, size };
            let program = Program::this();
            let take_back = async |()| Ok(pool::remove(&create.pool).await?);
            let made = Breaking::listen(json)?.or_take_back(pool::create(&create, &program), take_back).await?;
            if let Err(BrokenOff(code)) = made {
                return Ok(code);
            }
            if json {
                output::json(&serde_json::json!({ "name": create.pool }));
            } else {
                output::line(&create.pool);
            }
            Ok(0)
        }
        PoolVerb::Take { pool, child, given, keep } => {
            let started = Instant::now();
            let take = Take { name: child.clone(), given: given::read_for_child(given)?, keeping: keep.keeping() };
            let result = pool::take(&pool, take).await;
            taken(started, child, result, json)
        }
        PoolVerb::Ls => {
            list(pool::list().await?, json);
            Ok(0)
        }
        PoolVerb::Rm { pools } => {
            for name in pools {
                pool::remove(&name).await?;
                remove::removed(&name, json);
            }
            Ok(0)
        }
    }
}

/// A sandbox of the name, else a snapshot.
fn find(source: &str) -> Result<Source, CliError> {
    match Known::find(source) {
        Ok(_) => Ok(Source::Sandbox(source.to_owned())),
        Err(SandboxError::Place(missing @ (PlaceError::Missing(_) | PlaceError::Name(_)))) => {
            let place = snapshot_place(source)?;
            if place.exists() { Ok(Source::Snapshot(place)) } else { Err(SandboxError::from(missing).into()) }
        }
        Err(error) => Err(error.into()),
    }
}

fn taken(
    started: Instant,
    child: Option<String>,
    result: Result<String, throughline_shim::ShimError>,
    json: bool,
) -> Result<u8, CliError> {
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    match result {
        Ok(name) if json => output::json(&Taken { name: Some(name), ok: true, error: None, ms }),
        Ok(name) => output::line(&name),
        Err(error) if json => {
            output::json(&Taken { name: child, ok: false, error: Some(error.to_string()), ms });
            return Ok(OWN_FAILURE);
        }
        Err(error) => return Err(error.into()),
    }
    Ok(0)
}

fn list(pools: Vec<Listed>, json: bool) {
    let rows: Vec<_> = pools.into_iter().map(row).collect();
    if json {
        return output::json(&rows);
    }
    let cells = rows.into_iter().map(|row| {
        let Row {
            name,
            source: Some(source),
            size: Some(size),
            waiting: Some(waiting),
            pid: Some(pid),
            failures,
            last_error,
            ..
        } = row
        else {
            let error = row.error.unwrap_or_default();
            return vec![row.name, "-".to_owned(), error, "-".to_owned(), "-".to_owned()];
        };
        let failure = match (failures, last_error) {
            (Some(count @ 1..), Some(error)) => {
                format!("{}, {count} in a row", error.lines().next().unwrap_or_default())
            }
            _ => "-".to_owned(),
        };
        vec![name, source, format!("{waiting} of {size}"), pid.to_string(), failure]
    });
    output::table(&["NAME", "SOURCE", "WAITING", "PID", "LAST FAILURE"], &cells.collect::<Vec<_>>());
}

fn row(Listed { name, standing }: Listed) -> Row {
    let (standing, error) = match standing {
        Ok(standing) => (Some(standing), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let source = standing.as_ref().map(|standing| match &standing.source {
        Source::Sandbox(name) => name.clone(),
        Source::Snapshot(place) => place.display().to_string(),
    });
    let of = |field: fn(&Standing) -> usize| standing.as_ref().map(field);
    let (size, waiting) = (of(|standing| standing.size), of(|standing| standing.waiting));
    let pid = standing.as_ref().map(|standing| standing.pid);
    let (failures, last_error) = standing.map(|standing| (standing.failures, standing.last_error)).unzip();
    Row { name, source, size, waiting, pid, failures, last_error: last_error.flatten(), error }
}
