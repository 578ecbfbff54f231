//! Keeps a sandbox's doorbell connected while its machine lives.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use throughline::{Doorbell, Link};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::engine::Vm;

/// Tries in a row before the link is left to its backstop: about four seconds' worth.
const TRIES: u32 = 8;
/// Wait before the second try in a row; twice as long before each further one. The first is made at once.
const PAUSE: Duration = Duration::from_millis(30);
/// A connection that held for so long makes the next try a first one.
const STEADY: Duration = Duration::from_secs(10);

/// Reconnects the doorbell whenever the monitor's end hangs up. Ends when dropped.
#[derive(Debug)]
pub(super) struct Reconnecting(AbortHandle);

impl Reconnecting {
    pub(super) fn start(link: Link, vm: Arc<dyn Vm>) -> Self {
        let keeping = async move {
            tokio::select! {
                _ = vm.exited() => {}
                () = keep(&link, &*vm) => {}
            }
        };
        Self(tokio::spawn(keeping).abort_handle())
    }
}

impl Drop for Reconnecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn keep(link: &Link, vm: &dyn Vm) {
    let mut tries = 0;
    loop {
        let began = Instant::now();
        // Returns at once after a try that failed.
        link.hung_up().await;
        tries = if began.elapsed() >= STEADY { 0 } else { tries };
        if tries == TRIES {
            break;
        }
        if tries > 0 {
            sleep(PAUSE * (1 << (tries - 1))).await;
        }
        tries += 1;
        match connect(vm).and_then(|doorbell| link.set_doorbell(doorbell)) {
            Ok(()) => tracing::info!(tries, "the machine's doorbell hung up, and was connected anew"),
            // The machine may be about to end.
            Err(error) => tracing::debug!(tries, %error, "the machine's doorbell hung up, and cannot be connected"),
        }
    }
    tracing::warn!("the machine's doorbell keeps hanging up; the connection goes on slowly, without it");
}

/// A new connection to the machine's doorbell.
pub(super) fn connect(vm: &dyn Vm) -> io::Result<Doorbell> {
    Doorbell::socket(vm.connect_bell()?)
}
