//! A command that nobody asked for, on a connection of its own, while everything of the user's is frozen.
//!
//! An emulator translates code when it is first executed, which makes a restored guest's first command slow. A guest
//! that waits to be taken executes it before, here: the link's own code on a small region of the agent's memory, the
//! service, a fork, a program in a control group of its own, that group's freezing and thawing.

use std::io;
use std::time::Duration;

use throughline::{Channel, Class, Doorbell, Geometry, Link, Region, Side, Sidecar};
use throughline_wire::exec::{Request, Start};
use throughline_wire::{EncodeError, encode, port};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::cgroup::{Cgroup, CgroupError};
use crate::exec::ExecError;
use crate::gate::Gate;

/// A program that does nothing, and is there in most images. Where it is not, there is all but its execution.
const PROGRAM: &[u8] = b"true";
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(10);
/// What its control group has to its name more than the user's.
const GROUP: &str = "-rehearsal";
/// Bytes of each ring.
const RING: u64 = 64 << 10;

/// What kept a rehearsal from its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RehearsalError {
    #[error("its link: {0}")]
    Link(#[from] throughline::Error),
    #[error("its link: {0}")]
    Attach(#[from] throughline::AttachError),
    #[error("its link: {0}")]
    Region(#[from] throughline::RegionError),
    #[error("its link: {0}")]
    Sidecar(#[from] throughline::SidecarError),
    #[error("its request: {0}")]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it did not end within {} s", LIMIT.as_secs())]
    Late,
}

/// Goes through all of it, and leaves nothing.
pub(crate) async fn perform(agent: &Agent) -> Result<(), RehearsalError> {
    let group = agent.group.as_ref().map(|group| group.beside(GROUP)).transpose()?;
    let entrance = group.as_ref().map(Cgroup::entrance).transpose()?;
    let spawner = agent.executor.spawner.for_group(entrance);
    let (host, guest) = links()?;
    let gate = Gate::closed();
    gate.open();
    let asking = async {
        let mut messages = host.connect_messages(port::EXEC).await?;
        let start = Start { argv: vec![PROGRAM.to_vec().into()], ..Start::default() };
        messages.send(&encode(&Request::Start(start))?).await?;
        while messages.recv().await?.is_some() {}
        Ok::<_, RehearsalError>(())
    };
    let serving = async {
        let mut listener = guest.listener(port::EXEC)?;
        if let Channel::Messages(messages) = listener.accept().await? {
            let (sender, receiver) = messages.into_split();
            agent.executor.serve_from(&spawner, [&gate, &gate], receiver, sender).await?;
        }
        Ok(())
    };
    let both = async { tokio::try_join!(asking, serving) };
    timeout(LIMIT, both).await.map_err(|_| RehearsalError::Late)??;
    guest.freeze();
    if let Some(group) = group {
        group.freeze(LIMIT).await?;
        group.thaw()?;
        group.remove()?;
    }
    guest.thaw();
    Ok(())
}

/// The two ends of a link in memory.
fn links() -> Result<(Link, Link), RehearsalError> {
    let geometry =
        Geometry::new(vec![Class { opener: Side::Host, count: 1, ring_bytes: RING }]).map_err(io::Error::other)?;
    let region = Region::create_memfd("rehearsal", &geometry)?;
    let (sidecar, _) = Sidecar::create_memfd("rehearsal", &region)?;
    let same = region.as_fd().ok_or_else(|| io::Error::other("memory without a descriptor"))?.try_clone_to_owned()?;
    let (host, guest) = Doorbell::eventfd_pair()?;
    let host = Link::host(region, sidecar).doorbell(host).attach()?;
    Ok((host, Link::guest(Region::from_fd(same)?).doorbell(guest).listen(port::EXEC).attach()?))
}
