//! The way to a sandbox's shim: the one that is there, or another that is started.

use std::io;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use throughline_sandbox::{Known, SandboxError, State, sockets};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::memory::Memory;
use crate::ShimError;
use crate::api::{Answer, Call, Failure, Kind, Reply, Request, SOCKET, VERSION};
use crate::line::{self, Incoming, Outgoing};
use crate::start::{Program, Start};

/// How long a shim may take to be there.
const DEADLINE: Duration = Duration::from_mins(1);
/// How long a sandbox is waited for that a process has which is no shim: it may just be letting go.
const HELD: Duration = Duration::from_secs(2);
/// Between the first two tries while somebody else starts a shim; twice as long each time, up to the longest.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// How long a shim may take for its greeting.
const GREETING: Duration = Duration::from_secs(10);

/// A shim that has greeted, and has the client's memory.
pub(super) struct Reached {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    pub(super) pid: u32,
}

/// Why a try came to nothing.
enum Try {
    /// It may come to something soon.
    Later(String),
    /// A process that is no shim has the sandbox.
    Held(Failure),
    /// It never will.
    Never(ShimError),
}

/// Comes to the shim of a sandbox. Where there is none, one is started.
pub(super) async fn reach(name: &str, program: &Program, memory: &Memory) -> Result<Reached, ShimError> {
    let began = Instant::now();
    let (mut held, mut pause) = (None, PAUSE);
    loop {
        let (deadline, error) = match attempt(name, program, memory).await {
            Ok(reached) => return Ok(reached),
            Err(Try::Never(error)) => return Err(error),
            Err(Try::Held(failure)) => (*held.get_or_insert_with(Instant::now) + HELD, failure.into()),
            Err(Try::Later(why)) => {
                held = None;
                (began + DEADLINE, ShimError::Unreachable { name: name.to_owned(), why })
            }
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

async fn attempt(name: &str, program: &Program, memory: &Memory) -> Result<Reached, Try> {
    let known = Known::find(name).map_err(|error| Try::Never(error.into()))?;
    if let Ok(socket) = sockets::connect(&known.runtime, SOCKET) {
        return greet(name, socket, memory).await;
    }
    may_be_taken_over(name)?;
    match program.start(&Start::TakeOver { name: name.to_owned() }).await {
        Ok(_) => Err(Try::Later("it has just been started".to_owned())),
        Err(ShimError::Failure(failure)) => Err(match failure.kind {
            Kind::Held => Try::Held(failure),
            // One that did not bring it back has told why: to try that once more is for whoever puts it right.
            Kind::Ended | Kind::Lost => Try::Never(failure.into()),
            // Another client's may have been faster.
            _ => Try::Later(failure.message),
        }),
        // Somebody killed it, and the next one takes over as well.
        Err(ShimError::Silent(why)) => Err(Try::Later(why.to_owned())),
        Err(error) => Err(Try::Never(error)),
    }
}

/// Looks once more at what is on paper: the shim may have ended since.
fn may_be_taken_over(name: &str) -> Result<(), Try> {
    let known = Known::find(name).map_err(|error| Try::Never(error.into()))?;
    let ended = known.record.and_then(|record| record.exit);
    let never = |error: SandboxError| Err(Try::Never(error.into()));
    match (known.state, ended) {
        (_, Some(exit)) => never(SandboxError::Ended(Box::new(exit))),
        (State::Unfinished, None) => never(SandboxError::Unfinished(name.to_owned())),
        (State::Dead, None) => never(SandboxError::Dead(name.to_owned())),
        _ => Ok(()),
    }
}

/// Says hello, and hands the memory over.
async fn greet(name: &str, socket: StdStream, memory: &Memory) -> Result<Reached, Try> {
    let later = |error: io::Error| Try::Later(error.to_string());
    socket.set_nonblocking(true).map_err(later)?;
    let (mut incoming, outgoing) = line::split(UnixStream::from_std(socket).map_err(later)?);
    let greeting = async {
        let hello = Request { number: 0, call: Call::Hello { api: VERSION } };
        outgoing.send(&hello).await.map_err(later)?;
        let pid = understood(name, answer(&mut incoming).await?)?;
        let link = Request { number: 0, call: Call::Link };
        outgoing.send_with(&link, &memory.descriptors()).await.map_err(later)?;
        match answer(&mut incoming).await? {
            Reply::Answer(_, Answer::Done) => Ok(pid),
            // It may be short of descriptors.
            Reply::Failure(_, failure) => Err(Try::Later(failure.message)),
            _ => Err(Try::Never(ShimError::Nonsense(name.to_owned()))),
        }
    };
    let pid = timeout(GREETING, greeting).await.map_err(|_| Try::Later("it does not answer".to_owned()))??;
    Ok(Reached { incoming, outgoing, pid })
}

async fn answer(incoming: &mut Incoming) -> Result<Reply, Try> {
    let line = incoming.line::<Reply>().await.map_err(|error| Try::Later(error.to_string()))?;
    match line {
        Some(Reply::Ended(exit)) => Err(Try::Never(SandboxError::Ended(Box::new(exit)).into())),
        Some(reply) => Ok(reply),
        None => Err(Try::Later("it has just gone".to_owned())),
    }
}

/// The process id of a shim that speaks this version.
fn understood(name: &str, hello: Reply) -> Result<u32, Try> {
    let name = name.to_owned();
    match hello {
        Reply::Answer(_, Answer::Hello { api, pid, .. }) if api == VERSION => Ok(pid),
        Reply::Answer(_, Answer::Hello { api, pid, release }) => {
            Err(Try::Never(ShimError::Version { name, pid, release, found: api }))
        }
        _ => Err(Try::Never(ShimError::Nonsense(name))),
    }
}
