//! Snapshots.

use std::fs;
use std::path::Path;

use serde_json::json;
use throughline_sandbox::SandboxError;
use throughline_sandbox::bundle::{Bundle, Manifest};
use throughline_shim::pool;
use throughline_shim::start::Start;

use super::breaking::{Breaking, BrokenOff};
use super::remove::removed;
use super::{announce, connect, given, list, snapshot_place, start_unless};
use crate::arguments::SnapshotVerb;
use crate::error::CliError;
use crate::output;

/// `snapshot …`
pub async fn run(verb: SnapshotVerb, json: bool) -> Result<u8, CliError> {
    match verb {
        SnapshotVerb::Create { name, snapshot, stop, unquiesced } => {
            let place = snapshot_place(&snapshot)?;
            let snapped = connect(&name).await?.snapshot(place, stop, unquiesced).await?;
            if json {
                output::json(&json!({ "snapshot": snapshot, "report": snapped }));
            } else {
                output::line(&snapshot);
            }
            Ok(0)
        }
        SnapshotVerb::Restore { snapshot, name, given, keep } => {
            let given = given::read(given)?;
            let bundle = snapshot_place(&snapshot)?;
            let start = Start::Restore { name, bundle, given, keeping: keep.keeping() };
            match start_unless(&mut Breaking::listen(json)?, &start).await? {
                Ok(name) => announce(&name, None, json),
                Err(BrokenOff(code)) => return Ok(code),
            }
            Ok(0)
        }
        SnapshotVerb::Ls => all(json),
        SnapshotVerb::Rm { snapshots } => {
            for name in &snapshots {
                remove(name, json).await?;
            }
            Ok(0)
        }
        SnapshotVerb::Verify { snapshot } => verify(&snapshot, json),
        SnapshotVerb::Inspect { snapshot } => {
            let place = snapshot_place(&snapshot)?;
            list::inspect(&place.to_string_lossy(), json).await
        }
    }
}

fn open(place: &Path) -> Result<Bundle, CliError> {
    Ok(Bundle::open(place).map_err(SandboxError::from)?)
}

fn all(json: bool) -> Result<u8, CliError> {
    let mut names: Vec<String> = match fs::read_dir(throughline_sandbox::snapshots()) {
        Ok(entries) => entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(CliError::io("list the snapshots")(error)),
    };
    names.sort();
    let rows = names.into_iter().filter_map(|name| Some((open(&snapshot_place(&name).ok()?), name)));
    let rows: Vec<_> = rows.collect();
    if json {
        let values = rows.iter().map(|(bundle, name)| {
            let (manifest, error) = match bundle {
                Ok(bundle) => (Some(bundle.manifest()), None),
                Err(error) => (None, Some(error.to_string())),
            };
            json!({ "name": name, "manifest": manifest, "error": error })
        });
        output::json(&values.collect::<Vec<_>>());
        return Ok(0);
    }
    let now = output::now_ms();
    let mut cells = Vec::new();
    for (bundle, name) in &rows {
        match bundle {
            Ok(bundle) => cells.push([vec![name.clone()], figures(bundle.manifest(), now).to_vec()].concat()),
            Err(error) => output::complaint(name, error),
        }
    }
    output::table(&["NAME", "AGE", "SIZE", "CARRIED", "QUIESCED"], &cells);
    Ok(0)
}

/// Age, size, bytes carried, and whether the guest was quiet.
fn figures(manifest: &Manifest, now: u64) -> [String; 4] {
    let carried = manifest.carried.to_guest + manifest.carried.to_host;
    [
        output::age(now.saturating_sub(manifest.created_ms)),
        output::bytes(manifest.files.values().map(|file| file.bytes).sum()),
        output::bytes(carried),
        if manifest.quiesced { "yes" } else { "no" }.to_owned(),
    ]
}

async fn remove(name: &str, json: bool) -> Result<(), CliError> {
    let place = snapshot_place(name)?;
    if let Some(pool) = pool_of(&place).await? {
        return Err(CliError::Usage(format!(
            "the children of pool {pool:?} are made of snapshot {name:?}, or it does not say: remove the pool first, with `pool rm {pool}`"
        )));
    }
    Bundle::remove(&place).map_err(SandboxError::from)?;
    removed(name, json);
    Ok(())
}

/// A pool whose children are made of the snapshot at this place, or that does not say of what.
async fn pool_of(place: &Path) -> Result<Option<String>, CliError> {
    let Ok(place) = fs::canonicalize(place) else { return Ok(None) };
    let is_source = |listed: &pool::Listed| {
        listed.standing.as_ref().map_or(true, |standing| match &standing.source {
            pool::Source::Snapshot(source) => fs::canonicalize(source).is_ok_and(|source| source == place),
            pool::Source::Sandbox(_) => false,
        })
    };
    Ok(pool::list().await?.into_iter().find(is_source).map(|listed| listed.name))
}

fn verify(name: &str, json: bool) -> Result<u8, CliError> {
    let bundle = open(&snapshot_place(name)?)?;
    for file in bundle.manifest().files.keys() {
        bundle.check(file).map_err(SandboxError::from)?;
    }
    if json {
        output::json(&json!({ "snapshot": name, "whole": true }));
    } else {
        output::line(&format!("{name}: whole"));
    }
    Ok(0)
}
