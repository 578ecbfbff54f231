//! The wait for a machine's end, which all who wait share: a shim carries out so many calls at a time, and who gives up
//! leaves his there.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::connection::Connection;
use crate::ShimError;
use crate::api::{Answer, Call};

type Told = watch::Receiver<Option<Result<Answer, Arc<ShimError>>>>;

/// At most one call, and what came of it.
#[derive(Default)]
pub(super) struct Wait(Mutex<Option<(Told, AbortHandle)>>);

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some((_, asking)) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            asking.abort();
        }
    }
}

impl Wait {
    /// What it comes to, for the sandbox of this name. Cancel-safe.
    pub(super) async fn answer(&self, connection: &Connection, name: &str) -> Result<Answer, ShimError> {
        loop {
            let mut told = self.begun(connection);
            // Its task ends early only with the runtime that it was begun in.
            let Ok(answer) = told.wait_for(Option::is_some).await else {
                tokio::task::yield_now().await;
                continue;
            };
            match &*answer {
                Some(Ok(answer)) => return Ok(answer.clone()),
                Some(Err(error)) => return Err(error.again(name)),
                None => {}
            }
        }
    }

    /// The call of now: one that failed, or ended without an answer, is made anew.
    fn begun(&self, connection: &Connection) -> Told {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((told, _)) = &*begun {
            let is_asking = told.has_changed().is_ok();
            let is_good = told.borrow().as_ref().map_or(is_asking, Result::is_ok);
            if is_good {
                return told.clone();
            }
        }
        let (tell, told) = watch::channel(None);
        let asking = connection.ask(Call::Wait);
        let asking = tokio::spawn(async move { tell.send_replace(Some(asking.await.map_err(Arc::new))) });
        *begun = Some((told.clone(), asking.abort_handle()));
        told
    }
}
