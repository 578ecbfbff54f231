//! The `throughline` command.

mod arguments;
mod commands;
mod error;
mod log;
mod output;
mod shim;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;

/// What docker and its like return for failures of their own.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(commands::run(arguments));
            // A thread that reads the standard input cannot be waited for.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(error::CliError::io("start")(error)),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::failure(&error, json);
            ExitCode::from(error.code())
        }
    }
}
