//! Following the host: identity before anything else, quiet for snapshots, and on again.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use throughline::{Identity, Link, Request};

use crate::agent::Agent;
use crate::console::say;
use crate::identity::{IdentityError, Preparation};

/// How long the user's processes may take to freeze. The host's own deadline is shorter as a rule.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);

/// How often a request that cannot be followed is looked at again: the host may have changed its mind.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What tests switch off to see that it is missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Switches {
    /// Acknowledge identities without repairing anything.
    pub skip_repair: bool,
    /// Never answer a quiesce.
    pub no_quiesce: bool,
}

/// How much stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Still {
    Nothing,
    /// Nothing is served, but some of the user's processes may run.
    Services,
    Everything,
}

/// The host's requests, and what came of them.
pub(crate) struct Control<'a> {
    agent: &'a Agent,
    link: &'a Link,
    still: Still,
    /// The host asked for that, and will say when it ends.
    held: bool,
    /// Made for the identity that may come next. Kept beyond its time: closing its files is work as well, which
    /// a guest that was just restored has no time for.
    prepared: Option<Preparation>,
    /// Whether nothing has run since it was made.
    is_fresh: bool,
    /// A request that was tried, failed, and is not tried again: whether it is an identity, and its number.
    failed: Option<(bool, u64)>,
}

impl<'a> Control<'a> {
    pub(crate) fn new(agent: &'a Agent, link: &'a Link) -> Self {
        // At boot nothing runs yet, and the gate is closed.
        link.freeze();
        Self { agent, link, still: Still::Everything, held: false, prepared: None, is_fresh: false, failed: None }
    }

    /// Follows requests for ever.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            let request = self.link.request().await;
            let name = name(&request);
            let ignored = self.agent.switches.no_quiesce && matches!(request, Request::Quiesce(_));
            if ignored || self.failed == Some(name) {
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            let followed = self.follow(&request).await;
            self.failed = (!followed).then_some(name);
        }
    }

    /// Does what is asked, and acknowledges it; whether that succeeded.
    async fn follow(&mut self, request: &Request) -> bool {
        match request {
            Request::Identity(identity) => self.take_on(identity).await,
            Request::Quiesce(number) => {
                self.held = self.silence().await;
                if self.held {
                    // Should this fail, taking on an identity tries again, and says why.
                    let _ = self.prepare();
                    self.link.acknowledge_quiesce(*number);
                } else {
                    self.resume();
                }
                self.held
            }
            Request::Resume(number) => {
                self.held = false;
                self.link.acknowledge_quiesce(*number);
                self.resume();
                true
            }
        }
    }

    /// Becomes the identity with everything silent, then goes on unless the host holds the guest. On a failure
    /// the guest stays silent: what it runs would believe to be somebody else.
    async fn take_on(&mut self, identity: &Identity) -> bool {
        // After a snapshot that was not quiesced the user's processes run.
        if !self.silence().await {
            return false;
        }
        if !self.agent.switches.skip_repair
            && let Err(error) = self.repair(identity).await
        {
            say(&format!("identity {:032x} was not taken on, the guest stays closed: {error}", identity.epoch));
            return false;
        }
        if identity.flags & Identity::REHEARSE != 0 {
            return self.rehearse(identity).await;
        }
        self.agent.identity.set((identity.seq, identity.epoch));
        self.link.acknowledge_identity(identity.seq);
        // A fork of a fork may have given the next one already: that comes first.
        let next = look(self.link.request()).await;
        if !matches!(next, Some(Request::Identity(_))) {
            self.resume();
        }
        true
    }

    /// After the repair: what a first command will execute. Then as silent as before, until the identity itself comes.
    async fn rehearse(&mut self, identity: &Identity) -> bool {
        let rehearsed = crate::rehearsal::perform(self.agent).await;
        match &rehearsed {
            Ok(()) => self.link.acknowledge_identity(identity.seq),
            Err(error) => say(&format!("the rehearsal failed, and is not acknowledged: {error}")),
        }
        rehearsed.is_ok()
    }

    async fn repair(&mut self, identity: &Identity) -> Result<(), IdentityError> {
        let executor = &self.agent.executor;
        self.prepare()?.take_on(identity, &executor.spawner, &executor.reaper).await
    }

    /// What there is, if it is still good; else made anew.
    fn prepare(&mut self) -> Result<&Preparation, IdentityError> {
        let kept = self.prepared.take().filter(|_| self.is_fresh);
        let prepared = kept.map_or_else(|| Preparation::new(&self.agent.places), Ok)?;
        self.is_fresh = true;
        Ok(self.prepared.insert(prepared))
    }

    /// Stops everything: the gate, the link, the user's processes. Whether they all froze.
    async fn silence(&mut self) -> bool {
        if self.still == Still::Nothing {
            self.still = Still::Services;
            self.agent.executor.gate.close();
            self.link.freeze();
        }
        if self.still == Still::Services {
            let frozen = match &self.agent.group {
                Some(group) => group.freeze(FREEZE_LIMIT).await,
                None => Ok(()),
            };
            match frozen {
                Ok(()) => self.still = Still::Everything,
                Err(error) => say(&error.to_string()),
            }
        }
        self.still == Still::Everything
    }

    /// Lets everything run, if it is silent, the guest has an identity, and the host does not hold it.
    fn resume(&mut self) {
        let identified = self.agent.identity.get().0 != 0;
        if self.still == Still::Nothing || self.held || !identified {
            return;
        }
        self.still = Still::Nothing;
        self.is_fresh = false;
        if let Some(group) = &self.agent.group
            && let Err(error) = group.thaw()
        {
            say(&error.to_string());
        }
        self.link.thaw();
        self.agent.executor.gate.open();
    }
}

/// What tells one request from another; the identity itself holds secrets, and is not kept.
fn name(request: &Request) -> (bool, u64) {
    match request {
        Request::Identity(identity) => (true, identity.seq),
        Request::Quiesce(number) | Request::Resume(number) => (false, *number),
    }
}

/// Polls a future once.
async fn look<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}
