//! Warm pools: children of a zygote that are loaded and wait, paused, to be taken.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::stock::Stock;
use crate::{Sandbox, SandboxError, Waiting, Zygote};

/// How long taking one may take: with none in waiting it is loaded first.
const DEADLINE: Duration = Duration::from_mins(1);

/// Children in waiting. Dropping the pool ends them; those that were taken go on.
#[derive(Debug)]
pub struct Pool {
    stock: Stock<Waiting, SandboxError>,
}

impl Zygote {
    /// Keeps so many children loaded, rehearsed and paused: taking one costs as much as letting it run. To be called
    /// within a runtime of tokio, in whose background the pool is filled.
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
        Pool { stock: Stock::new(size, Vec::new(), make, |waiting| waiting.machine().is_running()) }
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
        let late = |_| SandboxError::io("take a child of the pool")(std::io::ErrorKind::TimedOut.into());
        timeout(DEADLINE, self.stock.take()).await.map_err(late)??.take(name).await
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
