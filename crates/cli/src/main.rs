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
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return unparsed(&error),
    };
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

/// Help that was asked for; or what is wrong with the arguments, which is a failure of this program's own.
fn unparsed(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Whoever closed the pipe does not want it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    if json {
        output::failure(&error::CliError::Usage(error.render().to_string().trim_end().to_owned()), true);
    } else {
        let _ = error.print();
    }
    ExitCode::from(OWN_FAILURE)
}
