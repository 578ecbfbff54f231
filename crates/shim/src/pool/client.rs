//! Calls to keepers.

use std::io;
use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use throughline_sandbox::sockets;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::{Answer, Call, Create, Reply, Request, SOCKET, Source, VERSION, folder, given};
use crate::ShimError;
use crate::api::{Failure, Kind};
use crate::line;
use crate::start::{Program, Take};

/// How long a keeper may take for an answer. A child may have to be loaded first.
const DEADLINE: Duration = Duration::from_mins(3);

/// How long a keeper may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(2);
/// How long it may take to say how its pool stands, which it knows.
const STATE: Duration = Duration::from_secs(5);

/// A pool of a list.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// How it stands, or why its keeper does not say.
    pub standing: Result<Standing, ShimError>,
}

/// How a pool stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its keeper's process.
    pub pid: u32,
    /// What its children are children of.
    pub source: Source,
    /// How many are to wait.
    pub size: usize,
    /// How many do.
    pub waiting: usize,
    /// How many tries in a row to make one have come to nothing.
    pub failures: u32,
    /// Why the last of these did.
    pub last_error: Option<String>,
}

/// Starts the keeper of a new pool, and waits until its first child waits. It outlives this process.
///
/// # Errors
/// The name is no name, or not free; there is no such source, or no child of it can be loaded.
pub async fn create(create: &Create, program: &Program) -> Result<(), ShimError> {
    folder::path(&create.pool)?;
    program.keeper().begin(create).await.map(|_| ())
}

/// Takes a child; its name as a sandbox.
///
/// # Errors
/// There is no such pool; the name is not free; the child did not wake up, or cannot be given what it is to be given.
pub async fn take(pool: &str, take: Take) -> Result<String, ShimError> {
    let Take { name, given, keeping } = take;
    let given = given::pack(&given).map_err(ShimError::io("hand over what the guest is given"))?;
    match ask(pool, Call::Take { name, keeping }, &[given.as_fd()], DEADLINE).await? {
        (_, Answer::Taken { name }) => Ok(name),
        _ => Err(nonsense(pool)),
    }
}

/// All pools, in the order of their names. What dead keepers left is removed meanwhile, zygotes too. A keeper that does
/// not say within five seconds how its pool stands is an error of that pool's alone.
///
/// # Errors
/// They cannot be listed.
pub async fn list() -> Result<Vec<Listed>, ShimError> {
    remove_dead()?;
    let mut pools = Vec::new();
    for name in folder::names()? {
        let standing = match ask(&name, Call::State, &[], STATE).await {
            Ok((pid, Answer::State { source, size, waiting, failures, last_error })) => {
                Ok(Standing { pid, source, size, waiting, failures, last_error })
            }
            Ok(_) => Err(nonsense(&name)),
            // It is being made, or removed.
            Err(ShimError::Failure(Failure { kind: Kind::Missing, .. }) | ShimError::KeeperEnded(_)) => continue,
            Err(error) => Err(error),
        };
        pools.push(Listed { name, standing });
    }
    Ok(pools)
}

/// Ends a pool: what waits ends, what was taken goes on.
///
/// # Errors
/// There is no such pool.
pub async fn remove(pool: &str) -> Result<(), ShimError> {
    if folder::remove_dead(pool)? {
        return Ok(());
    }
    match ask(pool, Call::Remove, &[], DEADLINE).await {
        // Somebody else removed it meanwhile.
        Ok(_) | Err(ShimError::KeeperEnded(_)) => {}
        Err(error) => return Err(error),
    }
    let path = folder::path(pool)?;
    let gone = async {
        while path.exists() {
            sleep(LOOK).await;
        }
    };
    // A keeper that dies meanwhile leaves a folder that hinders nobody.
    let _ = timeout(ENDING, gone).await;
    Ok(())
}

/// Removes what dead keepers left, zygotes too; the names of their pools.
///
/// # Errors
/// It cannot be removed.
pub fn remove_dead() -> Result<Vec<String>, ShimError> {
    let mut removed = folder::names()?;
    let dead: Result<Vec<bool>, _> = removed.iter().map(|name| folder::remove_dead(name)).collect();
    let mut dead = dead?.into_iter();
    removed.retain(|_| dead.next().unwrap_or(false));
    throughline_sandbox::sweep()?;
    Ok(removed)
}

/// Asks the keeper of a pool something: its process, and its answer.
async fn ask(
    pool: &str,
    call: Call,
    descriptors: &[BorrowedFd<'_>],
    deadline: Duration,
) -> Result<(u32, Answer), ShimError> {
    let io = |error| ShimError::io("talk to the pool's keeper")(error);
    let missing = || Failure { kind: Kind::Missing, message: format!("there is no pool named {pool:?}") };
    // Nothing was asked yet.
    let refused = |error: io::Error| match error.kind() {
        NotFound | ConnectionRefused | ConnectionReset | BrokenPipe => missing().into(),
        _ => io(error),
    };
    let socket = sockets::connect(&folder::path(pool)?, SOCKET).map_err(refused)?;
    socket.set_nonblocking(true).map_err(io)?;
    let (mut incoming, outgoing) = line::split(UnixStream::from_std(socket).map_err(io)?);
    let mut answer = async |number, call, descriptors| -> Result<Option<Answer>, ShimError> {
        outgoing.send_with(&Request { number, call }, descriptors).await.map_err(refused)?;
        match incoming.line::<Reply>().await {
            Ok(Some(Reply::Answer(_, answer))) => Ok(Some(answer)),
            Ok(Some(Reply::Failure(_, failure))) => Err(failure.into()),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == ConnectionReset => Ok(None),
            Err(error) => Err(io(error)),
        }
    };
    let asked = async {
        match answer(0, Call::Hello { api: VERSION }, &[]).await?.ok_or_else(missing)? {
            Answer::Hello { api: VERSION, pid, .. } => {
                let answer = answer(1, call, descriptors).await?;
                Ok((pid, answer.ok_or_else(|| ShimError::KeeperEnded(pool.to_owned()))?))
            }
            Answer::Hello { api, pid, release } => {
                let message = format!(
                    "the keeper of pool {pool:?} (process {pid}, release {release}) speaks version {api} of its interface, and this program speaks {VERSION}; `kill {pid}` ends the pool, and what was taken goes on"
                );
                Err(Failure { kind: Kind::Version, message }.into())
            }
            _ => Err(nonsense(pool)),
        }
    };
    let late = |_| ShimError::io("get an answer of the pool's keeper; look whether it was done")(TimedOut.into());
    timeout(deadline, asked).await.map_err(late)?
}

fn nonsense(pool: &str) -> ShimError {
    let message = format!("the keeper of pool {pool:?} answered another question; it is of another build: end it");
    Failure { kind: Kind::Failed, message }.into()
}
