//! The agent as a whole, on a link that is attached.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use throughline::{Error, Link};
use throughline_wire::port;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cgroup::{Cgroup, CgroupError};
use crate::console::say;
use crate::control::{Control, Switches};
use crate::exec::Executor;
use crate::gate::Gate;
use crate::identity::Places;
use crate::outside::Outside;
use crate::reaper::{Reaper, Scope};
use crate::secrets::Secrets;
use crate::services::{self, Ledger};
use crate::spawn::Spawner;

/// What the services share.
#[derive(Debug)]
pub struct Agent {
    pub(crate) executor: Executor,
    pub(crate) ledger: Ledger,
    /// The user's processes; `None` only where tests run without.
    pub(crate) group: Option<Cgroup>,
    /// Those of them that have left the group; `None` where the machine is not a guest, but runs tests.
    pub(crate) outside: Option<Outside>,
    pub(crate) places: Places,
    /// Number and epoch of the identity that was taken on last.
    pub(crate) identity: Cell<(u64, u128)>,
    /// Channels of services that ended with an error.
    pub(crate) failed_channels: Cell<u64>,
    pub(crate) secrets: Secrets,
    pub(crate) power_off: Notify,
    /// Commands whose channels are open: what they printed may still be on its way.
    pub(crate) commands: watch::Sender<usize>,
    pub(crate) switches: Switches,
}

/// How to set up an [`Agent`].
#[derive(Debug, Clone, Default)]
pub struct Options<'a> {
    /// Path of the control group for the user's processes, which is made.
    pub group: Option<&'a Path>,
    /// Whether this is process 1.
    pub is_init: bool,
    /// Where files lie.
    pub places: Places,
    /// What tests switch off.
    pub switches: Switches,
}

/// Why the agent ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A port has no listener.
    #[error("the link does not listen on the agent's ports: {0}")]
    Ports(#[from] Error),
    /// Signals do not arrive.
    #[error("cannot wait for child processes: {0}")]
    Reaper(#[from] io::Error),
}

impl Agent {
    /// Everything but the link.
    pub fn new(options: &Options<'_>) -> Result<Self, CgroupError> {
        let group = options.group.map(Cgroup::create).transpose()?;
        let entrance = group.as_ref().map(Cgroup::entrance).transpose()?;
        let scope = if options.is_init { Scope::Everything } else { Scope::Adopted };
        Ok(Self {
            executor: Executor {
                spawner: Spawner::new(entrance, options.is_init),
                reaper: Reaper::new(scope),
                gate: Gate::closed(),
                output: Gate::closed(),
                etc: options.places.etc.clone(),
            },
            ledger: Ledger::default(),
            group,
            outside: options.group.filter(|_| options.is_init).map(Outside::of),
            secrets: Secrets::new(options.places.secrets.clone()),
            places: options.places.clone(),
            identity: Cell::new((0, 0)),
            failed_channels: Cell::new(0),
            power_off: Notify::new(),
            commands: watch::Sender::new(0),
            switches: options.switches,
        })
    }

    /// Serves the link, whose builder was told to listen on [`port::ALL`], until
    /// the host asks for the power to go off. Runs inside a [`LocalSet`](tokio::task::LocalSet).
    ///
    /// Nothing is served before the first identity has been taken on.
    pub async fn run(self: Rc<Self>, link: Link) -> Result<(), AgentError> {
        let mut control = pin!(Control::new(&self, &link).run());
        let mut serving = JoinSet::new();
        // They come before everything else.
        let secrets = link.listener(port::SECRETS)?;
        serving.spawn_local(services::serve(Rc::clone(&self), link.clone(), secrets));
        let listeners = services::listeners(&link)?;
        let reaping = Rc::clone(&self);
        let mut reaping = pin!(async move { reaping.executor.reaper.run().await });
        tokio::select! {
            ended = &mut reaping => return Ok(ended?),
            () = never(control.as_mut()) => {}
            () = self.open_for_the_first_time() => {}
        }
        for listener in listeners {
            serving.spawn_local(services::serve(Rc::clone(&self), link.clone(), listener));
        }
        tokio::select! {
            ended = reaping => Ok(ended?),
            () = never(control) => Ok(()),
            () = self.power_off.notified() => Ok(()),
        }
    }

    /// Waits for the first identity, however long: only the host knows whether it still comes.
    async fn open_for_the_first_time(&self) {
        if timeout(PATIENCE, self.executor.gate.opened()).await.is_err() {
            say("no identity from the host yet; nothing is served before it");
            self.executor.gate.opened().await;
        }
    }
}

/// How long the agent waits for its first identity before it says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// A future that does not end, in a place that wants a result.
async fn never(future: impl Future<Output = std::convert::Infallible>) {
    match future.await {}
}
