//! Who the guest is at this moment.

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::ClockId;
use throughline::{Link, Messages};
use throughline_wire::info::{Info, Request};

use super::ticker::nanoseconds;
use super::{ServiceError, recv, send};
use crate::agent::Agent;

pub(super) async fn serve(agent: &Agent, link: &Link, mut messages: Messages) -> Result<(), ServiceError> {
    while let Some(Request) = recv(&mut messages).await? {
        let info = info(agent, link)?;
        send(&mut messages, &info).await?;
    }
    Ok(())
}

fn info(agent: &Agent, link: &Link) -> Result<Info, ServiceError> {
    let mut random = [0; 32];
    getrandom(&mut random, GetRandomFlags::empty()).map_err(std::io::Error::from)?;
    let system = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    let machine_id = std::fs::read_to_string(agent.places.etc.join("machine-id")).unwrap_or_default();
    let (identity_seq, epoch) = agent.identity.get();
    Ok(Info {
        protocol: throughline_wire::PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: text(system.release()),
        epoch,
        identity_seq,
        random,
        realtime_ns: nanoseconds(ClockId::Realtime),
        monotonic_ns: nanoseconds(ClockId::Monotonic),
        machine_id: machine_id.lines().next().unwrap_or_default().chars().take(64).collect(),
        hostname: text(system.nodename()),
        commands: agent.executor.reaper.running() as u32,
        counters: counters(agent, link),
    })
}

fn counters(agent: &Agent, link: &Link) -> Vec<(String, u64)> {
    let link = link.counters();
    [
        ("bells_sent", link.bells_sent),
        ("bells_suppressed", link.bells_suppressed),
        ("bells_lost", link.bells_lost),
        ("bells_received", link.bells_received),
        ("bells_fruitless", link.bells_fruitless),
        ("sleeps", link.sleeps),
        ("backstop_finds", link.backstop_finds),
        ("failed_channels", agent.failed_channels.get()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
