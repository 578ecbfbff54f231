//! Starting a process: the only place that forks.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use throughline_wire::exec::{Failure, FailureKind, WindowSize};

use crate::accounts::Account;
use crate::terminal::{self, Ends};

/// Where programs are looked up without a `PATH` of the command's own.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Open files that a command may have, and may ask for: as in a distribution's session.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

/// A process to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Program and arguments.
    pub argv: Vec<Vec<u8>>,
    /// Variables on top of the defaults.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory; the account's home, if it exists, without one.
    pub cwd: Option<Vec<u8>>,
    /// Whom to run as.
    pub account: Account,
    /// What its three standard files are.
    pub files: Files,
    /// Whether it belongs to the user: in the user's control group.
    pub of_user: bool,
}

/// Standard files of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Pipes to the agent; input from `/dev/null` unless asked for.
    Pipes {
        /// A pipe for input too.
        stdin: bool,
    },
    /// A terminal of its own, which the process's session is led from.
    Terminal(WindowSize),
    /// Input from `/dev/null`, output and errors to where the agent's own go: the console.
    Console,
}

/// A process that runs. Whoever gets it adopts `pid` at the [`Reaper`](crate::reaper::Reaper) before it awaits.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id, which is also its session and process group.
    pub pid: Pid,
    /// Its input, if there is a pipe.
    pub stdin: Option<OwnedFd>,
    /// Its output.
    pub stdout: Option<OwnedFd>,
    /// Its errors.
    pub stderr: Option<OwnedFd>,
    /// The agent's end of its terminal, non-blocking, instead of the three.
    pub terminal: Option<OwnedFd>,
}

/// Starts processes.
#[derive(Debug)]
pub struct Spawner {
    entrance: Option<Arc<OwnedFd>>,
    is_init: bool,
}

impl Spawner {
    /// `entrance` leads into the user's control group ([`Cgroup::entrance`](crate::cgroup::Cgroup::entrance)).
    /// `is_init` = the agent is protected from the OOM killer and may raise limits, which its children must not inherit.
    pub fn new(entrance: Option<OwnedFd>, is_init: bool) -> Self {
        Self { entrance: entrance.map(Arc::new), is_init }
    }

    /// One for another group, or for none.
    pub(crate) fn for_group(&self, entrance: Option<OwnedFd>) -> Self {
        Self::new(entrance, self.is_init)
    }

    /// Starts a process, in a session of its own. It is in its control group before it executes anything.
    pub fn spawn(&self, spec: &Spec) -> Result<Spawned, Failure> {
        let mut command = prepare(spec)?;
        let terminal = standard_files(&mut command, spec)
            .map_err(|error| failure(FailureKind::Other, format!("the guest has no terminal for it: {error}")))?;
        let setup = self.setup(spec)?;
        crate::sys::before_exec(&mut command, move || setup.run());
        let mut child = command.spawn().map_err(|error| explain(spec, &error))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(Spawned {
            pid: pid.ok_or_else(|| failure(FailureKind::Other, "the kernel gave an impossible process id"))?,
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
            terminal,
        })
    }

    /// Everything that the child needs, allocated before the fork.
    fn setup(&self, spec: &Spec) -> Result<Setup, Failure> {
        let cwd = match &spec.cwd {
            Some(cwd) => cwd.clone(),
            None if Path::new(&spec.account.home).is_dir() => spec.account.home.clone().into_bytes(),
            None => b"/".to_vec(),
        };
        let bad = |_| failure(FailureKind::BadCwd, "the working directory contains a zero byte");
        Ok(Setup {
            entrance: self.entrance.clone().filter(|_| spec.of_user),
            is_init: self.is_init,
            on_terminal: matches!(spec.files, Files::Terminal(_)),
            open_files: open_files(),
            uid: Uid::from_raw(spec.account.uid),
            gid: Gid::from_raw(spec.account.gid),
            groups: spec.account.groups.iter().map(|&gid| Gid::from_raw(gid)).collect(),
            cwd: CString::new(cwd).map_err(bad)?,
        })
    }
}

fn prepare(spec: &Spec) -> Result<Command, Failure> {
    let invalid = |what: &str| failure(FailureKind::Other, what);
    let has_zero = |bytes: &[u8]| bytes.contains(&0);
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Err(invalid("the command is empty; give at least a program"));
    };
    if program.is_empty() {
        return Err(failure(FailureKind::NotFound, "the program's name is empty"));
    }
    if spec.argv.iter().any(|argument| has_zero(argument)) {
        return Err(invalid("an argument contains a zero byte, which no command can receive"));
    }
    let bad_name = |name: &[u8]| name.is_empty() || name.contains(&b'=') || has_zero(name);
    if spec.env.iter().any(|(name, value)| bad_name(name) || has_zero(value)) {
        return Err(invalid("a variable's name is empty or contains '=', or it contains a zero byte"));
    }
    let account = &spec.account;
    let mut command = Command::new(OsStr::from_bytes(program));
    command
        .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", &account.home)
        .env("USER", &account.name)
        .env("LOGNAME", &account.name)
        .env("SHELL", &account.shell)
        .env("TERM", if matches!(spec.files, Files::Terminal(_)) { "xterm" } else { "dumb" })
        .envs(spec.env.iter().map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))));
    Ok(command)
}

/// Gives the command its standard files, and returns the agent's end of its terminal.
fn standard_files(command: &mut Command, spec: &Spec) -> io::Result<Option<OwnedFd>> {
    match spec.files {
        Files::Pipes { stdin } => {
            command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        Files::Terminal(size) => {
            let Ends { agent, command: end } = terminal::open(size, Uid::from_raw(spec.account.uid))?;
            command.stdin(end.try_clone()?).stdout(end.try_clone()?).stderr(end);
            return Ok(Some(agent));
        }
        Files::Console => {
            command.stdin(Stdio::null()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        }
    }
    Ok(None)
}

/// What the child does between fork and exec: system calls only.
struct Setup {
    entrance: Option<Arc<OwnedFd>>,
    is_init: bool,
    on_terminal: bool,
    open_files: Rlimit,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    cwd: CString,
}

impl Setup {
    fn run(&self) -> io::Result<()> {
        rustix::process::setsid().map_err(|errno| Stage::Session.mark(errno))?;
        if self.on_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(|errno| Stage::Session.mark(errno))?;
        }
        if let Some(entrance) = &self.entrance {
            rustix::io::write(entrance, b"0").map_err(|errno| Stage::Cgroup.mark(errno))?;
        }
        crate::sys::default_signals();
        if self.is_init {
            lower_protection(self.open_files).map_err(|errno| Stage::Limits.mark(errno))?;
        }
        let user = |errno| Stage::User.mark(errno);
        set_thread_groups(&self.groups).map_err(user)?;
        set_thread_gid(self.gid).map_err(user)?;
        set_thread_uid(self.uid).map_err(user)?;
        // As the user: root may enter what the user may not.
        rustix::process::chdir(&*self.cwd).map_err(|errno| Stage::Cwd.mark(errno))
    }
}

/// A command's limit, within the agent's own.
fn open_files() -> Rlimit {
    let most = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    Rlimit { current: Some(OPEN_FILES.0.min(most)), maximum: Some(OPEN_FILES.1.min(most)) }
}

/// Takes back what only process 1 should have.
fn lower_protection(open_files: Rlimit) -> rustix::io::Result<()> {
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"0")?;
    rustix::process::setrlimit(Resource::Nofile, open_files)
}

/// Which step failed in the child. The only thing that comes back from there is one number, so the stage goes
/// above the error's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Session = 1,
    Cgroup = 2,
    Limits = 3,
    User = 4,
    Cwd = 5,
}

impl Stage {
    const SHIFT: i32 = 16;

    fn mark(self, errno: rustix::io::Errno) -> io::Error {
        io::Error::from_raw_os_error((self as i32) << Self::SHIFT | errno.raw_os_error())
    }
}

/// Turns the error of `Command::spawn` into words.
fn explain(spec: &Spec, error: &io::Error) -> Failure {
    let raw = error.raw_os_error().unwrap_or(0);
    let cause = io::Error::from_raw_os_error(raw & ((1 << Stage::SHIFT) - 1));
    let stage = raw >> Stage::SHIFT;
    let is = |candidate: Stage| stage == candidate as i32;
    let program = String::from_utf8_lossy(spec.argv.first().map_or(b"", Vec::as_slice));
    if is(Stage::Cwd) {
        let cwd = spec.cwd.as_deref().unwrap_or(spec.account.home.as_bytes());
        let cwd = String::from_utf8_lossy(cwd);
        return failure(FailureKind::BadCwd, format!("cannot enter the working directory {cwd}: {cause}"));
    }
    if is(Stage::User) {
        let message = format!("cannot become user {}: {cause}", spec.account.name);
        return failure(FailureKind::NoSuchUser, message);
    }
    if stage != 0 {
        let what = match stage {
            stage if stage == Stage::Session as i32 => "start a session",
            stage if stage == Stage::Cgroup as i32 => "enter the user's control group",
            _ => "set its limits",
        };
        return failure(FailureKind::Other, format!("the command could not {what}: {cause}"));
    }
    match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            let message = if found(spec, &program) {
                format!("{program}: its interpreter or loader does not exist in the guest")
            } else {
                format!("{program}: not found in the guest")
            };
            failure(FailureKind::NotFound, message)
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory | io::ErrorKind::ExecutableFileBusy => {
            failure(FailureKind::NotExecutable, format!("{program}: cannot be executed: {cause}"))
        }
        _ if raw == libc::ENOEXEC => {
            failure(FailureKind::NotExecutable, format!("{program}: not a program for this machine: {cause}"))
        }
        _ => failure(FailureKind::Other, format!("{program}: {cause}")),
    }
}

/// Whether a program that was named with a path exists: then something else is missing.
fn found(spec: &Spec, program: &str) -> bool {
    let cwd = spec.cwd.as_deref().unwrap_or(b"/");
    let base = PathBuf::from(OsStr::from_bytes(cwd));
    program.contains('/') && base.join(program).is_file()
}

fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure { kind, message: message.into() }
}

/// Opens a pipe's end for the runtime, non-blocking.
pub(crate) fn reader(fd: OwnedFd) -> io::Result<tokio::net::unix::pipe::Receiver> {
    tokio::net::unix::pipe::Receiver::from_owned_fd(fd)
}

/// As [`reader`], for the other end.
pub(crate) fn writer(fd: OwnedFd) -> io::Result<tokio::net::unix::pipe::Sender> {
    tokio::net::unix::pipe::Sender::from_owned_fd(fd)
}
