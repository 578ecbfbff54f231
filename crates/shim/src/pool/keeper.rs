//! The keeper: one process, one pool, any number of callers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use throughline_sandbox::stock::{Failures, Stock};
use throughline_sandbox::zygote::Place;
use throughline_sandbox::{Given, pool, sockets};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::folder::Folder;
use super::{Answer, Call, Create, Reply, Request, SOCKET, Source, VERSION, given};
use crate::ShimError;
use crate::api::{Failure, Kind};
use crate::client::Remote;
use crate::line::{self, Incoming};
use crate::server::ACCEPT_AGAIN;
use crate::start::{InWaiting, Program, Start, Take};

/// Callers at one time. More wait for their turn.
const MOST_CALLERS: usize = 64;
/// How long a removed pool waits for children that are just becoming sandboxes.
const TAKES: Duration = Duration::from_secs(10);

/// A pool whose first child waits, and the socket on which its callers are awaited.
#[derive(Debug)]
pub struct Keeper {
    shared: Arc<Shared>,
    listener: UnixListener,
}

#[derive(Debug)]
struct Shared {
    create: Create,
    // The order of the fields is the order of the ends: children, zygote, folder.
    stock: Stock<InWaiting, ShimError>,
    _zygote: Option<Place>,
    folder: Folder,
    /// Somebody removes the pool.
    removed: watch::Sender<bool>,
}

impl Keeper {
    /// Makes the zygote, loads the first child, and listens. Of two keepers of one name, one gets it.
    pub async fn begin(create: Create, program: Program) -> Result<Self, ShimError> {
        let folder = Folder::claim(&create.pool).await?;
        let (bundle, zygote) = match &create.source {
            Source::Sandbox(name) => {
                let place = Place::new().await?;
                Remote::connect(name, program.clone()).await?.snapshot(place.bundle(), false, false).await?;
                (place.bundle(), Some(place))
            }
            Source::Snapshot(bundle) => (bundle.clone(), None),
        };
        let make = maker(program, bundle, zygote.is_some());
        let first = make().await?;
        let stock = Stock::new(create.size, vec![first], make, InWaiting::ended);
        let listener = sockets::listen(folder.path(), SOCKET).and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = listener.map_err(ShimError::io("listen for callers"))?;
        let shared = Shared { create, stock, _zygote: zygote, folder, removed: watch::Sender::new(false) };
        Ok(Self { shared: Arc::new(shared), listener })
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.shared.create.pool
    }

    /// The folder of its log.
    pub fn folder(&self) -> &Path {
        self.shared.folder.path()
    }

    /// Serves until the pool is removed.
    pub async fn serve(self) -> Result<(), ShimError> {
        let Self { shared, listener } = self;
        let mut callers = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = shared.removed() => break,
                accepted = listener.accept(), if callers.len() < MOST_CALLERS => match accepted {
                    Ok((socket, _)) => {
                        callers.spawn(serve(shared.clone(), socket));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a caller was not accepted");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(_) = callers.join_next() => {}
            }
        }
        drop(listener);
        // They share the pool, whose last owner removes zygote and folder.
        let taken = async { while callers.join_next().await.is_some() {} };
        if timeout(TAKES, taken).await.is_err() {
            tracing::warn!("a child that was being taken when the pool was removed is left to itself");
            callers.shutdown().await;
        }
        Ok(())
    }
}

/// Starts shims with the next child of a bundle each.
fn maker(
    program: Program,
    bundle: PathBuf,
    trusted: bool,
) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = Result<InWaiting, ShimError>> + Send>> + Send + 'static {
    let children = AtomicU64::new(1);
    move || {
        let index = children.fetch_add(1, Ordering::Relaxed);
        let (program, start) = (program.clone(), Start::Wait { bundle: bundle.clone(), index, trusted });
        Box::pin(async move { program.wait(&start).await })
    }
}

/// One caller, one call after the other.
async fn serve(shared: Arc<Shared>, socket: UnixStream) {
    let (mut incoming, outgoing) = line::split(socket);
    loop {
        let line = tokio::select! {
            biased;
            () = shared.removed() => return,
            line = incoming.line::<serde_json::Value>() => line,
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "a caller speaks nonsense"),
        };
        let number = line.get("number").and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (answer, last) = match serde_json::from_value::<Request>(line) {
            Ok(Request { call, .. }) => {
                let last = matches!(call, Call::Remove);
                (shared.answer(call, &mut incoming).await, last)
            }
            Err(error) => {
                let message = format!("version {VERSION} of a keeper's interface has no such call: {error}");
                (Err(Failure { kind: Kind::Version, message }.into()), false)
            }
        };
        let reply = match answer {
            Ok(answer) => Reply::Answer(number, answer),
            Err(error) => Reply::Failure(number, error.into()),
        };
        let told = outgoing.send(&reply).await;
        if last {
            shared.removed.send_replace(true);
        }
        if let Err(error) = told {
            return tracing::debug!(%error, "a caller has gone without its answer");
        }
    }
}

impl Shared {
    /// Waits until somebody has removed the pool. Cancel-safe.
    async fn removed(&self) {
        let _ = self.removed.subscribe().wait_for(|removed| *removed).await;
    }

    async fn answer(&self, call: Call, incoming: &mut Incoming) -> Result<Answer, ShimError> {
        Ok(match call {
            // Whoever speaks another version decides what to do.
            Call::Hello { .. } => {
                Answer::Hello { api: VERSION, pid: std::process::id(), release: env!("CARGO_PKG_VERSION").to_owned() }
            }
            Call::Take { name, keeping } => {
                let given = incoming.take_descriptors().into_iter().next();
                let given = given.map_or_else(|| Ok(Given::default()), given::unpack);
                let given = given.map_err(ShimError::io("read what the guest is given"))?;
                pool::check(name.as_deref(), &given).await?;
                Answer::Taken { name: self.take(&Take { name, given, keeping }, incoming).await? }
            }
            Call::State => {
                let Failures { count, last } = self.stock.failures();
                Answer::State {
                    source: self.create.source.clone(),
                    size: self.create.size,
                    waiting: self.stock.waiting(),
                    failures: count,
                    last_error: last,
                }
            }
            Call::Remove => Answer::Done,
        })
    }

    /// Takes the first child that lives; none for a caller that has gone, nor of a pool that was removed.
    async fn take(&self, take: &Take, incoming: &mut Incoming) -> Result<String, ShimError> {
        let failed = |kind, message| Failure { kind, message };
        // The end of one that has just died may not be known yet.
        for _ in 0..=self.create.size {
            let waiting = tokio::select! {
                biased;
                () = incoming.gone() => return Err(failed(Kind::Failed, "the caller has gone".to_owned()).into()),
                () = self.removed() => {
                    let message = format!("there is no pool named {:?} any more: it was removed", self.create.pool);
                    return Err(failed(Kind::Missing, message).into());
                }
                waiting = self.stock.take() => waiting?,
            };
            if let Some(name) = waiting.take(take).await? {
                return Ok(name);
            }
            tracing::warn!("a child that was to be taken had just ended: the next one is taken");
        }
        let message = "one child after the other ended before it was taken; see what `throughline doctor` says";
        Err(failed(Kind::Failed, message.to_owned()).into())
    }
}

#[cfg(test)]
mod tests;
