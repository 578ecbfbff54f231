//! The warmed process, as one guest runs it: started, or adopted in a child.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use throughline_sandbox::{Child, ChildEvent, Sandbox};
use throughline_wire::exec::Exit;
use tokio::time::timeout;

use super::transcript::{Answer, FAMILIES, LIMIT, Preparation, Prepared, Said, Transcript};

const PROGRAM: &str = include_str!("warmed.py");
const LABEL: &str = "warmed";

/// How long the process may take for one thing.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A process that says what it must, or not.
pub struct Warmed {
    child: Child,
    transcript: Transcript,
    said: VecDeque<Said>,
    errors: Vec<u8>,
    exit: Option<Exit>,
    /// Whether it is known how its input stands.
    known: bool,
    /// Where what was read here begins, once something was.
    from: Option<u64>,
    /// Whether a byte of the first line read is to be lost.
    loses: bool,
}

impl Warmed {
    /// Starts it, and waits until it is prepared.
    pub async fn start(sandbox: &Sandbox, prepared: Arc<Prepared>) -> Result<(Self, Preparation)> {
        let command = sandbox.command("python3").args(["-c", PROGRAM, &LIMIT.to_string(), &FAMILIES.to_string()]);
        let mut process = Self::new(command.stdin().label(LABEL).spawn().await?, Transcript::new(prepared));
        process.known = true;
        match process.until(|process| process.said.pop_front()).await? {
            Said::Prepared(preparation) => Ok((process, preparation)),
            Said::Answer(_) => bail!("it answers before it is prepared"),
        }
    }

    /// Takes it over in a child of the guest in which so much of it was heard.
    pub fn adopt(sandbox: &Sandbox, transcript: Transcript) -> Result<Self> {
        let channels = sandbox.link().channels();
        let channel = channels.iter().find(|channel| channel.label == LABEL).context("the process is not there")?;
        Ok(Self::new(sandbox.adopt_command(channel.id)?, transcript))
    }

    fn new(child: Child, transcript: Transcript) -> Self {
        let (said, errors, exit, known) = (VecDeque::new(), Vec::new(), None, false);
        Self { child, transcript, said, errors, exit, known, from: None, loses: false }
    }

    /// Loses a byte of the first line that is read: the test switch of whoever must find that out.
    pub fn lose_a_byte(&mut self) {
        self.loses = true;
    }

    /// What was heard so far.
    pub fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// The first byte that was read here, not in a parent.
    pub fn from(&self) -> Option<u64> {
        self.from
    }

    /// Reads until so many more lines have come; for nothing where they are wrong.
    pub async fn lines(&mut self, count: u64) -> Result<()> {
        let enough = self.transcript.lines() + count;
        let come =
            |process: &mut Self| (process.transcript.lines() >= enough || process.transcript.is_spoilt()).then_some(());
        self.until(come).await
    }

    /// Asks it, and returns its answer.
    pub async fn ask(&mut self, question: &str) -> Result<Answer> {
        if !self.known {
            self.child.input.query().await?;
            self.until(|process| process.known.then_some(())).await?;
        }
        self.child.input.write_all(format!("{question}\n").as_bytes()).await?;
        match self.until(|process| process.said.pop_front()).await? {
            Said::Answer(answer) => Ok(answer),
            Said::Prepared(_) => bail!("it was prepared once more"),
        }
    }

    /// Ends its input, and hears it to its end. What was wrong with all that it printed.
    pub async fn finish(&mut self) -> Result<Vec<String>> {
        self.child.input.end().await?;
        let end = async {
            while self.step().await? {}
            Ok::<_, anyhow::Error>(())
        };
        timeout(PATIENCE, end).await.context("the process does not end")??;
        let mut findings = self.transcript.findings();
        findings.extend(self.said.drain(..).map(|said| format!("nobody had asked: {said:?}")));
        if self.exit != Some(Exit::Code(0)) {
            findings.push(self.ended());
        }
        Ok(findings)
    }

    async fn until<T>(&mut self, done: impl Fn(&mut Self) -> Option<T>) -> Result<T> {
        let work = async {
            loop {
                if let Some(done) = done(self) {
                    return Ok(done);
                }
                if !self.step().await? {
                    bail!("{}", self.ended());
                }
            }
        };
        timeout(PATIENCE, work).await.context("no word from the process")?
    }

    fn ended(&self) -> String {
        format!("the process ended with {:?}: {}", self.exit, String::from_utf8_lossy(&self.errors))
    }

    /// Takes one event; whether there was one.
    async fn step(&mut self) -> Result<bool> {
        match self.child.events.next().await? {
            Some(ChildEvent::Stdout { at, mut data }) => {
                self.from.get_or_insert(at);
                // Of a numbered line, not its end: the next line, an answer, is to be understood.
                let end = data.iter().position(|byte| *byte == b'\n').filter(|end| self.loses && *end > 0);
                let end = end.filter(|_| !data.starts_with(b"answer"));
                if let Some(end) = end {
                    data.remove(end - 1);
                    self.loses = false;
                }
                self.said.extend(self.transcript.hear(at, &data));
            }
            Some(ChildEvent::Stderr { data, .. }) => self.errors.extend(data),
            Some(ChildEvent::Exited(exit)) => self.exit = Some(exit),
            Some(ChildEvent::Status(_)) => self.known = true,
            Some(ChildEvent::Started { .. }) => {}
            None => return Ok(false),
        }
        Ok(true)
    }
}
