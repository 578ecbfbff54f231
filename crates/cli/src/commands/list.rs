//! What there is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::json;
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::engine::{Confinement, Net};
use throughline_sandbox::{Known, State};
use throughline_shim::client::Remote;

use super::{connect, snapshot_place};
use crate::error::CliError;
use crate::output;

/// A sandbox, for programs.
#[derive(Serialize)]
struct Row {
    name: String,
    state: State,
    /// The machine's process.
    pid: Option<i32>,
    /// Milliseconds since it was created or restored.
    age_ms: Option<u64>,
    image: Option<String>,
    /// Bytes of guest memory.
    memory_bytes: Option<u64>,
    /// The guest's processors.
    cpus: Option<u32>,
    /// What its monitor is kept from, measure by measure, while it runs.
    confinement: Option<Confinement>,
    /// The guest's network.
    net: Option<Net>,
}

/// `ls`
pub fn sandboxes(json: bool) -> Result<u8, CliError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let rows: Vec<Row> = Known::list()?.into_iter().map(|known| row(known, now)).collect();
    if json {
        output::json(&rows);
        return Ok(0);
    }
    let cell = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let cells = rows.iter().map(|row| {
        vec![
            row.name.clone(),
            word(&row.state),
            cell(row.pid.map(|pid| pid.to_string())),
            cell(row.age_ms.map(output::age)),
            cell(row.image.as_deref().map(|image| image.chars().take(12).collect())),
            cell(row.memory_bytes.map(output::bytes)),
            cell(row.cpus.map(|cpus| cpus.to_string())),
            cell(row.net.as_ref().map(word)),
            cell(row.confinement.as_ref().map(Confinement::summary)),
        ]
    });
    output::table(
        &["NAME", "STATE", "PID", "AGE", "IMAGE", "MEMORY", "CPUS", "NET", "CONFINEMENT"],
        &cells.collect::<Vec<_>>(),
    );
    Ok(0)
}

fn row(known: Known, now: Duration) -> Row {
    let alive = known.is_alive();
    let Known { name, record, state, .. } = known;
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    Row {
        name,
        state,
        pid: record.as_ref().filter(|_| alive).map(|record| record.machine.pid),
        age_ms: record.as_ref().map(|record| now.saturating_sub(record.created_ms)),
        memory_bytes: record.as_ref().map(|record| u64::from(record.hardware.memory_mib) << 20),
        net: record.as_ref().map(|record| record.hardware.net),
        confinement: record.as_ref().filter(|_| alive).map(|record| record.machine.confinement.clone()),
        cpus: record.as_ref().map(|record| record.hardware.cpus),
        image: record.map(|record| record.image),
    }
}

/// The word that stands for a value in JSON.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `ps`
pub async fn commands(remote: &Remote, json: bool) -> Result<u8, CliError> {
    let commands = remote.commands().await?;
    if json {
        output::json(&commands);
        return Ok(0);
    }
    let cells = commands.iter().map(|command| {
        let attached = if command.attached { "yes" } else { "no" };
        vec![command.id.clone(), attached.to_owned(), output::bytes(command.unread), command.label.clone()]
    });
    output::table(&["ID", "FOLLOWED", "UNREAD", "COMMAND"], &cells.collect::<Vec<_>>());
    Ok(0)
}

/// `inspect`
pub async fn inspect(what: &str, compact: bool) -> Result<u8, CliError> {
    let value = match Known::find(what) {
        Ok(known) if known.is_alive() => {
            let remote = connect(what).await?;
            json!({
                "kind": "sandbox", "state": known.state, "shim": remote.shim(), "sandbox": remote.record().await?,
                "channels": remote.channels().await?,
            })
        }
        Ok(known) => json!({ "kind": "sandbox", "state": known.state, "sandbox": known.record, "channels": [] }),
        Err(missing) => {
            let place = snapshot_place(what)?;
            if !place.exists() {
                return Err(missing.into());
            }
            let bundle = Bundle::open(&place).map_err(throughline_sandbox::SandboxError::from)?;
            json!({ "kind": "bundle", "place": place, "manifest": bundle.manifest() })
        }
    };
    if compact {
        output::json(&value);
    } else {
        output::line(&serde_json::to_string_pretty(&value).unwrap_or_default());
    }
    Ok(0)
}
