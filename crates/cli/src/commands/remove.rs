//! Removing what is not needed any more.

use serde_json::json;
use throughline_sandbox::{Known, PlaceError, Sandbox, SandboxError};

use super::connect;
use crate::error::CliError;
use crate::output;

/// `rm`
pub async fn sandboxes(names: &[String], force: bool, json: bool) -> Result<u8, CliError> {
    for name in names {
        remove(name, force).await?;
        removed(name, json);
    }
    Ok(0)
}

/// Says that something is gone, to programs.
pub fn removed(name: &str, json: bool) {
    if json {
        output::json(&json!({ "name": name, "removed": true }));
    }
}

/// Removes one. With `force` it is ended first if it runs, and need not be there.
pub async fn remove(name: &str, force: bool) -> Result<(), CliError> {
    let known = match Known::find(name) {
        Err(SandboxError::Place(PlaceError::Missing(_))) if force => return Ok(()),
        found => found?,
    };
    if known.is_alive() {
        if !force {
            return Err(CliError::Usage(format!("sandbox {name:?} runs; end it first, or use `rm --force`")));
        }
        let killed = async {
            // Nobody has to take it over for that, or to bring it back, and perhaps nobody can.
            if Sandbox::give_up(name).is_ok() {
                return Ok(());
            }
            connect(name).await?.kill().await.map(drop).map_err(CliError::from)
        };
        let killed = killed.await;
        // One that was lost, and did not come back, is dead by now.
        if let Err(error) = killed
            && Known::find(name).is_ok_and(|known| known.is_alive())
        {
            return Err(error);
        }
    }
    Ok(Known::remove(name)?)
}

/// `prune`
pub fn prune(json: bool) -> Result<u8, CliError> {
    let mut removed = Vec::new();
    for known in Known::list()?.into_iter().filter(|known| !known.is_alive() && known.record.is_some()) {
        Known::remove(&known.name)?;
        removed.push(known.name);
    }
    removed.extend(throughline_shim::pool::remove_dead()?);
    if json {
        output::json(&json!({ "removed": removed }));
    } else {
        for name in &removed {
            output::line(name);
        }
    }
    Ok(0)
}
