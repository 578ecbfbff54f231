//! The gate before everything that would start something of the user's.

use tokio::sync::watch;

/// Closed at boot, while quiesced and while the identity is being repaired.
#[derive(Debug)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed gate.
    pub fn closed() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Lets everybody through who waits.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// From now on nobody comes through.
    pub fn close(&self) {
        self.0.send_replace(false);
    }

    /// Whether it is open at this moment.
    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the gate is open. What the caller does before its next `await` happens while it is
    /// open: the agent has one thread. Cancel-safe.
    pub async fn opened(&self) {
        let mut gate = self.0.subscribe();
        // Between the wake-up and this task's turn the gate may have closed again; wait_for looks anew.
        let _ = gate.wait_for(|open| *open).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[tokio::test(flavor = "current_thread")]
    async fn who_was_woken_looks_again() {
        let gate = Rc::new(Gate::closed());
        let inner = Rc::clone(&gate);
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let waiting = tokio::task::spawn_local(async move {
                    inner.opened().await;
                    inner.is_open()
                });
                tokio::task::yield_now().await;
                gate.open();
                gate.close();
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                assert!(!waiting.is_finished(), "went through a closed gate");
                gate.open();
                assert!(waiting.await.unwrap());
            })
            .await;
    }
}
