//! Running commands, and following them.

use throughline_sandbox::{Child, ChildEvent, ChildEvents, Command};
use throughline_shim::api::RolledBack;
use throughline_shim::client::Remote;
use throughline_wire::exec::Exit;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Stderr, Stdout};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use crate::OWN_FAILURE;
use crate::arguments::How;
use crate::error::CliError;
use crate::output;
use crate::terminal::{Raw, size};

/// What `timeout` and its like return.
const TIMED_OUT: u8 = 124;
const HANG_UP: i32 = 1;
const KILL: i32 = 9;
const TERMINATE: i32 = 15;

/// What became of a command.
pub enum Ran {
    /// It ended with this exit code.
    Ended(u8),
    /// It goes on, under this id.
    Detached(String),
}

/// `exec`
pub async fn exec(remote: &Remote, how: &How, command: &[String], json: bool) -> Result<u8, CliError> {
    match run(remote, how, command).await? {
        Ran::Ended(code) => Ok(code),
        Ran::Detached(id) if json => {
            output::json(&serde_json::json!({ "name": remote.name(), "id": id }));
            Ok(0)
        }
        Ran::Detached(id) => {
            output::line(&id);
            Ok(0)
        }
    }
}

/// Runs a command.
pub async fn run(remote: &Remote, how: &How, command: &[String]) -> Result<Ran, CliError> {
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
    let input = how.interactive && !how.detach;
    // What is detached may be given its input by who attaches later.
    if how.interactive {
        started = started.stdin();
    }
    let terminal = if how.tty { Some(size().unwrap_or((24, 80))) } else { None };
    if let Some((rows, cols)) = terminal {
        let kind = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        started = started.tty(rows, cols).env("TERM", kind);
    }
    let child = started.spawn().await?;
    if how.detach {
        return Ok(Ran::Detached(way.id()));
    }
    let deadline = how.timeout.map(|timeout| Instant::now() + timeout);
    match follow(child, Printer::new(), input, how.tty, deadline).await {
        Ok(code) => Ok(Ran::Ended(code)),
        Err(error) => come_back(remote, &way.id(), error, input, deadline).await.map(Ran::Ended),
    }
}

/// Goes on with a command whose machine died and came back.
async fn come_back(
    remote: &Remote,
    id: &str,
    error: CliError,
    input: bool,
    deadline: Option<Instant>,
) -> Result<u8, CliError> {
    let reset = throughline_sandbox::SandboxError::Channel(throughline::Error::Reset);
    if error.to_string() != CliError::from(reset).to_string() {
        return Err(error);
    }
    let Some(RolledBack { received, sent, gone }) = remote.rolled_back(id).await else { return Err(error) };
    if gone {
        return Err(CliError::RolledBack);
    }
    eprintln!(
        "throughline: the machine died, and is back at its last checkpoint: {} of what the command told come again, {} of what it was given are lost",
        output::bytes(received),
        output::bytes(sent)
    );
    Box::pin(go_on(remote, id, input, deadline)).await
}

/// Goes on with a command.
pub async fn attach(remote: &Remote, id: &str) -> Result<u8, CliError> {
    go_on(remote, id, true, None).await
}

/// The same, with input or without.
async fn go_on(remote: &Remote, id: &str, input: bool, deadline: Option<Instant>) -> Result<u8, CliError> {
    let mut child = remote.attach(id).await?;
    // What it has had as input, and whether it has a terminal, is known only to the guest.
    child.input.query().await?;
    let mut printer = Printer::new();
    let tty = loop {
        match child.events.next().await? {
            Some(ChildEvent::Status(status)) => {
                printer.exit = printer.exit.or(status.exit);
                break status.tty;
            }
            Some(event) => printer.take(event).await?,
            None => return printer.code(),
        }
    };
    if tty && let Some((rows, cols)) = size() {
        child.input.resize(rows, cols).await?;
    }
    match follow(child, printer, input, tty, deadline).await {
        Ok(code) => Ok(code),
        Err(error) => come_back(remote, id, error, input, deadline).await,
    }
}

/// Hands on input, output, signals and size until the command has ended; its exit code.
async fn follow(
    child: Child,
    printer: Printer,
    input: bool,
    tty: bool,
    deadline: Option<Instant>,
) -> Result<u8, CliError> {
    let Child { events, input: mut to, .. } = child;
    let _raw = if tty && input { Raw::enter() } else { None };
    let mut signals = Signals::listen()?;
    let mut out = std::pin::pin!(printer.run(events));
    let mut deadline = std::pin::pin!(async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    });
    let mut stdin = tokio::io::stdin();
    let (mut buffer, mut pending, mut given) = (vec![0; 16 << 10], Vec::new(), 0);
    let mut reading = input;
    let mut timed_out = false;
    loop {
        tokio::select! {
            exit = &mut out => {
                let code = exit?;
                return Ok(if timed_out { TIMED_OUT } else { code });
            }
            count = stdin.read(&mut buffer), if reading && given == pending.len() => {
                let count = count.map_err(CliError::io("read the standard input"))?;
                (pending, given) = (buffer[..count].to_vec(), 0);
                if count == 0 {
                    reading = false;
                    // A command that has ended takes no input; its events say so.
                    let _ = to.end().await;
                }
            }
            count = to.write(&pending[given..]), if given < pending.len() => {
                reading &= count.is_ok();
                given += count.unwrap_or(pending.len() - given);
            }
            signal = signals.next() => match signal {
                // The command belongs to the terminal: it is left with that, not told of it.
                Some(number @ (HANG_UP | TERMINATE)) if tty => return Ok(u8::try_from(128 + number).unwrap_or(OWN_FAILURE)),
                Some(number) => { let _ = to.signal(number, true).await; }
                None => if tty && let Some((rows, cols)) = size() { let _ = to.resize(rows, cols).await; },
            },
            () = &mut deadline, if !timed_out => {
                timed_out = true;
                let _ = to.signal(KILL, true).await;
            }
        }
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

/// Signals to hand on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    resized: Signal,
}

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let on = |kind| signal(kind).map_err(CliError::io("listen for signals"));
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
            quit: on(SignalKind::quit())?,
            resized: on(SignalKind::window_change())?,
        })
    }

    /// The next one's number; `None` for another size of the terminal.
    async fn next(&mut self) -> Option<i32> {
        tokio::select! {
            _ = self.interrupt.recv() => Some(2),
            _ = self.terminate.recv() => Some(TERMINATE),
            _ = self.hang_up.recv() => Some(HANG_UP),
            _ = self.quit.recv() => Some(3),
            _ = self.resized.recv() => None,
        }
    }
}
