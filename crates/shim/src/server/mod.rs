//! The shim: one process, one sandbox, any number of clients.

mod calls;
mod pairs;
mod session;

use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use throughline::SidecarError;
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::engine::{Exit, Hardware};
use throughline_sandbox::image::{ImageBuilder, Images};
use throughline_sandbox::steps::step;
use throughline_sandbox::{Given, Known, Sandbox, SandboxError, Waiting, sockets};
use tokio::net::UnixListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::ShimError;
use crate::api::{Failure, Kind, SOCKET};
use crate::start::{Keeping, Start, Take};

/// Clients at one time. More wait for their turn.
const MOST_CLIENTS: usize = 256;

/// After a client that was not accepted, before the next try.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How often a shim tries to go back to a checkpoint. What still is in the way then is told to the next client.
const TRIES: u32 = 5;

/// Between two of these tries.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// A sandbox that is ready, and the socket on which its clients are awaited.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
}

/// What an end of the machine means to the sessions.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// The sandbox has ended.
    Exited(Exit),
    /// It goes back to its last checkpoint: a new timeline, for which clients connect anew.
    Lost,
}

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) sandbox: Sandbox,
    /// What became of the machine, once it has ended.
    pub(crate) end: watch::Sender<Option<End>>,
    /// Held while a snapshot is taken, until its client was told: one at a time, and none is cut off.
    pub(crate) snapshots: Mutex<()>,
}

impl Server {
    /// Comes to a sandbox, and listens. Nobody else does: the listener is bound under the sandbox's lease.
    pub async fn begin(start: Start) -> Result<Self, ShimError> {
        let (sandbox, keeping) = match start {
            Start::Create { name, image, hardware, given, keeping } => {
                (create(name, &image, hardware, given).await?, Some(keeping))
            }
            Start::Restore { name, bundle, given, keeping } => (restore(name, &bundle, given).await?, Some(keeping)),
            Start::Fork { name, bundle, index, given, keeping } => {
                let bundle = Bundle::open(&bundle).map_err(SandboxError::from)?;
                let restore = Sandbox::restore(bundle).forked(index).trusted().name(name).given(given);
                (restore.start().await?, Some(keeping))
            }
            Start::Wait { .. } => return Err(ShimError::Nonsense("in waiting".to_owned())),
            Start::TakeOver { name } => {
                let sandbox = Sandbox::take_over(&name).await.map_err(taken_over)?;
                // Should anything fail from here on, it goes on.
                sandbox.detach();
                (sandbox, None)
            }
        };
        Self::keep(sandbox, keeping.as_ref())
    }

    /// Makes a sandbox of a child in waiting, and listens.
    pub async fn take(waiting: Waiting, take: Take) -> Result<Self, ShimError> {
        let Take { name, given, keeping } = take;
        Self::keep(waiting.given(given)?.take(name.as_deref()).await?, Some(&keeping))
    }

    fn keep(sandbox: Sandbox, keeping: Option<&Keeping>) -> Result<Self, ShimError> {
        if let Some(Keeping { rm, checkpoint_ms }) = keeping {
            sandbox.checkpoint_every(checkpoint_ms.map(Duration::from_millis))?;
            if *rm {
                sandbox.vanishes_when_it_ends()?;
            }
        }
        step("listen");
        let listener = listen(sandbox.runtime()).map_err(ShimError::io("listen for clients"))?;
        Ok(Self::of(sandbox, listener))
    }

    fn of(sandbox: Sandbox, listener: UnixListener) -> Self {
        let shared = Shared { sandbox, end: watch::Sender::new(None), snapshots: Mutex::default() };
        Self { shared: Arc::new(shared), listener }
    }

    /// The sandbox's name.
    pub fn name(&self) -> &str {
        self.shared.sandbox.name()
    }

    /// The folder of the sandbox's logs.
    pub fn runtime(&self) -> &Path {
        self.shared.sandbox.runtime()
    }

    /// Serves until the machine has ended and its clients have been told. One that dies, and has a checkpoint, comes
    /// back; its clients connect anew, and are told how far it went back.
    pub async fn serve(mut self) -> Result<(), ShimError> {
        while let Some(back) = self.timeline().await? {
            self = back;
        }
        Ok(())
    }

    /// Serves one timeline; the next one, if there is one.
    async fn timeline(self) -> Result<Option<Self>, ShimError> {
        // Whatever ends this process, the sandbox goes on.
        self.shared.sandbox.detach();
        let mut own = JoinSet::new();
        let shared = self.shared.clone();
        own.spawn(async move { shared.sandbox.keep_checkpoints().await });
        let mut sessions = JoinSet::new();
        let exit = loop {
            tokio::select! {
                biased;
                exit = self.shared.sandbox.exited() => break exit,
                accepted = self.listener.accept(), if sessions.len() < MOST_CLIENTS => match accepted {
                    Ok((socket, _)) => {
                        sessions.spawn(session::serve(self.shared.clone(), socket));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a client was not accepted");
                        // Others may let go of descriptors meanwhile. At once it would fail again.
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
            }
        };
        tracing::info!(%exit, "the machine has ended");
        own.shutdown().await;
        // A snapshot that ends the machine is completed after it.
        let last = self.shared.snapshots.lock().await;
        let sandbox = &self.shared.sandbox;
        if sandbox.may_roll_back(&exit) {
            self.shared.end.send_replace(Some(End::Lost));
            told(&mut sessions).await;
            if let Some(back) = back(sandbox).await? {
                return Ok(Some(Self::of(back, self.listener)));
            }
        }
        drop(last);
        let exit = sandbox.conclude(exit).await?;
        if sandbox.record().rm {
            Known::remove(sandbox.name())?;
        }
        self.shared.end.send_replace(Some(End::Exited(exit)));
        // Each reads what there is to be read, is told, and goes.
        told(&mut sessions).await;
        Ok(None)
    }
}

/// Goes back to the last checkpoint, if need be by several tries: what was in the way may have gone. `None` if nobody may
/// any more.
///
/// # Errors
/// It does not come back, and may later: it is left to whoever takes it over.
async fn back(sandbox: &Sandbox) -> Result<Option<Sandbox>, ShimError> {
    let mut more = 1..TRIES;
    loop {
        let error = match sandbox.roll_back().await {
            Ok(back) => return Ok(Some(back)),
            Err(error) => error,
        };
        tracing::error!(%error, "the machine does not come back from its last checkpoint");
        if Known::find(sandbox.name())?.record.is_some_and(|paper| !paper.may_go_back()) {
            return Ok(None);
        }
        if more.next().is_none() {
            return Err(error.into());
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

/// Waits until the sessions have ended, but not for ever.
async fn told(sessions: &mut JoinSet<()>) {
    let ended = async { while sessions.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(session::LAST_READS, ended).await;
}

/// Why a sandbox is not taken over: a process that is no shim has it, or anything else.
fn taken_over(error: SandboxError) -> ShimError {
    match error {
        SandboxError::Sidecar(SidecarError::Held { holder: Some(holder), .. }) if !is_shim(holder.pid) => {
            let message = format!(
                "process {} has the sandbox, and is no shim: end that process, or let it detach, and repeat this",
                holder.pid
            );
            Failure { kind: Kind::Held, message }.into()
        }
        error => error.into(),
    }
}

/// Whether a process was started as this one was, or is just ending: then nothing is known of how it was.
fn is_shim(pid: u32) -> bool {
    let line = |process: &str| std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let arguments = |line: &[u8]| line.split(|byte| *byte == 0).skip(1).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let found = line(&pid.to_string());
    found.is_empty() || arguments(&found) == arguments(&line("self"))
}

/// A child of a zygote, loaded and paused.
pub async fn wait(bundle: &Path, index: u64, trusted: bool) -> Result<Waiting, ShimError> {
    let child = Sandbox::restore(Bundle::open(bundle).map_err(SandboxError::from)?).forked(index);
    Ok(if trusted { child.trusted() } else { child }.wait().await?)
}

async fn create(name: Option<String>, image: &str, hardware: Hardware, given: Given) -> Result<Sandbox, ShimError> {
    let image = image.to_owned();
    let found = tokio::task::spawn_blocking(move || Images::new().open_or_build(&image, &ImageBuilder::new()));
    let image = found.await.map_err(ShimError::memory)?.map_err(SandboxError::from)?;
    let Hardware { memory_mib, cpus, net } = hardware;
    let builder = Sandbox::builder(image).memory_mib(memory_mib).cpus(cpus).net(net).given(given);
    Ok(name.into_iter().fold(builder, throughline_sandbox::SandboxBuilder::name).create().await?)
}

async fn restore(name: Option<String>, bundle: &Path, given: Given) -> Result<Sandbox, ShimError> {
    let restore = Sandbox::restore(Bundle::open(bundle).map_err(SandboxError::from)?).given(given);
    Ok(name.into_iter().fold(restore, throughline_sandbox::Restore::name).start().await?)
}

fn listen(runtime: &Path) -> std::io::Result<UnixListener> {
    let listener: StdListener = sockets::listen(runtime, SOCKET)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
