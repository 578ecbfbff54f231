//! `throughline shim`: the process that holds a sandbox. Started by the others.

use std::fs::File;
use std::io::{BufRead, Write};

use throughline_sandbox::engine::EngineError;
use throughline_sandbox::{PlaceError, SandboxError};
use throughline_shim::ShimError;
use throughline_shim::api::{Failure, Kind};
use throughline_shim::server::Server;
use throughline_shim::start::{Outcome, Start};

use crate::error::CliError;

/// Reads what to do from the standard input, says what came of it, and serves.
pub async fn run() -> Result<u8, CliError> {
    let start = tokio::task::spawn_blocking(read).await.map_err(|error| CliError::io("read")(error.into()))??;
    match Server::begin(start).await {
        Ok(server) => {
            crate::log::begin(server.runtime()).map_err(CliError::io("open shim.log"))?;
            say(&Outcome::Ready { name: server.name().to_owned() })?;
            server.serve().await?;
            Ok(0)
        }
        Err(error) => {
            let kind = match &error {
                ShimError::Failure(failure) => failure.kind,
                ShimError::Sandbox(SandboxError::Ended(_)) => Kind::Ended,
                ShimError::Sandbox(SandboxError::Engine(EngineError::Processors { .. })) => Kind::Misuse,
                ShimError::Sandbox(SandboxError::Place(place)) => match place {
                    PlaceError::Taken(_) | PlaceError::Busy { .. } => Kind::Taken,
                    PlaceError::Missing(_) => Kind::Missing,
                    PlaceError::Name(_) => Kind::Misuse,
                    _ => Kind::Failed,
                },
                _ => Kind::Failed,
            };
            say(&Outcome::Failed(Failure { kind, message: error.to_string() }))?;
            Ok(super::OWN_FAILURE)
        }
    }
}

fn read() -> Result<Start, CliError> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(CliError::io("read what to start"))?;
    serde_json::from_str(&line).map_err(|error| {
        CliError::Usage(format!("`throughline shim` is started by other commands, not by people: {error}"))
    })
}

fn say(outcome: &Outcome) -> Result<(), CliError> {
    let text = serde_json::to_string(outcome).map_err(|error| CliError::io("answer")(error.into()))?;
    let mut stdout = std::io::stdout();
    // Whoever asked may have gone; the sandbox is there all the same.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    let quiet = File::options().write(true).open("/dev/null").map_err(CliError::io("open /dev/null"))?;
    rustix::stdio::dup2_stdout(&quiet).map_err(|error| CliError::io("let go of the standard output")(error.into()))
}
