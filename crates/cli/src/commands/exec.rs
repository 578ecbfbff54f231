//! Running commands, and following them.

use std::pin::{Pin, pin};
use std::time::Duration;

use throughline_sandbox::{Child, ChildEvent, ChildEvents, ChildInput, Command};
use throughline_shim::api::RolledBack;
use throughline_shim::client::Remote;
use throughline_wire::exec::Exit;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Stderr, Stdin, Stdout};
use tokio::time::timeout;

use super::connect;
use super::deadline::{Deadline, TIMED_OUT};
use super::signals::{HANG_UP, Signals, TERMINATE, exit_code};
use crate::OWN_FAILURE;
use crate::arguments::How;
use crate::error::CliError;
use crate::output;
use crate::terminal::{Raw, size};

/// How long a command may take to end, once it was told to: a guest that stands still does not answer.
const GRACE: Duration = Duration::from_secs(5);
const KILL: i32 = 9;

/// What became of a command.
pub enum Ran {
    /// It ended with this exit code.
    Ended(u8),
    /// It goes on, under this id.
    Detached(String),
}

/// `exec`
pub async fn exec(name: &str, how: &How, command: &[String], json: bool) -> Result<u8, CliError> {
    let deadline = Deadline::after(how.timeout);
    let mut input = Input::listen(how.interactive)?;
    let beginning = async {
        let remote = deadline.within(connect(name)).await.transpose()?;
        begin(remote.as_ref(), how, command, deadline).await
    };
    let begun = tokio::select! {
        begun = Box::pin(beginning) => begun?,
        // Dropped, it is not begun later either.
        number = input.signals.ending() => {
            eprintln!("throughline: broken off before the command was started");
            return Ok(exit_code(number));
        }
    };
    match begun.follow(how, input, deadline).await? {
        Ran::Ended(code) => Ok(code),
        Ran::Detached(id) if json => {
            output::json(&serde_json::json!({ "name": name, "id": id }));
            Ok(0)
        }
        Ran::Detached(id) => {
            output::line(&id);
            Ok(0)
        }
    }
}

/// A command that was begun.
pub enum Begun {
    /// There is nothing more to be done.
    Ran(Ran),
    /// It runs in this sandbox, under this id.
    Runs(Remote, Box<Child>, String),
}

impl Begun {
    /// Follows it to its end, until then at most.
    pub async fn follow(self, how: &How, mut input: Input, deadline: Deadline) -> Result<Ran, CliError> {
        let (remote, child, id) = match self {
            Self::Ran(ran) => return Ok(ran),
            Self::Runs(remote, child, id) => (remote, child, id),
        };
        match follow(*child, Printer::new(), &mut input, how.tty, deadline).await {
            Ok(code) => Ok(Ran::Ended(code)),
            Err(error) => {
                let followed = Followed { remote: &remote, id: &id, keep: false, deadline };
                followed.come_back(error, &mut input).await.map(Ran::Ended)
            }
        }
    }
}

/// Begins a command in a sandbox, if that was reached in time.
pub async fn begin(
    remote: Option<&Remote>,
    how: &How,
    command: &[String],
    deadline: Deadline,
) -> Result<Begun, CliError> {
    let Some(remote) = remote else { return Ok(Begun::Ran(Ran::Ended(not_started()))) };
    let way = remote.guest(how.detach);
    let mut started = Command::new(way.clone(), &command[0]).args(&command[1..]).label(command.join(" "));
    for variable in &how.env {
        started = match variable.split_once('=') {
            Some((name, value)) => started.env(name, value),
            None => match std::env::var(variable) {
                Ok(value) => started.env(variable, value),
                Err(_) => started,
            },
        };
    }
    started = how.workdir.iter().fold(started, Command::current_dir);
    started = how.user.iter().fold(started, Command::user);
    // What is detached may be given its input by who attaches later.
    if how.interactive {
        started = started.stdin();
    }
    let terminal = if how.tty { Some(size().unwrap_or((24, 80))) } else { None };
    if let Some((rows, cols)) = terminal {
        let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        started = started.tty(rows, cols).env("TERM", kind);
    }
    // Dropped, it is not begun later either.
    let Some(child) = deadline.within(started.spawn()).await else { return Ok(Begun::Ran(Ran::Ended(not_started()))) };
    let child = Box::new(child?);
    Ok(if how.detach { Begun::Ran(Ran::Detached(way.id())) } else { Begun::Runs(remote.clone(), child, way.id()) })
}

/// Says that a command's time was up before it began; the exit code.
fn not_started() -> u8 {
    eprintln!("throughline: the time is up, and the command was not started: the sandbox does not answer");
    TIMED_OUT
}

/// Says that a command did not end in time when it was told to; the exit code.
fn not_ended() -> u8 {
    eprintln!("throughline: the time is up; the command was told to end, but the guest does not answer");
    TIMED_OUT
}

/// Goes on with a command.
pub async fn attach(remote: &Remote, id: &str) -> Result<u8, CliError> {
    Followed { remote, id, keep: true, deadline: Deadline::NONE }.go_on(&mut Input::listen(true)?).await
}

/// A command that is followed, from whichever timeline.
struct Followed<'a> {
    remote: &'a Remote,
    id: &'a str,
    /// Whether it goes on without who follows it.
    keep: bool,
    deadline: Deadline,
}

impl Followed<'_> {
    /// Goes on with it after its machine died and came back.
    async fn come_back(&self, error: CliError, input: &mut Input) -> Result<u8, CliError> {
        let reset = throughline_sandbox::SandboxError::Channel(throughline::Error::Reset);
        if error.kind() != "rolled-back" && error.to_string() != CliError::from(reset).to_string() {
            return Err(error);
        }
        let Some(RolledBack { received, sent, gone }) = self.remote.rolled_back(self.id).await? else {
            return Err(error);
        };
        if gone {
            return Err(CliError::RolledBack);
        }
        eprintln!(
            "throughline: the machine died, and is back at its last checkpoint: on the command's channel, headers of messages included, {received} bytes of it come again, and {sent} bytes to it are lost"
        );
        Box::pin(self.go_on(input)).await
    }

    /// Goes on with it.
    async fn go_on(&self, input: &mut Input) -> Result<u8, CliError> {
        let reaching = self.deadline.with(GRACE).within(reach(self.remote, self.id, self.keep));
        let reached = tokio::select! {
            reached = reaching => reached,
            number = input.signals.ending() => return Ok(self.left("broken off", exit_code(number))),
        };
        let Some(reached) = reached else { return Ok(self.left("the time is up", TIMED_OUT)) };
        let (child, printer, tty) = match reached {
            Ok(reached) => reached,
            // It may have died once more.
            Err(error) => return self.come_back(error, input).await,
        };
        let Some(tty) = tty else { return printer.code() };
        match follow(child, printer, input, tty, self.deadline).await {
            Ok(code) => Ok(code),
            Err(error) => self.come_back(error, input).await,
        }
    }

    /// Says that it was not reached, and why nobody tries any longer; the exit code.
    fn left(&self, why: &str, code: u8) -> u8 {
        eprintln!(
            "throughline: {why}; the command was not reached, and may go on: `throughline attach {} {}` follows it",
            self.remote.name(),
            self.id
        );
        code
    }
}

/// Attaches to a command, and gives its terminal the size of this one: whether it has one, unless it has ended.
async fn reach(remote: &Remote, id: &str, keep: bool) -> Result<(Child, Printer, Option<bool>), CliError> {
    let mut child = remote.attach(id, keep).await?;
    // What it has had as input, and whether it has a terminal, is known only to the guest.
    child.input.query().await?;
    let mut printer = Printer::new();
    loop {
        match child.events.next().await? {
            Some(ChildEvent::Status(status)) => {
                printer.exit = printer.exit.or(status.exit);
                if status.tty
                    && let Some((rows, cols)) = size()
                {
                    child.input.resize(rows, cols).await?;
                }
                return Ok((child, printer, Some(status.tty)));
            }
            Some(event) => printer.take(event).await?,
            None => return Ok((child, printer, None)),
        }
    }
}

/// Follows a command until it has ended, or its time is up: then it is killed. Its exit code.
async fn follow(
    child: Child,
    printer: Printer,
    input: &mut Input,
    tty: bool,
    deadline: Deadline,
) -> Result<u8, CliError> {
    let Child { events, input: mut to, .. } = child;
    let raw = if tty && input.is_wanted { Raw::enter() } else { None };
    let mut out = pin!(printer.run(events));
    if let Some(ended) = deadline.within(hand_on(&mut to, out.as_mut(), input, tty)).await {
        return ended;
    }
    let killed = async {
        // There may be no room for it. Whoever has gone by then leaves nobody who wants the command.
        let _ = to.signal(KILL, true).await;
        out.await
    };
    let ended = timeout(GRACE, killed).await;
    drop(raw);
    ended.map_or_else(|_| Ok(not_ended()), |ended| ended.map(|_| TIMED_OUT))
}

/// Hands on input, signals and size, and awaits the end of what is printed meanwhile: its exit code.
async fn hand_on(
    to: &mut ChildInput,
    mut out: Pin<&mut impl Future<Output = Result<u8, CliError>>>,
    input: &mut Input,
    tty: bool,
) -> Result<u8, CliError> {
    let Input { stdin, pending, is_wanted, has_ended, signals } = input;
    let mut buffer = vec![0; 16 << 10];
    let mut takes = *is_wanted;
    if *has_ended {
        // Who was told so may have been of a timeline that was lost.
        let _ = to.end().await;
    }
    loop {
        tokio::select! {
            exit = &mut out => return exit,
            count = stdin.read(&mut buffer), if takes && !*has_ended && pending.is_empty() => {
                let count = count.map_err(CliError::io("read the standard input"))?;
                pending.extend(&buffer[..count]);
                if count == 0 {
                    *has_ended = true;
                    // A command that has ended takes no input; its events say so.
                    let _ = to.end().await;
                }
            }
            count = to.write(pending), if takes && !pending.is_empty() => match count {
                Ok(count) => { pending.drain(..count); }
                Err(_) => takes = false,
            },
            signal = signals.next() => match signal {
                // The command belongs to the terminal: it is left with that, not told of it.
                Some(number @ (HANG_UP | TERMINATE)) if tty => return Ok(exit_code(number)),
                Some(number) => { let _ = to.signal(number, true).await; }
                None => if tty && let Some((rows, cols)) = size() { let _ = to.resize(rows, cols).await; },
            },
        }
    }
}

/// The standard input, and signals. What was read of the input, and given to nobody yet, is for the machine that comes
/// back; a signal that nobody has looked at yet is for whatever is done next.
pub struct Input {
    stdin: Stdin,
    pending: Vec<u8>,
    is_wanted: bool,
    has_ended: bool,
    signals: Signals,
}

impl Input {
    /// From now on.
    pub fn listen(is_wanted: bool) -> Result<Self, CliError> {
        let signals = Signals::listen()?;
        Ok(Self { stdin: tokio::io::stdin(), pending: Vec::new(), is_wanted, has_ended: false, signals })
    }
}

/// Prints what the command prints.
struct Printer {
    stdout: Stdout,
    stderr: Stderr,
    exit: Option<Exit>,
}

impl Printer {
    fn new() -> Self {
        Self { stdout: tokio::io::stdout(), stderr: tokio::io::stderr(), exit: None }
    }

    /// To its end; the exit code.
    async fn run(mut self, mut events: ChildEvents) -> Result<u8, CliError> {
        while let Some(event) = events.next().await? {
            self.take(event).await?;
        }
        self.code()
    }

    async fn take(&mut self, event: ChildEvent) -> Result<(), CliError> {
        let written = match event {
            ChildEvent::Stdout { data, .. } => write(&mut self.stdout, &data).await,
            ChildEvent::Stderr { data, .. } => write(&mut self.stderr, &data).await,
            ChildEvent::Exited(how) => {
                self.exit = Some(how);
                Ok(())
            }
            ChildEvent::Started { .. } | ChildEvent::Status(_) => Ok(()),
        };
        written.map_err(CliError::io("print what the command prints"))
    }

    fn code(&self) -> Result<u8, CliError> {
        let exit = self.exit.ok_or(CliError::Untold)?;
        Ok(u8::try_from(exit.shell_code() & 0xff).unwrap_or(OWN_FAILURE))
    }
}

async fn write(to: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
