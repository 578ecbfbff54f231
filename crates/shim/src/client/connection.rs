//! The connection to a shim, and to its successors.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use throughline_sandbox::SandboxError;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::memory::Memory;
use super::reach::{Reached, reach};
use crate::ShimError;
use crate::api::{Answer, Call, Failure, Pair, Reply, Request, RolledBack};
use crate::line::{Incoming, Outgoing};
use crate::start::Program;

/// How long news of a channel may take that has ended already.
const NEWS: Duration = Duration::from_secs(1);

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
    /// Whether a shim may have begun with it: all of its line was sent.
    sent: bool,
    /// Who asked; nobody, where a successor is to go on with a pair.
    answer: Option<oneshot::Sender<Result<Answer, ShimError>>>,
}

impl Waiting {
    /// Whether whoever asked has lost interest.
    fn is_given_up(&self) -> bool {
        self.answer.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// Why a pair ended before its channels did.
#[derive(Clone, Debug)]
enum Fate {
    RolledBack(RolledBack),
    /// A successor did not go on with it.
    Refused(Failure),
}

/// What tasks share.
struct Shared {
    name: String,
    program: Program,
    memory: Arc<Memory>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    pairs: Mutex<HashMap<String, Pair>>,
    /// What became of pairs that could not go on.
    fates: watch::Sender<HashMap<String, Fate>>,
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
            fates: watch::Sender::default(),
            outgoing: AsyncMutex::new(None),
            shim: AtomicU32::new(0),
            numbers: AtomicU64::new(1),
            ended: watch::Sender::new(None),
            events,
        });
        let incoming = shared.go_over().await?;
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
    pub(super) async fn rolled_back(&self, id: &str) -> Result<Option<RolledBack>, ShimError> {
        let mut known = self.shared.fates.subscribe();
        let told = timeout(NEWS, known.wait_for(|known| known.contains_key(id))).await;
        match told.ok().and_then(Result::ok).and_then(|known| known.get(id).cloned()) {
            Some(Fate::RolledBack(how_far)) => Ok(Some(how_far)),
            Some(Fate::Refused(failure)) => Err(failure.into()),
            None => Ok(None),
        }
    }

    /// Why the sandbox cannot be reached any more, once it cannot.
    pub(super) async fn ended(&self) -> ShimError {
        self.shared.ended().await
    }

    /// Sends a call, now or to the next shim: its answer. Who drops it gives up.
    pub(super) fn ask(&self, call: Call) -> impl Future<Output = Result<Answer, ShimError>> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let (answer, received) = oneshot::channel();
            shared.clone().ask(call, answer).await;
            tokio::select! {
                biased;
                answer = received => answer.unwrap_or_else(|_| Err(ShimError::Died(shared.name.clone()))),
                error = shared.ended() => Err(error),
            }
        }
    }

    /// Has two channels paired, now and by every successor, until they end.
    pub(super) async fn pair(&self, pair: Pair) -> Result<(), ShimError> {
        let id = pair.id.clone();
        // What became of an earlier pair of it is told, or nobody asked.
        self.shared.fates.send_modify(|known| {
            known.remove(&id);
        });
        self.shared.pairs().insert(id.clone(), pair.clone());
        let paired = self.ask(Call::Pair(pair)).await;
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

    async fn ended(&self) -> ShimError {
        let mut ended = self.ended.subscribe();
        let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.map_or_else(|| self.unreachable("the connection is gone".to_owned()), |why| why.again(&self.name))
    }

    /// Sends a call, or leaves it to be sent to the successor. In a task of its own: a line that was begun is ended, also
    /// where whoever asks gives up.
    async fn ask(self: Arc<Self>, call: Call, answer: oneshot::Sender<Result<Answer, ShimError>>) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let sending = tokio::spawn(async move {
            // Under the lock: it is repeated by the exchange of shims, or sent here, and not both.
            let outgoing = self.outgoing.lock().await;
            // An exchange may take long.
            if answer.is_closed() {
                return;
            }
            let request = Request { number, call: call.clone() };
            self.waiting().insert(number, Waiting { call, sent: false, answer: Some(answer) });
            if let Some(outgoing) = &*outgoing
                && self.send(outgoing, &request).await.is_ok()
                && let Some(waiting) = self.waiting().get_mut(&number)
            {
                waiting.sent = true;
            }
        });
        // It ends by itself: the runtime alone could end it earlier.
        let _ = sending.await;
    }

    /// Sends a line. One that is too long, or cannot be written (a path may be no text), fails for whoever asked, and is not
    /// repeated.
    async fn send(&self, outgoing: &Outgoing, request: &Request) -> io::Result<()> {
        let Err(error) = outgoing.send(request).await else { return Ok(()) };
        if !matches!(error.kind(), io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidData) {
            return Err(error);
        }
        let asked = self.waiting().remove(&request.number).and_then(|waiting| waiting.answer);
        // Whoever asked may have lost interest.
        let _ = asked.map(|asked| asked.send(Err(ShimError::io("ask the shim")(error))));
        Ok(())
    }

    /// Reads answers for as long as there is a shim.
    async fn read(self: Arc<Self>, mut incoming: Incoming) {
        let mut ended = None;
        loop {
            match incoming.line::<Reply>().await {
                Ok(Some(Reply::Ended(exit))) => ended = Some(exit),
                Ok(Some(reply)) => self.understand(reply),
                gone => {
                    tracing::debug!(?gone, "the shim has gone");
                    let next = match ended.take() {
                        Some(exit) => Err(SandboxError::Ended(Box::new(exit)).into()),
                        None => self.again().await,
                    };
                    match next {
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
            Reply::Failure(number, failure) => (number, Err(failure)),
            Reply::Unpaired(id, slot, generation) => {
                // It may be paired anew by now.
                self.pairs().retain(|_, pair| (&pair.id, pair.slot, pair.generation) != (&id, slot, generation));
                return;
            }
            // For who reads.
            Reply::Ended(_) => return,
            Reply::RolledBack(id, how_far) => {
                self.ends_early(&id, Fate::RolledBack(how_far));
                // Nobody may be interested.
                let _ = self.events.send(Event::RolledBack { id, how_far });
                return;
            }
        };
        let waiting = self.waiting().remove(&number);
        match (waiting, answer) {
            // Whoever asked may have lost interest.
            (Some(Waiting { answer: Some(asked), .. }), answer) => drop(asked.send(answer.map_err(Into::into))),
            (Some(Waiting { call: Call::Pair(pair), .. }), Err(failure)) => {
                tracing::debug!(id = pair.id, %failure, "the successor does not go on with a channel");
                self.ends_early(&pair.id, Fate::Refused(failure));
            }
            _ => {}
        }
    }

    /// Notes what became of a pair. What was told first counts.
    fn ends_early(&self, id: &str, fate: Fate) {
        self.pairs().remove(id);
        self.fates.send_modify(|known| {
            known.entry(id.to_owned()).or_insert(fate);
        });
    }

    /// Goes over to a successor, which gets everything that this client has open.
    async fn again(&self) -> Result<Incoming, ShimError> {
        let mut outgoing = self.outgoing.lock().await;
        *outgoing = None;
        drop(outgoing);
        let incoming = self.go_over().await?;
        // Nobody may be interested.
        let _ = self.events.send(Event::TakenOver { shim: self.shim.load(Ordering::Relaxed) });
        Ok(incoming)
    }

    /// Comes to the shim of now, and repeats what was under way.
    async fn go_over(&self) -> Result<Incoming, ShimError> {
        let Reached { incoming, outgoing, pid } = reach(&self.name, &self.program, &self.memory).await?;
        self.shim.store(pid, Ordering::Relaxed);
        let mut place = self.outgoing.lock().await;
        for request in self.unfinished() {
            // One that has gone already is seen by who reads: everything is repeated to the next.
            if self.send(&outgoing, &request).await.is_err() {
                break;
            }
        }
        *place = Some(outgoing);
        Ok(incoming)
    }

    /// What a successor is told: the pairs, and calls that may be repeated. The others have failed, if they were sent.
    fn unfinished(&self) -> Vec<Request> {
        let mut waiting = self.waiting();
        waiting.retain(|_, waiting| !waiting.is_given_up());
        for (_, lost) in waiting.extract_if(|_, waiting| waiting.sent && !may_be_repeated(&waiting.call)) {
            let _ = lost.answer.map(|answer| answer.send(Err(ShimError::Died(self.name.clone()))));
        }
        let pairs = self.pairs().values().cloned().collect::<Vec<_>>();
        for pair in pairs {
            let asked = |waiting: &Waiting| matches!(&waiting.call, Call::Pair(asked) if *asked == pair);
            if !waiting.values().any(asked) {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                waiting.insert(number, Waiting { call: Call::Pair(pair), sent: true, answer: None });
            }
        }
        let requests = waiting.iter_mut().map(|(number, waiting)| {
            waiting.sent = true;
            Request { number: *number, call: waiting.call.clone() }
        });
        requests.collect()
    }
}

/// Whether a call does no harm when it is carried out twice.
fn may_be_repeated(call: &Call) -> bool {
    !matches!(call, Call::Snapshot { .. })
}
