//! One client.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::pairs::{ClientLink, Over, carry};
use super::{End, Shared};
use crate::api::{Answer, Call, Failure, Kind, Reply, Request, VERSION};
use crate::line::{self, Outgoing};

/// How long clients have, once the machine has ended, to read what there is.
pub(super) const LAST_READS: Duration = Duration::from_secs(5);

/// Calls of one client that are carried out at one time; what waits for another call's end counts. More are refused:
/// to read on later would let calls wait for each other.
const MOST_CALLS: usize = 1024;

/// A client's connection.
struct Session {
    shared: Arc<Shared>,
    outgoing: Outgoing,
    link: Option<Arc<ClientLink>>,
    over: watch::Sender<Option<Over>>,
    /// Channels that were opened for it, and that it has not had paired yet.
    opened: Arc<Mutex<HashSet<String>>>,
    pairs: JoinSet<()>,
    calls: JoinSet<()>,
}

/// Serves a client until it goes, or until the machine has ended and everything of it was read.
pub(super) async fn serve(shared: Arc<Shared>, socket: UnixStream) {
    let (mut incoming, outgoing) = line::split(socket);
    let mut end = shared.end.subscribe();
    let mut session = Session {
        shared,
        outgoing,
        link: None,
        over: watch::Sender::new(None),
        opened: Arc::default(),
        pairs: JoinSet::new(),
        calls: JoinSet::new(),
    };
    loop {
        tokio::select! {
            line = incoming.line::<Value>() => match line {
                Ok(Some(line)) => session.take(line, incoming.take_descriptors()).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a client speaks nonsense");
                    break;
                }
            },
            Some(_) = session.calls.join_next() => {}
            Some(_) = session.pairs.join_next() => {}
            () = until(&mut end) => break,
        }
    }
    let end = session.shared.end.borrow().clone();
    // Answers to those who wait for the end; then what is in the rings.
    if let Some(End::Exited(exit)) = &end {
        // A client that has gone need not be told.
        let _ = session.outgoing.send(&Reply::Ended(exit.clone())).await;
        let told = async { while session.calls.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_READS, told).await;
    }
    let over = if matches!(end, Some(End::Lost)) { Over::Lost } else { Over::Ended };
    session.over.send_replace(Some(over));
    if end.is_none() {
        session.drop_unpaired().await;
    }
    while session.pairs.join_next().await.is_some() {}
}

/// Waits for the machine's end.
async fn until(end: &mut watch::Receiver<Option<End>>) {
    let _ = end.wait_for(Option::is_some).await;
}

impl Session {
    async fn take(&mut self, line: Value, descriptors: Vec<std::os::fd::OwnedFd>) {
        // Those that were answered do not count.
        while self.calls.try_join_next().is_some() {}
        let number = line.get("number").and_then(Value::as_u64).unwrap_or(0);
        let Request { call, .. } = match serde_json::from_value(line) {
            Ok(request) => request,
            // A client of another version may know calls that this one does not.
            Err(error) => return reply(&self.outgoing, number, Err(unknown(&error))).await,
        };
        let answer = match call {
            // Whoever speaks another version decides what to do.
            Call::Hello { .. } => Ok(hello()),
            Call::Link => ClientLink::attach(descriptors).map(|link| {
                self.link = Some(Arc::new(link));
                Answer::Done
            }),
            call if self.calls.len() < MOST_CALLS || matches!(call, Call::Pair(_) | Call::Kill) => {
                return self.carry_out(number, call);
            }
            _ => {
                let message = format!("{MOST_CALLS} calls of this client are under way: wait for some of them");
                Err(Failure { kind: Kind::Failed, message })
            }
        };
        reply(&self.outgoing, number, answer).await;
    }

    /// Resets what was opened for a client that has gone before it could use it: nobody else knows of it.
    async fn drop_unpaired(&mut self) {
        self.calls.shutdown().await;
        for id in of(&self.opened).drain() {
            self.shared.reset(&id);
        }
    }

    fn carry_out(&mut self, number: u64, call: Call) {
        let (shared, outgoing) = (self.shared.clone(), self.outgoing.clone());
        match call {
            Call::Open(open) => {
                let unpaired = self.opened.clone();
                self.calls.spawn(async move {
                    let opened = if open.port == 0 {
                        shared.found(&open.id)
                    } else {
                        let id = open.id.clone();
                        let opened = shared.open(open).await;
                        if opened.is_ok() {
                            of(&unpaired).insert(id);
                        }
                        opened
                    };
                    reply(&outgoing, number, opened.map(Answer::Opened)).await;
                });
            }
            Call::Pair(pair) => {
                of(&self.opened).remove(&pair.id);
                let (link, over) = (self.link.clone(), self.over.subscribe());
                self.pairs.spawn(async move {
                    let Some(link) = link else {
                        let message = "a pair needs a link".to_owned();
                        return reply(&outgoing, number, Err(Failure { kind: Kind::Misuse, message })).await;
                    };
                    if let Some(rolled_back) = shared.rolled_back(&link, &pair).await {
                        // Told first: then the end of the client's channel means that.
                        let _ = outgoing.send(&Reply::RolledBack(pair.id.clone(), rolled_back)).await;
                        let message = "the machine died, and is back at its last checkpoint: attach again".to_owned();
                        reply(&outgoing, number, Err(Failure { kind: Kind::RolledBack, message })).await;
                        return link.abort(&pair).await;
                    }
                    match shared.pair(&link, &pair).await {
                        Ok(relay) => {
                            reply(&outgoing, number, Ok(Answer::Done)).await;
                            carry(relay, pair, outgoing, over).await;
                        }
                        Err(failure) => {
                            link.abort(&pair).await;
                            reply(&outgoing, number, Err(failure)).await;
                        }
                    }
                });
            }
            call @ Call::Snapshot { .. } => {
                // Once begun it comes to its end, whether its client still waits or not.
                tokio::spawn(async move {
                    let _turn = shared.snapshots.lock().await;
                    let answer = match shared.lost() {
                        Some(failure) => Err(failure),
                        None => shared.call(call).await,
                    };
                    reply(&outgoing, number, answer).await;
                });
            }
            call => {
                self.calls.spawn(async move { reply(&outgoing, number, shared.call(call).await).await });
            }
        }
    }
}

fn of(opened: &Mutex<HashSet<String>>) -> std::sync::MutexGuard<'_, HashSet<String>> {
    opened.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(error: &serde_json::Error) -> Failure {
    let message = format!("version {VERSION} of a shim's interface has no such call: {error}");
    Failure { kind: Kind::Version, message }
}

fn hello() -> Answer {
    Answer::Hello { api: VERSION, pid: std::process::id(), release: env!("CARGO_PKG_VERSION").to_owned() }
}

async fn reply(outgoing: &Outgoing, number: u64, answer: Result<Answer, Failure>) {
    let reply = match answer {
        Ok(answer) => Reply::Answer(number, answer),
        Err(failure) => Reply::Failure(number, failure),
    };
    let sent = match outgoing.send(&reply).await {
        Err(error) if error.kind() == ErrorKind::ArgumentListTooLong => {
            let failure = Failure { kind: Kind::Failed, message: format!("the answer is too long: {error}") };
            outgoing.send(&Reply::Failure(number, failure)).await
        }
        sent => sent,
    };
    // A client that has gone needs no answer.
    if let Err(error) = sent {
        tracing::debug!(%error, "a client has gone without its answer");
    }
}
