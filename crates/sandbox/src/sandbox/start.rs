//! What creating and restoring have in common: from a machine to a sandbox that is ready.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use throughline::{Hostname, Identity, Link, NotTaken, Origin, Region, Sidecar, Timeline};

use super::hand_over::{Owed, hand_over};
use super::{About, Record, Sandbox, Timings, bell};
use crate::engine::{Exit, Vm};
use crate::places::Places;
use crate::steps::step;
use crate::{SandboxError, Secrets};

/// What the agent says when it refuses an identity.
const REFUSAL: &str = "was not taken on, the guest stays closed: ";
/// How often, and with which pause, the console is looked at for it.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_millis(10);

/// A machine whose guest is not ready yet. Dropping it ends the machine; but for one that goes back to a checkpoint: that is
/// ended by the next try, or with the sandbox.
pub(super) struct Starting {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) places: Places,
    pub(super) deadline: Duration,
    pub(super) started: Instant,
    /// What was on paper of the sandbox whose machine has died; `None` for a new sandbox.
    pub(super) former: Option<Record>,
}

impl Starting {
    /// Attaches the link to the machine's doorbell.
    pub(super) fn attach(&self, region: Region, sidecar: Sidecar) -> Result<Link, SandboxError> {
        let doorbell = bell::connect(&*self.vm).map_err(SandboxError::io("connect to the machine's doorbell"))?;
        Ok(Link::host(region, sidecar).doorbell(doorbell).attach()?)
    }

    /// Waits for an answer of the guest, for no longer than the deadline, and not once it has ended.
    pub(super) async fn answer<E: Into<NotTaken>>(
        &self,
        answer: impl Future<Output = Result<(), E>>,
    ) -> Result<(), SandboxError> {
        tokio::select! {
            biased;
            answered = answer => match answered.map_err(Into::into) {
                Ok(()) => Ok(()),
                Err(NotTaken::Unanswered(unanswered)) => Err(SandboxError::Unanswered(unanswered, self.vm.console())),
                Err(refused) => Err(SandboxError::Refused(refused, self.reason().await)),
            },
            exit = self.vm.exited() => Err(SandboxError::Ended(Box::new(exit))),
        }
    }

    /// Hands the guest its secrets, after it has taken on its identity: only then does anything of the user's run.
    pub(super) async fn hand_over(&self, link: &Link, secrets: &Secrets) -> Result<(), SandboxError> {
        tokio::select! {
            handed = tokio::time::timeout(self.deadline, Box::pin(hand_over(link, secrets))) => {
                handed.unwrap_or_else(|_| Err(SandboxError::SecretsPending(self.vm.console())))
            }
            exit = self.vm.exited() => Err(SandboxError::Ended(Box::new(exit))),
        }
    }

    /// The end of the console, on which a guest that refused has said why: it may still be on its way.
    async fn reason(&self) -> String {
        let mut looks = 0..LOOKS;
        loop {
            let console = self.vm.console();
            if console.contains(REFUSAL) || looks.next().is_none() {
                return console;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The guest is ready: from here on there is a sandbox, whatever becomes of this process.
    pub(super) async fn ready(
        mut self,
        link: Link,
        mut about: About,
        machine: Duration,
        secrets: Secrets,
    ) -> Result<Sandbox, SandboxError> {
        about.timings = Timings { machine, ready: self.started.elapsed() };
        let record = match self.former.clone() {
            Some(former) => former.gone_back(&about, &link, self.vm.record()),
            None => Record::new(self.places.name(), &about, &link, self.vm.record()),
        };
        if let Err(error) = record.write(self.places.runtime()) {
            return Err(self.abandon(error).await);
        }
        step("ready");
        self.places.settle();
        self.places.end();
        let bell = bell::Reconnecting::start(link.clone(), self.vm.clone());
        Ok(Sandbox {
            _bell: bell,
            owed: Owed::new(link.clone(), self.vm.clone(), secrets),
            link,
            vm: self.vm,
            places: self.places,
            about,
            record: record.into(),
            ends: true.into(),
            quiet: Sandbox::DEFAULT_QUIET,
            snapshots: Arc::default(),
            since: Instant::now(),
            went_back: false.into(),
        })
    }

    /// Puts on paper, if it goes back to a checkpoint, that its guest is let run.
    pub(super) fn count_try(&mut self) -> Result<(), SandboxError> {
        let Some(former) = &mut self.former else { return Ok(()) };
        former.count_try();
        former.write(self.places.runtime())
    }

    /// Ends the machine after a failure, which is noted if it was to go back to a checkpoint.
    pub(super) async fn abandon(mut self, error: SandboxError) -> SandboxError {
        let ended: Result<Exit, _> = self.vm.kill().await;
        if let Err(error) = ended {
            tracing::warn!(%error, "a machine that did not start could not be ended");
        }
        if let Some(former) = &mut self.former {
            former.not_back(&error, self.places.runtime());
        }
        error
    }
}

/// A new identity for a timeline, with the host's clock and fresh entropy.
pub(super) fn identity(
    seq: u64,
    timeline: Timeline,
    hostname: Option<Hostname>,
    secrets: &Secrets,
) -> Result<Identity, SandboxError> {
    let mut entropy = [0; 64];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| SandboxError::io("gather entropy")(error.into()))?;
    // A clock before 1970 is no clock; the guest then keeps its own.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // What comes back is the same machine to others; its twin is dead.
    let names = if timeline.origin == Origin::RolledBack { 0 } else { Identity::RENEW_NAMES };
    let follow = if secrets.is_empty() { 0 } else { Identity::SECRETS_FOLLOW };
    Ok(Identity {
        seq,
        epoch: timeline.epoch,
        parent: timeline.parent,
        index: timeline.index,
        clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        flags: names | follow,
        entropy,
        hostname,
    })
}

/// The region's file, for the monitor to map.
pub(super) fn region_file(region: &Region) -> Result<File, SandboxError> {
    let fd = region.as_fd().ok_or_else(|| io::Error::other("it is not a file"));
    fd.and_then(|fd| fd.try_clone_to_owned()).map(File::from).map_err(SandboxError::io("open the region"))
}
