//! Ending the guest in good order.

use std::time::Duration;

use rustix::process::Signal;
use throughline::Messages;
use throughline_wire::power::{Reply, Request};
use tokio::time::timeout;

use super::{ServiceError, recv, send};
use crate::agent::Agent;
use crate::cgroup::{Cgroup, CgroupError};

/// How long killed processes may take to go.
const KILLED: Duration = Duration::from_secs(5);

/// How long the ends of commands may take to be told.
const TOLD: Duration = Duration::from_secs(1);

pub(super) async fn serve(agent: &Agent, mut messages: Messages) -> Result<(), ServiceError> {
    let Some(Request::Off { grace_ms }) = recv(&mut messages).await? else { return Ok(()) };
    agent.executor.gate.close();
    let grace = Duration::from_millis(grace_ms.min(Request::MAX_GRACE).into());
    if let Some(group) = &agent.group
        && let Err(error) = end(group, grace).await
    {
        // What cannot be ended properly ends with the power.
        crate::console::say(&format!("power-off: {error}"));
    }
    // What the commands printed at last is still in their pipes, and their exits are to be told. A host that
    // does not read holds nothing up for long.
    let mut commands = agent.commands.subscribe();
    let _ = timeout(TOLD, commands.wait_for(|count| *count == 0)).await;
    send(&mut messages, &Reply::PoweringOff).await?;
    agent.power_off.notify_one();
    Ok(())
}

/// Asks all processes to end, and kills those that do not.
async fn end(group: &Cgroup, grace: Duration) -> Result<(), CgroupError> {
    for pid in group.processes()?.into_iter().filter_map(rustix::process::Pid::from_raw) {
        // It may have ended by now; its number cannot have been given away, since the reaper has not run.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    if timeout(grace, group.emptied()).await.is_err() {
        group.kill()?;
        let _ = timeout(KILLED, group.emptied()).await;
    }
    Ok(())
}
