//! The connection to a shim, and to its successors.

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_sandbox::{Known, SandboxError, State, sockets};
use tokio::net::UnixStream;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::memory::Memory;
use crate::ShimError;
use crate::api::{Answer, Call, Kind, Pair, Reply, Request, RolledBack, SOCKET, VERSION};
use crate::line::{self, Incoming, Outgoing};
use crate::start::{Program, Start};

/// How long a successor may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// Between two tries while somebody else starts a shim.
const PAUSE: Duration = Duration::from_millis(5);
/// How long news of a channel may take that has ended already.
const NEWS: Duration = Duration::from_secs(1);
/// How long a shim may take for its greeting.
const GREETING: Duration = Duration::from_secs(10);

/// Something that happened to a sandbox's shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It died, and another one has taken over everything that this client has open.
    TakenOver {
        /// The new one's process.
        shim: u32,
    },
    /// The machine died, and is back at its last checkpoint. The channel that was open under this id has ended, with
    /// [`Reset`](throughline::Error::Reset); [`attach`](super::Remote::attach) goes on with it, if it is not gone.
    RolledBack {
        /// The channel.
        id: String,
        /// How far it went back.
        how_far: RolledBack,
    },
}

/// What waits for an answer.
struct Waiting {
    call: Call,
    answer: oneshot::Sender<Result<Answer, ShimError>>,
}

/// What tasks share.
struct Shared {
    name: String,
    program: Program,
    memory: Arc<Memory>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    pairs: Mutex<HashMap<String, Pair>>,
    /// What became of pairs of timelines that were lost.
    rolled_back: watch::Sender<HashMap<String, RolledBack>>,
    /// The way to the shim of now. Held while it is exchanged.
    outgoing: AsyncMutex<Option<Outgoing>>,
    shim: AtomicU32,
    numbers: AtomicU64,
    /// Why there is no way any more.
    ended: watch::Sender<Option<Arc<ShimError>>>,
    events: mpsc::UnboundedSender<Event>,
}

/// A connection that outlives shims.
pub(super) struct Connection {
    shared: Arc<Shared>,
    events: AsyncMutex<mpsc::UnboundedReceiver<Event>>,
    reading: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

impl Connection {
    pub(super) async fn open(name: String, program: Program, memory: Arc<Memory>) -> Result<Self, ShimError> {
        let (events, received) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            name,
            program,
            memory,
            waiting: Mutex::default(),
            pairs: Mutex::default(),
            rolled_back: watch::Sender::default(),
            outgoing: AsyncMutex::new(None),
            shim: AtomicU32::new(0),
            numbers: AtomicU64::new(1),
            ended: watch::Sender::new(None),
            events,
        });
        let incoming = shared.reach().await?;
        let reading = tokio::spawn(shared.clone().read(incoming)).abort_handle();
        Ok(Self { shared, events: AsyncMutex::new(received), reading })
    }

    pub(super) fn shim(&self) -> u32 {
        self.shared.shim.load(Ordering::Relaxed)
    }

    pub(super) async fn event(&self) -> Event {
        let mut events = self.events.lock().await;
        match events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// What became of a channel that has just ended early, if it was lost with its timeline.
    pub(super) async fn rolled_back(&self, id: &str) -> Option<RolledBack> {
        let mut known = self.shared.rolled_back.subscribe();
        let told = timeout(NEWS, known.wait_for(|known| known.contains_key(id))).await.ok()?;
        told.ok().and_then(|known| known.get(id).copied())
    }

    /// Why the sandbox cannot be reached any more, once it cannot.
    pub(super) async fn ended(&self) -> ShimError {
        let mut ended = self.shared.ended.subscribe();
        let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.map_or_else(|| self.shared.unreachable("the connection is gone".to_owned()), |why| self.shared.told(&why))
    }

    pub(super) async fn call(&self, call: Call) -> Result<Answer, ShimError> {
        let number = self.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let (answer, received) = oneshot::channel();
        self.shared.waiting().insert(number, Waiting { call: call.clone(), answer });
        if let Some(outgoing) = &*self.shared.outgoing.lock().await {
            // What is not sent now is sent to the successor.
            let _ = outgoing.send(&Request { number, call }).await;
        }
        tokio::select! {
            biased;
            answer = received => answer.unwrap_or_else(|_| Err(ShimError::Died(self.shared.name.clone()))),
            error = self.ended() => Err(error),
        }
    }

    /// Has two channels paired, now and by every successor, until they end.
    pub(super) async fn pair(&self, pair: Pair) -> Result<(), ShimError> {
        let id = pair.id.clone();
        // What became of an earlier pair of it is told, or nobody asked.
        self.shared.rolled_back.send_modify(|known| {
            known.remove(&id);
        });
        self.shared.pairs().insert(id.clone(), pair.clone());
        let paired = self.call(Call::Pair(pair)).await;
        if paired.is_err() {
            self.shared.pairs().remove(&id);
        }
        paired.map(|_| ())
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pairs(&self) -> MutexGuard<'_, HashMap<String, Pair>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreachable(&self, why: String) -> ShimError {
        ShimError::Unreachable { name: self.name.clone(), why }
    }

    /// The reason once more, for another one who asks.
    fn told(&self, why: &ShimError) -> ShimError {
        match why {
            ShimError::Sandbox(SandboxError::Ended(exit)) => SandboxError::Ended(exit.clone()).into(),
            other => self.unreachable(other.to_string()),
        }
    }

    /// Reads answers for as long as there is a shim.
    async fn read(self: Arc<Self>, mut incoming: Incoming) {
        loop {
            match incoming.line::<Reply>().await {
                Ok(Some(reply)) => self.understand(reply),
                gone => {
                    tracing::debug!(?gone, "the shim has gone");
                    match self.again().await {
                        Ok(next) => incoming = next,
                        Err(error) => {
                            self.ended.send_replace(Some(Arc::new(error)));
                            return;
                        }
                    }
                }
            }
        }
    }

    fn understand(&self, reply: Reply) {
        let (number, answer) = match reply {
            Reply::Answer(number, answer) => (number, Ok(answer)),
            Reply::Failure(number, failure) => (number, Err(failure.into())),
            Reply::Unpaired(id) => {
                self.pairs().remove(&id);
                return;
            }
            Reply::RolledBack(id, how_far) => {
                self.pairs().remove(&id);
                self.rolled_back.send_modify(|known| {
                    known.insert(id.clone(), how_far);
                });
                // Nobody may be interested.
                let _ = self.events.send(Event::RolledBack { id, how_far });
                return;
            }
        };
        if let Some(waiting) = self.waiting().remove(&number) {
            // Whoever asked may have lost interest.
            let _ = waiting.answer.send(answer);
        }
    }

    /// Goes over to a successor, which gets everything that this client has open.
    async fn again(&self) -> Result<Incoming, ShimError> {
        let mut outgoing = self.outgoing.lock().await;
        *outgoing = None;
        drop(outgoing);
        let incoming = self.reach().await?;
        // Nobody may be interested.
        let _ = self.events.send(Event::TakenOver { shim: self.shim.load(Ordering::Relaxed) });
        Ok(incoming)
    }

    async fn reach(&self) -> Result<Incoming, ShimError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.try_reach().await {
                Ok(incoming) => return Ok(incoming),
                Err(Try::Never(error)) => return Err(error),
                Err(Try::Later(why)) if Instant::now() >= deadline => return Err(self.unreachable(why)),
                Err(Try::Later(_)) => sleep(PAUSE).await,
            }
        }
    }

    async fn try_reach(&self) -> Result<Incoming, Try> {
        let known = Known::find(&self.name).map_err(|error| Try::Never(error.into()))?;
        if let Ok(socket) = sockets::connect(&known.runtime, SOCKET) {
            return self.greet(socket).await;
        }
        self.may_be_taken_over()?;
        let start = Start::TakeOver { name: self.name.clone() };
        match self.program.start(&start).await {
            Ok(_) => Err(Try::Later("it has just been started".to_owned())),
            // Another client's may have been faster. One that did not bring it back has told why: to try that once more is
            // for whoever puts it right.
            Err(ShimError::Failure(failure)) if !matches!(failure.kind, Kind::Ended | Kind::Lost) => {
                Err(Try::Later(failure.message))
            }
            Err(error) => Err(Try::Never(error)),
        }
    }

    /// Looks once more at what is on paper: the shim may have ended since.
    fn may_be_taken_over(&self) -> Result<(), Try> {
        let known = Known::find(&self.name).map_err(|error| Try::Never(error.into()))?;
        let ended = known.record.and_then(|record| record.exit);
        let never = |error: SandboxError| Err(Try::Never(error.into()));
        match (known.state, ended) {
            (_, Some(exit)) => never(SandboxError::Ended(Box::new(exit))),
            (State::Unfinished, None) => never(SandboxError::Unfinished(self.name.clone())),
            (State::Dead, None) => never(SandboxError::Dead(self.name.clone())),
            _ => Ok(()),
        }
    }

    /// Says hello, hands the memory over, and repeats what was under way.
    async fn greet(&self, socket: StdStream) -> Result<Incoming, Try> {
        let later = |error: std::io::Error| Try::Later(error.to_string());
        socket.set_nonblocking(true).map_err(later)?;
        let (mut incoming, outgoing) = line::split(UnixStream::from_std(socket).map_err(later)?);
        let hello = async {
            outgoing.send(&Request { number: 0, call: Call::Hello { api: VERSION } }).await?;
            incoming.line::<Reply>().await
        };
        let hello = timeout(GREETING, hello).await.map_err(|_| Try::Later("it does not answer".to_owned()))?;
        match hello.map_err(later)? {
            Some(Reply::Answer(_, Answer::Hello { api, pid, .. })) if api == VERSION => {
                self.shim.store(pid, Ordering::Relaxed);
            }
            Some(Reply::Answer(_, Answer::Hello { api, pid, release })) => {
                return Err(Try::Never(ShimError::Version { name: self.name.clone(), pid, release, found: api }));
            }
            Some(_) => return Err(Try::Never(ShimError::Nonsense(self.name.clone()))),
            None => return Err(Try::Later("it has just gone".to_owned())),
        }
        let mut place = self.outgoing.lock().await;
        let link = Request { number: 0, call: Call::Link };
        outgoing.send_with(&link, &self.memory.descriptors()).await.map_err(later)?;
        for request in self.unfinished() {
            outgoing.send(&request).await.map_err(later)?;
        }
        *place = Some(outgoing);
        Ok(incoming)
    }

    /// What a successor is told: the pairs, and calls that may be repeated.
    fn unfinished(&self) -> Vec<Request> {
        let mut waiting = self.waiting();
        let lost: Vec<u64> =
            waiting.iter().filter(|(_, waiting)| !may_be_repeated(&waiting.call)).map(|(number, _)| *number).collect();
        for number in lost {
            if let Some(waiting) = waiting.remove(&number) {
                let _ = waiting.answer.send(Err(ShimError::Died(self.name.clone())));
            }
        }
        let asked =
            |pair: &Pair| waiting.values().any(|waiting| matches!(&waiting.call, Call::Pair(asked) if asked == pair));
        let pairs = self.pairs().values().filter(|pair| !asked(pair)).cloned().collect::<Vec<_>>();
        let pairs = pairs.into_iter().map(|pair| Request { number: 0, call: Call::Pair(pair) });
        let calls = waiting.iter().map(|(number, waiting)| Request { number: *number, call: waiting.call.clone() });
        pairs.chain(calls).collect()
    }
}

/// Whether a call does no harm when it is carried out twice.
fn may_be_repeated(call: &Call) -> bool {
    !matches!(call, Call::Snapshot { .. })
}

/// Why a try came to nothing.
enum Try {
    /// It may come to something soon.
    Later(String),
    /// It never will.
    Never(ShimError),
}
