//! What a guest is given, from the arguments.

use std::fs::File;
use std::io::{self, Read};

use throughline_sandbox::{Given, Secrets};
use throughline_wire::secrets::MAX_VALUE;
use zeroize::Zeroizing;

use crate::arguments;
use crate::error::CliError;

/// Checks what is to be given to a sandbox before anything is started.
pub fn read(given: arguments::Given) -> Result<Given, CliError> {
    read_for(given, 0, None)
}

/// The same for one of a pool's children, whichever it will be.
pub fn read_for_child(given: arguments::Given) -> Result<Given, CliError> {
    read_for(given, 1, None)
}

/// The same for so many children of the sandbox `source`, whose own secrets are handed on by their names.
pub fn read_for_children(given: arguments::Given, children: u64, source: &str) -> Result<Given, CliError> {
    read_for(given, children, Some(source))
}

fn read_for(given: arguments::Given, children: u64, source: Option<&str>) -> Result<Given, CliError> {
    let arguments::Given { hostname, secrets: arguments } = given;
    let mut secrets = Secrets::default();
    for argument in &arguments {
        match (argument.split_once('='), source) {
            (Some((name, value)), _) => secrets.insert(name, value_of(name, value)?),
            (None, Some(source)) => secrets.insert(argument, own(argument, source)?),
            (None, None) => {
                let message = format!("--secret {argument}: write it like NAME=VALUE or NAME=@FILE");
                return Err(CliError::Usage(message));
            }
        }
    }
    let given = Given { hostname, secrets };
    // The last child's number is the longest.
    given.check(children).map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(given)
}

fn value_of(name: &str, value: &str) -> Result<Vec<u8>, CliError> {
    let Some(path) = value.strip_prefix('@') else { return Ok(value.as_bytes().to_vec()) };
    // Room for all, so that no part of it is left where a smaller buffer was.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_VALUE + 2));
    let read = File::open(path).and_then(|file| file.take(MAX_VALUE as u64 + 1).read_to_end(&mut bytes));
    let unreadable =
        |error: io::Error| CliError::Usage(format!("cannot read the secret {name:?} from {path}: {error}"));
    read.map_err(unreadable)?;
    if bytes.len() > MAX_VALUE {
        return Err(CliError::Usage(format!(
            "the secret {name:?} from {path} is too long: {MAX_VALUE} bytes are the most"
        )));
    }
    Ok(std::mem::take(&mut bytes))
}

fn own(name: &str, source: &str) -> Result<Vec<u8>, CliError> {
    let secrets = Secrets::of(source)?;
    let missing = || {
        let message =
            format!("sandbox {source:?} has no secret {name:?} to hand on; give one with NAME=VALUE or NAME=@FILE");
        CliError::Usage(message)
    };
    secrets.get(name).map(<[u8]>::to_vec).ok_or_else(missing)
}
