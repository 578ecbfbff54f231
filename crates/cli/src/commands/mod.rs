//! What each verb does.

mod breaking;
mod copy;
mod deadline;
mod doctor;
mod exec;
mod fork;
mod given;
mod image;
mod list;
mod logs;
mod pool;
mod remove;
mod signals;
mod snapshot;

use std::path::PathBuf;

use throughline_sandbox::SandboxError;
use throughline_sandbox::engine::{Exit, Hardware};
use throughline_sandbox::files::Options;
use throughline_shim::ShimError;
use throughline_shim::client::Remote;
use throughline_shim::start::{Program, Start};

use crate::arguments::{Arguments, Run, Verb};
use crate::error::CliError;
use crate::output;
use breaking::{Breaking, BrokenOff};
use deadline::Deadline;

/// Does it. The exit code.
pub async fn run(arguments: Arguments) -> Result<u8, CliError> {
    let json = arguments.json;
    match arguments.verb {
        Verb::Run(run) => Box::pin(create(run, json)).await,
        Verb::Exec(exec) => exec::exec(&exec.name, &exec.how, &exec.command, json).await,
        Verb::Attach { name, id } => exec::attach(&connect(&name).await?, &id).await,
        Verb::Cp { source, dest, tar, owner, follow } => {
            copy::copy(&source, &dest, tar, Options { owner, follow }, json).await
        }
        Verb::Ps { name } => list::commands(&connect(&name).await?, json).await,
        Verb::Ls => list::sandboxes(json),
        Verb::Inspect { what } => list::inspect(&what, json).await,
        Verb::Logs { name, shim, follow } => logs::show(&name, shim, follow).await,
        Verb::Pause { name } => {
            connect(&name).await?.pause().await?;
            Ok(state(&name, "paused", json))
        }
        Verb::Resume { name } => {
            connect(&name).await?.resume().await?;
            Ok(state(&name, "running", json))
        }
        Verb::Wait { name } => wait(&name, json).await,
        Verb::Kill { name } => Ok(ended(&name, &connect(&name).await?.kill().await?, json)),
        Verb::Rm { names, force } => remove::sandboxes(&names, force, json).await,
        Verb::Prune => remove::prune(json),
        Verb::Fork(fork) => fork::run(fork, json).await,
        Verb::Pool(verb) => pool::run(verb, json).await,
        Verb::Snapshot(verb) => snapshot::run(verb, json).await,
        Verb::Image(verb) => image::run(verb, json).await,
        Verb::Doctor => Ok(doctor::examine(json).await),
        Verb::Completions { shell } => {
            let mut command = <Arguments as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "throughline", &mut std::io::stdout());
            Ok(0)
        }
        Verb::Man { folder } => {
            let command = <Arguments as clap::CommandFactory>::command();
            clap_mangen::generate_to(command, folder).map_err(CliError::io("write the manual pages"))?;
            Ok(0)
        }
        Verb::Shim => crate::shim::run().await,
        Verb::Keeper => crate::shim::keep().await,
    }
}

/// A sandbox through its shim, which is this program.
async fn connect(name: &str) -> Result<Remote, CliError> {
    Ok(Remote::connect(name, Program::this()).await?)
}

async fn create(run: Run, json: bool) -> Result<u8, CliError> {
    let Run { name, memory, cpus, net, image, given, keep, how, command } = run;
    let given = given::read(given)?;
    image::ensure(&image, json).await?;
    let hardware = Hardware { memory_mib: memory, cpus, net };
    let start = Start::Create { name, image, hardware, given, keeping: keep.keeping() };
    let mut breaking = Breaking::listen(json)?;
    let name = match start_unless(&mut breaking, &start).await? {
        Ok(name) => name,
        Err(BrokenOff(code)) => return Ok(code),
    };
    if command.is_empty() {
        announce(&name, None, json);
        return Ok(0);
    }
    let deadline = Deadline::after(how.timeout);
    let input = exec::Input::listen(how.interactive)?;
    let mut remote = None;
    let beginning = async {
        remote = deadline.within(connect(&name)).await.transpose()?;
        exec::begin(remote.as_ref(), &how, &command, deadline).await
    };
    let begun = match breaking.unless(Box::pin(beginning)).await {
        Ok(begun) => begun,
        Err(broken_off) => {
            let BrokenOff(code) = breaking.take_back(broken_off, Box::pin(remove::remove(&name, true))).await?;
            return Ok(code);
        }
    };
    let ran = match begun {
        Ok(begun) => begun.follow(&how, input, deadline).await,
        Err(error) => Err(error),
    };
    if let Ok(exec::Ran::Detached(id)) = &ran {
        announce(&name, Some(id), json);
        return Ok(0);
    }
    let ended = if keep.rm { end(&name, remote, json).await } else { Ok(Ok(())) };
    let code = ran.map(|ran| if let exec::Ran::Ended(code) = ran { code } else { 0 })?;
    Ok(ended?.map_or_else(|BrokenOff(code)| code, |()| code))
}

/// Ends a sandbox that vanishes with its machine, unless the user does not wait for that.
async fn end(name: &str, remote: Option<Remote>, json: bool) -> Result<Result<(), BrokenOff>, CliError> {
    let mut breaking = Breaking::listen(json)?;
    let ending = async {
        if let Some(remote) = remote
            && remote.kill().await.is_ok()
        {
            return Ok(());
        }
        // There was no way to it, or there is none any more: it may be there all the same.
        Box::pin(remove::remove(name, true)).await
    };
    tokio::select! {
        biased;
        ended = ending => ended.map(Ok),
        broken_off = breaking.next() => {
            breaking.say(&format!("sandbox {name:?} may still be there; `throughline rm --force {name}` removes it"));
            Ok(Err(broken_off))
        }
    }
}

/// Starts the shim of a new sandbox, which is removed again if the user breaks off.
async fn start_unless(breaking: &mut Breaking, start: &Start) -> Result<Result<String, BrokenOff>, CliError> {
    let program = Program::this();
    breaking.or_take_back(program.start(start), async |name: String| Box::pin(remove::remove(&name, true)).await).await
}

/// Says the name of a sandbox that is ready; for programs, the id of its command as well.
fn announce(name: &str, command: Option<&str>, json: bool) {
    if json {
        output::json(&serde_json::json!({ "name": name, "command": command }));
    } else {
        output::line(name);
    }
}

fn state(name: &str, state: &str, json: bool) -> u8 {
    if json {
        output::json(&serde_json::json!({ "name": name, "state": state }));
    }
    0
}

/// Waits for the end, or tells of one that has come.
async fn wait(name: &str, json: bool) -> Result<u8, CliError> {
    let exit = match Remote::connect(name, Program::this()).await {
        Ok(remote) => remote.wait().await?,
        Err(ShimError::Sandbox(SandboxError::Ended(exit))) => *exit,
        Err(error) => return Err(error.into()),
    };
    Ok(ended(name, &exit, json))
}

fn ended(name: &str, exit: &Exit, json: bool) -> u8 {
    if json {
        output::json(&serde_json::json!({ "name": name, "state": "exited", "exit": exit }));
    } else {
        output::line(&format!("{name}: {}", exit.reason));
    }
    0
}

/// A snapshot's folder: a path if it looks like one, else the place of its name.
fn snapshot_place(name: &str) -> Result<PathBuf, CliError> {
    if name.contains('/') {
        return std::path::absolute(name).map_err(CliError::io("find the snapshot"));
    }
    let good = !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !good {
        return Err(CliError::Usage(format!(
            "{name:?} is no name for a snapshot: use letters, digits, '-', '_' or '.', or give a path with a slash"
        )));
    }
    Ok(throughline_sandbox::snapshots().join(name))
}
