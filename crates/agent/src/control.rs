//! Following the host: identity before anything else, quiet for snapshots, and on again.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use throughline::{Identity, Link, Request};

use crate::agent::Agent;
use crate::cgroup::{Cgroup, CgroupError};
use crate::console::{drain, say};
use crate::identity::{IdentityError, Preparation};
use crate::outside::Outside;

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
    /// The user's processes, which wait for their secrets: those come over the link.
    Programs,
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
    /// A request to be quiet that was tried, failed, and is not tried again.
    failed: Option<u64>,
    /// The last identity could not be taken on: nothing runs until another one was.
    refused: bool,
}

impl<'a> Control<'a> {
    pub(crate) fn new(agent: &'a Agent, link: &'a Link) -> Self {
        // At boot nothing runs yet, and the gate is closed.
        link.freeze();
        Self {
            agent,
            link,
            still: Still::Everything,
            held: false,
            prepared: None,
            is_fresh: false,
            failed: None,
            refused: false,
        }
    }

    /// Follows requests for ever.
    pub(crate) async fn run(mut self) -> Infallible {
        loop {
            let request = tokio::select! {
                biased;
                request = self.link.request() => request,
                () = self.agent.secrets.in_place(), if self.still == Still::Programs => {
                    self.resume();
                    continue;
                }
            };
            match request {
                Request::Identity(identity) => self.take_on(&identity).await,
                Request::Quiesce(number) if self.agent.switches.no_quiesce || self.failed == Some(number) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Request::Quiesce(number) => self.quiesce(number).await,
                Request::Resume(number) => {
                    self.held = false;
                    self.link.acknowledge_quiesce(number);
                    self.resume();
                }
            }
        }
    }

    /// Becomes quiet, and says so if it has.
    async fn quiesce(&mut self, number: u64) {
        self.held = self.silence().await.is_ok() && self.forget();
        if self.held {
            // Should this fail, taking on an identity tries again, and says why.
            let _ = self.prepare();
            self.link.acknowledge_quiesce(number);
        } else {
            self.failed = Some(number);
            self.resume();
        }
    }

    /// Takes the secrets away; whether that succeeded.
    fn forget(&self) -> bool {
        self.agent.secrets.erase().inspect_err(|error| say(&error.to_string())).is_ok()
    }

    /// Becomes the identity with everything silent, then goes on unless the host holds the guest. On a failure
    /// the host is told, and the guest stays silent: what it runs would believe to be somebody else.
    async fn take_on(&mut self, identity: &Identity) {
        let taken = match self.silence().await {
            // After a snapshot that was not quiesced the user's processes run.
            Err(error) => Err(error.to_string()),
            Ok(()) if self.agent.switches.skip_repair => Ok(()),
            Ok(()) => self.repair(identity).await.map_err(|error| error.to_string()),
        };
        if let Err(error) = taken {
            return self.refuse(identity, &error);
        }
        self.refused = false;
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
    }

    /// After the repair: what a first command will execute. Then as silent as before, until the identity itself comes.
    async fn rehearse(&mut self, identity: &Identity) {
        match crate::rehearsal::perform(self.agent).await {
            Ok(()) => self.link.acknowledge_identity(identity.seq),
            Err(error) => self.refuse(identity, &format!("its rehearsal failed: {error}")),
        }
    }

    /// Tells the host that an identity was not taken on; on the console it finds out why.
    fn refuse(&mut self, identity: &Identity, why: &str) {
        self.refused = true;
        say(&format!("identity {:032x} was not taken on, the guest stays closed: {why}", identity.epoch));
        drain();
        self.link.refuse_identity(identity.seq);
    }

    async fn repair(&mut self, identity: &Identity) -> Result<(), IdentityError> {
        self.agent.secrets.renew(identity.flags & Identity::SECRETS_FOLLOW != 0)?;
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

    /// Stops everything: the gate, the link, the user's processes. On a failure not all of them froze.
    async fn silence(&mut self) -> Result<(), CgroupError> {
        if self.still == Still::Nothing {
            self.still = Still::Services;
            self.agent.executor.gate.close();
            self.agent.executor.output.close();
            self.link.freeze();
        }
        if self.still == Still::Programs {
            self.still = Still::Everything;
            self.link.freeze();
        }
        if self.still == Still::Services {
            if let Some(group) = &self.agent.group {
                let frozen = match &self.agent.outside {
                    Some(outside) => outside.freeze(group, FREEZE_LIMIT).await,
                    None => group.freeze(FREEZE_LIMIT).await,
                };
                frozen.inspect_err(|error| say(&error.to_string()))?;
            }
            self.still = Still::Everything;
        }
        Ok(())
    }

    /// Lets everything run, if it is silent, the guest has an identity, and the host does not hold it; as long as secrets
    /// are owed, no more than what they come by.
    fn resume(&mut self) {
        let identified = self.agent.identity.get().0 != 0;
        if self.still == Still::Nothing || self.held || self.refused || !identified {
            return;
        }
        self.is_fresh = false;
        if self.agent.secrets.are_owed() {
            self.still = Still::Programs;
            return self.link.thaw();
        }
        self.still = Still::Nothing;
        let agent = self.agent;
        let thawed = [agent.group.as_ref().map(Cgroup::thaw), agent.outside.as_ref().map(Outside::thaw)];
        for error in thawed.into_iter().flatten().filter_map(Result::err) {
            say(&error.to_string());
        }
        self.link.thaw();
        self.agent.executor.output.open();
        self.agent.executor.gate.open();
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
