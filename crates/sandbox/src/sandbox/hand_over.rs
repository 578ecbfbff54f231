//! Handing a guest its secrets: at its start, and again each time that it was quiet.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use throughline::{Link, OnFork};
use throughline_wire::secrets::{MAX_DATA, Reply, Request};
use throughline_wire::{decode, encode, port};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::AbortHandle;
use zeroize::Zeroizing;

use crate::engine::Vm;
use crate::secrets::Secrets;
use crate::{SandboxError, SecretError};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);
const LABEL: &str = "secrets";

/// The guest's secrets, and whose turn it is: of who hands them over, or of a snapshot, after which they are owed.
#[derive(Clone)]
pub(super) struct Owed {
    link: Link,
    vm: Arc<dyn Vm>,
    secrets: Secrets,
    turn: Arc<Mutex<()>>,
    /// Whoever hands them over now.
    handing: Arc<std::sync::Mutex<Option<AbortHandle>>>,
}

/// A snapshot's turn.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Owed {
    pub(super) fn new(link: Link, vm: Arc<dyn Vm>, secrets: Secrets) -> Self {
        Self { link, vm, secrets, turn: Arc::default(), handing: Arc::default() }
    }

    /// Whether the guest has none.
    pub(super) fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Waits until nothing of them is on its way, where a snapshot would find it.
    pub(super) async fn settled(&self, deadline: Duration) -> Result<Turn, SandboxError> {
        let turn = tokio::time::timeout(deadline, self.turn.clone().lock_owned()).await;
        turn.map_err(|_| SandboxError::SecretsPending(self.vm.console()))
    }

    /// Hands them over in the background: until then the guest lets nothing of the user's run.
    pub(super) fn again(&self, turn: Turn) {
        if self.is_empty() {
            return;
        }
        let this = self.clone();
        let handing = tokio::spawn(async move {
            let _turn = turn;
            loop {
                let result = tokio::select! {
                    result = hand_over(&this.link, &this.secrets) => result,
                    _ = this.vm.exited() => return,
                };
                match result {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "the guest waits for its secrets"),
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        self.replace(Some(handing.abort_handle()));
    }

    /// Ends what is under way: a successor begins anew.
    pub(super) fn stop(&self) {
        self.replace(None);
    }

    fn replace(&self, handing: Option<AbortHandle>) {
        let mut last = self.handing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = std::mem::replace(&mut *last, handing) {
            last.abort();
        }
    }

    /// The same, at once.
    pub(super) fn now(&self) {
        if let Ok(turn) = self.turn.clone().try_lock_owned() {
            self.again(turn);
        }
    }
}

/// Hands all of them over, and waits until they are in place.
pub(super) async fn hand_over(link: &Link, secrets: &Secrets) -> Result<(), SandboxError> {
    if secrets.is_empty() {
        return Ok(());
    }
    // What a process that died had begun.
    for begun in link.channels().into_iter().filter(|channel| channel.port == port::SECRETS && !channel.held) {
        if let Ok(messages) = link.adopt(begun.id)?.messages() {
            messages.abort();
        }
    }
    let connect = link.connect_with(port::SECRETS).unanswered().label(LABEL).on_fork(OnFork::Reset);
    let mut messages = connect.messages().await?;
    for (name, value) in secrets.iter() {
        // One at least, of an empty one too.
        let pieces = std::iter::once(&value[..0]).chain(value.chunks(MAX_DATA));
        for data in pieces {
            messages.send(&Zeroizing::new(encode(&Request::Piece { name, data })?)).await?;
        }
    }
    messages.send(&encode(&Request::End)?).await?;
    let answer = messages.recv().await?.ok_or_else(|| SandboxError::Nonsense("no answer to secrets".to_owned()))?;
    match decode(&answer).map_err(|error| SandboxError::Nonsense(error.to_string()))? {
        Reply::InPlace => Ok(()),
        Reply::Failed(why) => Err(SecretError::Refused(why).into()),
    }
}
