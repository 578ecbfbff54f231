//! `throughline shim`: the process that holds a sandbox. Started by the others.

use std::fs::File;
use std::io::{self, Write};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use throughline_shim::pool::Keeper;
use throughline_shim::server::{self, Server};
use throughline_shim::start::{Outcome, Program, Start, Take};
use zeroize::Zeroizing;

use crate::error::CliError;

/// Bytes of most lines. Longer ones are read into more memory.
const FIRST: usize = 16 << 10;

/// Reads what to do from the standard input, says what came of it, and serves.
pub async fn run() -> Result<u8, CliError> {
    raise_limits();
    let begun = match read().await? {
        Some(Start::Wait { bundle, index, trusted }) => match server::wait(&bundle, index, trusted).await {
            Ok(waiting) => {
                answer(&Outcome::Waiting)?;
                let take = tokio::select! {
                    biased;
                    // Whoever keeps it replaces it.
                    _ = waiting.ended() => None,
                    take = read::<Take>() => take?,
                };
                // Without one whoever began it has died, or does not need it.
                let Some(take) = take else { return Ok(0) };
                Server::take(waiting, take).await
            }
            Err(error) => Err(error),
        },
        Some(start) => Server::begin(start).await,
        None => return Err(not_for_people("it reads what to do from its standard input")),
    };
    match begun {
        Ok(server) => {
            crate::log::begin(server.runtime(), "shim.log").map_err(CliError::io("open shim.log"))?;
            say(&Outcome::Ready { name: server.name().to_owned() })?;
            server.serve().await?;
            Ok(0)
        }
        Err(error) => {
            say(&Outcome::Failed(error.into()))?;
            Ok(super::OWN_FAILURE)
        }
    }
}

/// `throughline keeper`: the process that holds a pool. Started by `pool create`.
pub async fn keep() -> Result<u8, CliError> {
    raise_limits();
    let Some(start) = read().await? else {
        return Err(not_for_people("it reads what to do from its standard input"));
    };
    match Keeper::begin(start, Program::this()).await {
        Ok(keeper) => {
            crate::log::begin(keeper.folder(), "keeper.log").map_err(CliError::io("open keeper.log"))?;
            say(&Outcome::Ready { name: keeper.name().to_owned() })?;
            keeper.serve().await?;
            Ok(0)
        }
        Err(error) => {
            say(&Outcome::Failed(error.into()))?;
            Ok(super::OWN_FAILURE)
        }
    }
}

/// Lets as many files be open as may be: each client has several. Nothing here counts descriptors in a small set.
fn raise_limits() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // With fewer it goes on, for fewer clients.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// The next line of the standard input; `None` at its end.
async fn read<T: DeserializeOwned + Send + 'static>() -> Result<Option<T>, CliError> {
    let line = || {
        let line = line().map_err(CliError::io("read what to do"))?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(|error| not_for_people(&error.to_string()))
    };
    tokio::task::spawn_blocking(line).await.map_err(|error| CliError::io("read")(error.into()))?
}

/// A line, after which whoever says it waits for an answer. It may have secrets: no copy of it is left in memory.
fn line() -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(FIRST));
    while line.last() != Some(&b'\n') {
        if line.len() == line.capacity() {
            let mut longer = Zeroizing::new(Vec::with_capacity(2 * line.capacity()));
            longer.extend_from_slice(&line);
            line = longer;
        }
        match rustix::io::read(rustix::stdio::stdin(), rustix::buffer::spare_capacity(&mut *line)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(line)
}

fn not_for_people(why: &str) -> CliError {
    CliError::Usage(format!("this is started by other commands, not by people: {why}"))
}

/// Says the last thing, and lets go of the standard output.
fn say(outcome: &Outcome) -> Result<(), CliError> {
    answer(outcome)?;
    let quiet = File::options().write(true).open("/dev/null").map_err(CliError::io("open /dev/null"))?;
    rustix::stdio::dup2_stdout(&quiet).map_err(|error| CliError::io("let go of the standard output")(error.into()))
}

fn answer(outcome: &Outcome) -> Result<(), CliError> {
    let text = serde_json::to_string(outcome).map_err(|error| CliError::io("answer")(error.into()))?;
    let mut stdout = std::io::stdout();
    // Whoever asked may have gone; the sandbox is there all the same.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    Ok(())
}
