//! Starting a shim: a process of its own, which tells when it is ready, or why not.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use throughline_sandbox::Given;
use throughline_sandbox::engine::Hardware;
use throughline_sandbox::secrets;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::ShimError;
use crate::api::Failure;

/// How long a shim may take until its sandbox is ready.
const DEADLINE: Duration = Duration::from_mins(3);

/// What is done with a sandbox for as long as there is one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Keeping {
    /// Whether name and logs vanish with the machine.
    pub rm: bool,
    /// How often a checkpoint is taken, in milliseconds; `None` for never.
    pub checkpoint_ms: Option<u64>,
}

/// How a shim comes to its sandbox. It reads this as a line of JSON from its standard input. The tag is outside: who
/// reads one that is inside keeps copies of all the rest, which may have secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Creates it.
    Create {
        /// The name; a random one without.
        name: Option<String>,
        /// The image's name or id.
        image: String,
        /// What its machine has.
        hardware: Hardware,
        /// What its guest is given.
        given: Given,
        /// What is done with it.
        #[serde(flatten)]
        keeping: Keeping,
    },
    /// Restores it.
    Restore {
        /// The name; a random one without.
        name: Option<String>,
        /// The bundle's folder.
        bundle: PathBuf,
        /// What its guest is given.
        given: Given,
        /// What is done with it.
        #[serde(flatten)]
        keeping: Keeping,
    },
    /// Spawns a child from a zygote in memory.
    Fork {
        /// The name.
        name: String,
        /// The zygote's bundle.
        bundle: PathBuf,
        /// Which of its children it is, from 1.
        index: u64,
        /// What its guest is given.
        given: Given,
        /// What is done with it.
        #[serde(flatten)]
        keeping: Keeping,
    },
    /// Loads a child of a zygote, and waits with it, paused, for a second line: a [`Take`]. Its end without one, or
    /// that of the process that began it, ends the child; the end of the child's machine ends the shim.
    Wait {
        /// The zygote's bundle.
        bundle: PathBuf,
        /// Which of its children it is.
        index: u64,
        /// Whether the bundle was written by this host a moment ago.
        trusted: bool,
    },
    /// Goes on with one whose shim has died.
    TakeOver {
        /// The name.
        name: String,
    },
}

/// What makes a sandbox of a child in waiting: the second line that its shim reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Take {
    /// The name; a random one without.
    pub name: Option<String>,
    /// What its guest is given.
    pub given: Given,
    /// What is done with it.
    #[serde(flatten)]
    pub keeping: Keeping,
}

/// What a shim says on its standard output, as a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The sandbox is ready, and the shim answers.
    Ready {
        /// Its name.
        name: String,
    },
    /// A child waits to be taken.
    Waiting,
    /// It is not, and the shim has ended.
    Failed(Failure),
}

/// The program that becomes a shim.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// What makes it a shim.
    pub arguments: Vec<String>,
}

impl Program {
    /// `throughline shim`: the program that `THROUGHLINE_SHIM` names, or the one on the search path.
    pub fn installed() -> Self {
        let path = std::env::var_os("THROUGHLINE_SHIM").map_or_else(|| PathBuf::from("throughline"), PathBuf::from);
        Self { path, arguments: vec!["shim".to_owned()] }
    }

    /// `shim` of the program that runs.
    pub fn this() -> Self {
        std::env::current_exe()
            .map_or_else(|_| Self::installed(), |path| Self { path, arguments: vec!["shim".to_owned()] })
    }

    /// The same program as the keeper of a pool.
    pub(crate) fn keeper(&self) -> Self {
        Self { path: self.path.clone(), arguments: vec!["keeper".to_owned()] }
    }

    /// Starts a shim, and waits until its sandbox is ready; its name. The shim outlives this process.
    pub async fn start(&self, start: &Start) -> Result<String, ShimError> {
        self.begin(start).await
    }

    /// Starts a shim that waits, with a child of a zygote, to be taken.
    pub async fn wait(&self, start: &Start) -> Result<InWaiting, ShimError> {
        let mut shim = self.spawn()?;
        match shim.ask(start).await?.or("a shim of a child in waiting ended without a word")? {
            Outcome::Waiting => Ok(shim),
            Outcome::Failed(failure) => Err(failure.into()),
            Outcome::Ready { name } => Err(ShimError::Nonsense(name)),
        }
    }

    pub(crate) async fn begin(&self, start: &impl Serialize) -> Result<String, ShimError> {
        let said = self.spawn()?.ask(start).await?;
        said.or("it ended without a word; its log is shim.log in the sandbox's folder")?.ready()
    }

    fn spawn(&self) -> Result<InWaiting, ShimError> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.current_dir("/");
        leave_session(&mut command);
        let failed = |source| ShimError::Start { program: self.path.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().map(BufReader::new));
        let (tell, ended) = watch::channel(false);
        // Whoever starts it outlives it or not; in the first case it must not stay a zombie.
        tokio::spawn(async move {
            let orderly = child.wait().await.is_ok_and(|status| status.success());
            tell.send_replace(orderly);
        });
        Ok(InWaiting { program: self.path.clone(), stdin, stdout, ended })
    }
}

/// Has it begin a session of its own. What a terminal sends to this one does not concern it; and a group of this one would
/// be hung up where it stands still while whoever began it ends (`man 2 setpgid`, on orphaned groups).
#[expect(unsafe_code, reason = "before anything can happen to it, so between fork and exec")]
fn leave_session(command: &mut Command) {
    // SAFETY: the closure makes a system call only: it neither allocates nor takes a lock that another thread may have held.
    unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?)) };
}

/// A shim that waits, with a child of a zygote, to be taken. It ends when this is dropped.
#[derive(Debug)]
pub struct InWaiting {
    program: PathBuf,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    /// Whether it has ended of its own will. Nobody says anything there any more once it has ended.
    ended: watch::Receiver<bool>,
}

impl InWaiting {
    /// Waits for its end: its machine's, or its own.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move { while ended.changed().await.is_ok() {} }
    }

    /// Makes a sandbox of its child, and waits until that is ready; its name. It outlives this process. `None`: the child
    /// had ended before, and nothing came of it.
    pub async fn take(mut self, take: &Take) -> Result<Option<String>, ShimError> {
        const SILENT: &str =
            "the shim of the child ended in the middle; look whether there is a sandbox, and take another child if not";
        match self.ask(take).await? {
            Said::Unasked => Ok(None),
            said => said.or(SILENT)?.ready().map(Some),
        }
    }

    /// Says a line, and waits for the answer.
    async fn ask(&mut self, question: &impl Serialize) -> Result<Said, ShimError> {
        let failed = |source| ShimError::Start { program: self.program.clone(), source };
        let told = async {
            if let Some(stdin) = &mut self.stdin {
                // It may have secrets.
                let mut line = secrets::encode(question)?;
                line.push(b'\n');
                match stdin.write_all(&line).await {
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Said::Unasked),
                    told => told?,
                }
            }
            let mut line = String::new();
            if let Some(stdout) = &mut self.stdout {
                stdout.read_line(&mut line).await?;
            }
            if !line.is_empty() {
                return Ok(Said::Outcome(serde_json::from_str(&line)?));
            }
            // One that does what it was told says what came of it, unless it is killed.
            let orderly = self.ended.wait_for(|orderly| *orderly).await.is_ok();
            Ok(if orderly { Said::Unasked } else { Said::Nothing })
        };
        timeout(DEADLINE, told).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())).map_err(failed)
    }
}

/// What came of saying a line.
enum Said {
    Outcome(Outcome),
    /// The shim ended before it had read it.
    Unasked,
    /// It ended, perhaps in the middle.
    Nothing,
}

impl Said {
    fn or(self, silent: &'static str) -> Result<Outcome, ShimError> {
        match self {
            Self::Outcome(outcome) => Ok(outcome),
            Self::Unasked | Self::Nothing => Err(ShimError::Silent(silent)),
        }
    }
}

impl Outcome {
    fn ready(self) -> Result<String, ShimError> {
        match self {
            Self::Ready { name } => Ok(name),
            Self::Failed(failure) => Err(failure.into()),
            Self::Waiting => Err(ShimError::Nonsense("in waiting".to_owned())),
        }
    }
}
