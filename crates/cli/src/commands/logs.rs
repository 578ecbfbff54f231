//! What guest and shim have said.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use throughline_sandbox::Known;

use crate::error::CliError;
use crate::output;

/// Between two looks at a log that grows.
const LOOK: Duration = Duration::from_millis(100);

/// `logs`
pub async fn show(name: &str, shim: bool, follow: bool) -> Result<u8, CliError> {
    let known = Known::find(name)?;
    let log = known.runtime.join(if shim { "shim.log" } else { "console.log" });
    let older = known.runtime.join("console.old");
    if !shim && older.exists() {
        copy(&mut open(&older)?)?;
    }
    let mut file = open(&log)?;
    loop {
        let ended = !Known::find(name).is_ok_and(|known| known.is_alive());
        copy(&mut file)?;
        if !follow || ended {
            return Ok(0);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn open(path: &Path) -> Result<File, CliError> {
    File::open(path).map_err(CliError::io("open the log"))
}

/// Prints what is there. The guest wrote it.
fn copy(file: &mut File) -> Result<(), CliError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(CliError::io("read the log"))?;
    let text = output::plain(&String::from_utf8_lossy(&bytes));
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(CliError::io("print the log"))
}
