//! A host without a link: the same messages over bounded queues.

pub mod rig;

use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use serde_bytes::ByteBuf;
use throughline_agent::channel::{Inbox, Outbox};
use throughline_agent::exec::{ExecError, Executor};
use throughline_agent::gate::Gate;
use throughline_agent::reaper::{Reaper, Scope};
use throughline_agent::spawn::Spawner;
use throughline_wire::exec::{Event, Exit, Failure, Request, Start, Status, StdinWindow};
use throughline_wire::{decode, encode};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};

/// Far longer than anything takes: who comes here hangs.
pub const WATCHDOG: Duration = Duration::from_mins(1);

/// Runs a test on one thread, as the agent does, with a reaper beside it.
pub fn run<F: Future>(scope: Scope, spawner: Spawner, etc: &Path, test: impl FnOnce(Rc<Executor>) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (gate, output) = (Gate::closed(), Gate::closed());
    gate.open();
    output.open();
    let executor = Rc::new(Executor { spawner, reaper: Reaper::new(scope), gate, output, etc: etc.to_owned() });
    let reaping = Rc::clone(&executor);
    LocalSet::new().block_on(&runtime, async {
        tokio::task::spawn_local(async move { reaping.reaper.run().await });
        tokio::time::timeout(WATCHDOG, test(executor)).await.expect("the test hangs")
    })
}

/// As [`run`], with the parts that most tests want.
pub fn simply<F: Future>(test: impl FnOnce(Rc<Executor>) -> F) -> F::Output {
    run(Scope::Adopted, Spawner::new(None, false), Path::new("/etc"), test)
}

pub struct Queue(mpsc::Receiver<Vec<u8>>);

impl Inbox for Queue {
    async fn recv(&mut self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.recv().await)
    }
}

pub struct Ring(Option<mpsc::Sender<Vec<u8>>>);

impl Outbox for Ring {
    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let sender = self.0.as_ref().ok_or_else(gone)?;
        sender.send(message.to_vec()).await.map_err(|_| gone())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.0 = None;
        Ok(())
    }
}

/// One command, seen from the host.
pub struct Command {
    pub requests: mpsc::Sender<Vec<u8>>,
    pub events: mpsc::Receiver<Vec<u8>>,
    pub serving: JoinHandle<Result<(), ExecError>>,
    /// What came while something else was waited for.
    seen: Outcome,
}

/// What came of a command.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<Exit>,
    pub failure: Option<Failure>,
    pub stdin_closed: bool,
}

impl Command {
    /// A channel on which nothing was said yet.
    pub fn open(executor: &Rc<Executor>) -> Self {
        let (requests, inbox) = mpsc::channel(4);
        let (outbox, events) = mpsc::channel(1);
        let executor = Rc::clone(executor);
        let serving = tokio::task::spawn_local(async move { executor.serve(Queue(inbox), Ring(Some(outbox))).await });
        Self { requests, events, serving, seen: Outcome::default() }
    }

    pub async fn start(executor: &Rc<Executor>, start: Start) -> Self {
        let command = Self::open(executor);
        command.send(&Request::Start(start)).await;
        command
    }

    pub async fn send(&self, request: &Request<'_>) {
        self.requests.send(encode(request).unwrap()).await.unwrap();
    }

    /// The next event, decoded by `take`.
    pub async fn event<T>(&mut self, take: impl FnOnce(Event<'_>) -> T) -> T {
        let message = self.events.recv().await.expect("the channel ended early");
        take(decode(&message).unwrap())
    }

    pub async fn started(&mut self) -> u32 {
        self.event(|event| match event {
            Event::Started { pid } => pid,
            other => panic!("{other:?}"),
        })
        .await
    }

    pub async fn status(&mut self) -> Status {
        self.send(&Request::Query).await;
        loop {
            let message = self.events.recv().await.expect("an answer");
            match decode(&message).unwrap() {
                Event::Status(status) => return status,
                other => self.seen.note(&other),
            }
        }
    }

    /// Collects everything until the guest's end of sending.
    pub async fn finish(mut self) -> Outcome {
        let mut outcome = std::mem::take(&mut self.seen);
        while let Some(message) = self.events.recv().await {
            outcome.note(&decode(&message).unwrap());
        }
        outcome
    }

    /// The command's end, whatever else comes; then waits for the guest's end of sending.
    pub async fn exit(mut self) -> Option<Exit> {
        let mut exit = None;
        while let Some(message) = self.events.recv().await {
            if let Event::Exited(found) = decode(&message).unwrap() {
                assert_eq!(exit.replace(found), None, "ended twice");
            }
        }
        exit
    }

    /// Sends all of `data` within the window, and collects everything.
    pub async fn feed(mut self, data: &[u8]) -> Outcome {
        let mut outcome = Outcome::default();
        let mut window = StdinWindow::new();
        let mut chunks = data.chunks(5000);
        let mut next = chunks.next();
        loop {
            if let Some(chunk) = next
                && window.available() >= chunk.len() as u64
            {
                self.send(&Request::Stdin(chunk)).await;
                window.sent(chunk.len() as u64);
                next = chunks.next();
                if next.is_none() {
                    self.send(&Request::StdinEnd).await;
                }
                continue;
            }
            let Some(message) = self.events.recv().await else { return outcome };
            let event = decode(&message).unwrap();
            if let Event::StdinTaken { total } = event {
                window.taken(total);
            }
            outcome.note(&event);
        }
    }
}

impl Outcome {
    pub fn note(&mut self, event: &Event<'_>) {
        match event {
            Event::Stdout { at, data } => {
                assert_eq!(*at, self.stdout.len() as u64, "output is missing or doubled");
                self.stdout.extend_from_slice(data);
            }
            Event::Stderr { at, data } => {
                assert_eq!(*at, self.stderr.len() as u64, "error output is missing or doubled");
                self.stderr.extend_from_slice(data);
            }
            Event::Exited(exit) => assert_eq!(self.exit.replace(*exit), None, "ended twice"),
            Event::Failed(failure) => assert_eq!(self.failure.replace(failure.clone()), None, "failed twice"),
            Event::StdinClosed => self.stdin_closed = true,
            Event::Started { .. } | Event::StdinTaken { .. } | Event::Status(_) => {}
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

pub fn argv(words: &[&str]) -> Start {
    Start { argv: words.iter().map(|word| ByteBuf::from(*word)).collect(), ..Start::default() }
}

pub fn shell(script: &str) -> Start {
    argv(&["sh", "-c", script])
}

/// Where version 2 control groups are mounted.
pub fn cgroup_mount() -> std::path::PathBuf {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    found.expect("no cgroup v2 file system is mounted; these tests need one, and root")[1].into()
}

/// Removes a control group, whatever became of the test that made it.
pub struct Cleanup(pub std::path::PathBuf);

impl Drop for Cleanup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.join("cgroup.kill"), "1");
        // Until the killed are gone the folder cannot go; nothing else keeps it.
        let started = std::time::Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && self.0.exists() && started.elapsed() < WATCHDOG {
            std::thread::yield_now();
        }
    }
}

/// Writes an executable file. A child does it: a descriptor of ours that is open for writing could be inherited by
/// a process that another test forks just then, and the file would be busy.
pub fn write_program(path: &Path, text: &str) {
    let script = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
    let status = std::process::Command::new("sh").args(["-c", script]).arg(path).arg(text).status().unwrap();
    assert!(status.success());
}
