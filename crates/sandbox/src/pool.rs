//! Warm pools: children of a zygote that are loaded and wait, paused, to be taken.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::places::check_free;
use crate::stock::Stock;
use crate::{Given, Sandbox, SandboxError, Waiting, Zygote};

/// How long taking one may take: with none in waiting it is loaded first.
const DEADLINE: Duration = Duration::from_mins(1);

/// Children in waiting. Dropping the pool ends them; those that were taken go on.
#[derive(Debug)]
pub struct Pool {
    stock: Stock<Waiting, SandboxError>,
}

impl Zygote {
    /// Keeps so many children loaded, rehearsed and paused: taking one costs as much as letting it run. To be called
    /// within a runtime of tokio, in whose background the pool is filled; one whose machine dies is replaced.
    ///
    /// Each has a timeline, a place in the lineage and an identity of its own; the clock is read just before it runs.
    /// Until then nothing of the user's runs in it: it goes on at the byte at which the zygote was frozen.
    pub fn pool(self, size: usize) -> Pool {
        self.pool_of(size, true)
    }

    /// The same without rehearsals: the children take less memory, and longer for their first command.
    pub fn pool_without_rehearsal(self, size: usize) -> Pool {
        self.pool_of(size, false)
    }

    fn pool_of(self, size: usize, rehearse: bool) -> Pool {
        let zygote = Arc::new(self);
        let make = move || {
            let zygote = zygote.clone();
            // With the zygote, which must not go before the child is loaded.
            async move { zygote.spawn().rehearse(rehearse).wait().await }
        };
        let ended = |waiting: &Waiting| {
            let ended = waiting.ended();
            async { drop(ended.await) }
        };
        Pool { stock: Stock::new(size, Vec::new(), make, ended) }
    }
}

impl Pool {
    /// Takes a child, under a name of its own or a random one, and returns when its guest is ready. It is a sandbox
    /// like any other. If none waits, this does, for the next one that is loaded.
    ///
    /// # Errors
    /// The name is not free, the child could not be loaded or did not wake up, or none was ready within a minute. A
    /// child that was taken for nothing is replaced.
    pub async fn take(&self, name: Option<&str>) -> Result<Sandbox, SandboxError> {
        self.take_with(name, Given::default()).await
    }

    /// The same, with what its guest is given: in its host name `{index}` stands for its number. A child that waits has
    /// neither host name nor secrets.
    ///
    /// # Errors
    /// Those of [`take`](Self::take); what was given cannot be.
    pub async fn take_with(&self, name: Option<&str>, given: Given) -> Result<Sandbox, SandboxError> {
        check(name, &given).await?;
        let late = |_| SandboxError::io("take a child of the pool")(std::io::ErrorKind::TimedOut.into());
        let waiting = timeout(DEADLINE, self.stock.take()).await.map_err(late)??;
        waiting.given(given)?.take(name).await
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.stock.waiting()
    }

    /// Waits until so many wait, at most as many as the pool keeps. Cancel-safe.
    pub async fn filled(&self, count: usize) {
        self.stock.filled(count).await;
    }
}

/// Whether a child of a pool can be taken so, before one is used up for it. By then somebody may have the name.
///
/// # Errors
/// The name is not free, or what was given cannot be.
pub async fn check(name: Option<&str>, given: &Given) -> Result<(), SandboxError> {
    given.check(1)?;
    let Some(name) = name.map(str::to_owned) else { return Ok(()) };
    // It may have to wait for who has just created or removed one of the name.
    let looked = spawn_blocking(move || check_free(&name)).await;
    Ok(looked.map_err(|error| SandboxError::io("look whether the name is free")(error.into()))??)
}
