//! What a guest is given, from the arguments.

use throughline_sandbox::Given;

use crate::arguments;
use crate::error::CliError;

/// Checks what is to be given to a sandbox, or to so many children of a fork, before anything is started.
pub fn read(given: arguments::Given, children: u64) -> Result<Given, CliError> {
    let arguments::Given { hostname } = given;
    let given = Given { hostname };
    // The last child's number is the longest.
    given.hostname_of(children).map_err(|error| CliError::Usage(error.to_string()))?;
    Ok(given)
}
