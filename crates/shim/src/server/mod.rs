//! The shim: one process, one sandbox, any number of clients.

mod calls;
mod pairs;
mod session;

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;

use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::engine::{Exit, Hardware};
use throughline_sandbox::image::{ImageBuilder, Images};
use throughline_sandbox::{Known, Sandbox, SandboxError, sockets};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::ShimError;
use crate::api::SOCKET;
use crate::start::Start;

/// Clients at one time. More wait for their turn.
const MOST_CLIENTS: usize = 256;

/// A sandbox that is ready, and the socket on which its clients are awaited.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    rm: bool,
}

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) sandbox: Sandbox,
    /// How the machine ended, once it has.
    pub(crate) exit: watch::Sender<Option<Exit>>,
    /// Held while a snapshot is taken, until its client was told: one at a time, and none is cut off.
    pub(crate) snapshots: Mutex<()>,
}

impl Server {
    /// Comes to a sandbox, and listens. Nobody else does: the listener is bound under the sandbox's lease.
    pub async fn begin(start: Start) -> Result<Self, ShimError> {
        let (sandbox, rm) = match start {
            Start::Create { name, image, hardware, rm } => (create(name, &image, hardware).await?, rm),
            Start::Restore { name, bundle, rm } => (restore(name, &bundle).await?, rm),
            Start::Fork { name, bundle, index, rm } => {
                let bundle = Bundle::open(&bundle).map_err(SandboxError::from)?;
                (Sandbox::restore(bundle).forked(index).trusted().name(name).start().await?, rm)
            }
            Start::TakeOver { name } => take_over(&name).await?,
        };
        if rm {
            sandbox.vanishes_when_it_ends()?;
        }
        let listener = listen(sandbox.runtime()).map_err(ShimError::io("listen for clients"))?;
        let shared = Shared { sandbox, exit: watch::Sender::new(None), snapshots: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), listener, rm })
    }

    /// The sandbox's name.
    pub fn name(&self) -> &str {
        self.shared.sandbox.name()
    }

    /// The folder of the sandbox's logs.
    pub fn runtime(&self) -> &Path {
        self.shared.sandbox.runtime()
    }

    /// Serves until the machine has ended and its clients have been told.
    pub async fn serve(self) -> Result<(), ShimError> {
        // Whatever ends this process, the sandbox goes on.
        self.shared.sandbox.detach();
        let mut sessions = JoinSet::new();
        let exit = loop {
            tokio::select! {
                biased;
                exit = self.shared.sandbox.exited() => break exit,
                accepted = self.listener.accept(), if sessions.len() < MOST_CLIENTS => match accepted {
                    Ok((socket, _)) => {
                        sessions.spawn(session::serve(self.shared.clone(), socket));
                    }
                    Err(error) => tracing::warn!(%error, "a client was not accepted"),
                },
                Some(_) = sessions.join_next() => {}
            }
        };
        tracing::info!(%exit, "the machine has ended");
        // A snapshot that ends the machine is completed after it.
        let _last = self.shared.snapshots.lock().await;
        self.shared.sandbox.conclude(exit.clone())?;
        if self.rm {
            Known::remove(self.shared.sandbox.name())?;
        }
        self.shared.exit.send_replace(Some(exit));
        // Each reads what there is to be read, is told, and goes.
        let told = async { while sessions.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(session::LAST_READS, told).await;
        Ok(())
    }
}

async fn create(name: Option<String>, image: &str, hardware: Hardware) -> Result<Sandbox, ShimError> {
    let image = image.to_owned();
    let found = tokio::task::spawn_blocking(move || Images::new().open_or_build(&image, &ImageBuilder::new()));
    let image = found.await.map_err(ShimError::memory)?.map_err(SandboxError::from)?;
    let builder = Sandbox::builder(image).memory_mib(hardware.memory_mib).cpus(hardware.cpus).net(hardware.net);
    Ok(name.into_iter().fold(builder, throughline_sandbox::SandboxBuilder::name).create().await?)
}

async fn restore(name: Option<String>, bundle: &Path) -> Result<Sandbox, ShimError> {
    let restore = Sandbox::restore(Bundle::open(bundle).map_err(SandboxError::from)?);
    Ok(name.into_iter().fold(restore, throughline_sandbox::Restore::name).start().await?)
}

async fn take_over(name: &str) -> Result<(Sandbox, bool), ShimError> {
    let sandbox = Sandbox::take_over(name).await?;
    let rm = sandbox.record().rm;
    Ok((sandbox, rm))
}

fn listen(runtime: &Path) -> std::io::Result<UnixListener> {
    let listener: StdListener = sockets::listen(runtime, SOCKET)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
