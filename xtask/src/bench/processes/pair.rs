//! The two processes: how the second is started, and what it is given.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use rustix::thread::CpuSet;
use throughline::{Doorbell, Geometry, Link, Messages, Region, Sidecar};
use throughline_shmem::{Mapping, Populate};

use super::line::{Gait, Line};

/// Echo by polling.
pub const ECHO: u32 = 1;
/// Counts messages by polling, and answers an empty one with their number.
pub const SINK: u32 = 2;
/// Echo that sleeps between messages.
pub const SLEEPER: u32 = 3;
/// Follows along the line; the first byte tells the gait.
pub const FOLLOWER: u32 = 4;
/// Answers each message with the number of the peer's sleeps.
pub const SLEEPS: u32 = 5;

pub const PORTS: [u32; 5] = [ECHO, SINK, SLEEPER, FOLLOWER, SLEEPS];

const PAGE: u64 = 4096;
/// How long the peer may take to end.
const DEADLINE: Duration = Duration::from_secs(10);

/// What the peer is given: region, its two bells, the line.
pub const GIFTS: usize = 4;

/// The first process's view.
pub struct Pair {
    pub link: Link,
    probe: Line,
    peer: Peer,
}

/// The second process; killed if it is dropped while it runs.
struct Peer {
    process: Child,
    /// The peer ends when this closes.
    control: Option<UnixStream>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Pair {
    pub async fn start(core: usize) -> Result<Self> {
        let region = Region::create_memfd("throughline-bench", &Geometry::default())?;
        let (sidecar, _file) = Sidecar::create_memfd("throughline-bench", &region)?;
        let page = rustix::fs::memfd_create("throughline-line", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&page, PAGE)?;
        let [to_peer, from_peer] = [eventfd()?, eventfd()?];
        let descriptor = region.as_fd().context("a memfd has a descriptor")?;
        let gifts = [descriptor, from_peer.as_fd(), to_peer.as_fd(), page.as_fd()];
        let peer = Peer::start(core, &gifts)?;
        let probe = Line::new(Mapping::file(&page, PAGE, Populate::Now)?);
        let bells = Doorbell::eventfds(to_peer, from_peer)?;
        let link = Link::host(region, sidecar).doorbell(bells).spin(Duration::ZERO).attach()?;
        let pair = Self { link, probe, peer };
        // It takes a moment to begin; opens wait for it.
        pair.peer_slept().await?;
        Ok(pair)
    }

    /// A channel to one of the peer's ports, wide enough for everything.
    pub async fn connect(&self, port: u32) -> Result<Messages> {
        Ok(self.link.connect_with(port).ring_bytes(4 << 20).messages().await?)
    }

    /// Nanoseconds of a cache line to and fro.
    pub async fn line(&self, gait: Gait) -> Result<f64> {
        let mut follower = self.connect(FOLLOWER).await?;
        self.probe.reset();
        follower.send(&[u8::from(gait == Gait::Pause)]).await?;
        self.probe.lead(gait)
    }

    /// How often the peer's driver has slept.
    pub async fn peer_slept(&self) -> Result<u64> {
        let mut channel = self.connect(SLEEPS).await?;
        channel.send(&[]).await?;
        let answer = channel.recv().await?.context("the peer does not answer")?;
        Ok(u64::from_le_bytes(answer.as_slice().try_into().context("no number")?))
    }

    /// Ends the peer, which must not have failed.
    pub fn end(mut self) -> Result<()> {
        self.peer.control = None;
        let until = Instant::now() + DEADLINE;
        while Instant::now() < until {
            if let Some(status) = self.peer.process.try_wait()? {
                ensure!(status.success(), "the second process ended with {status}; see above");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        bail!("the second process did not end within {DEADLINE:?}")
    }
}

impl Peer {
    fn start(core: usize, gifts: &[std::os::fd::BorrowedFd<'_>; GIFTS]) -> Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["bench", "--peer"]).stdin(Stdio::from(OwnedFd::from(theirs)));
        let process = command.spawn().context("cannot start the second process")?;
        let peer = Self { process, control: Some(control) };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GIFTS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ensure!(ancillary.push(SendAncillaryMessage::ScmRights(gifts)), "no space for the descriptors");
        let core = u32::try_from(core)?.to_le_bytes();
        let control = peer.control.as_ref().context("it was just opened")?;
        rustix::net::sendmsg(control, &[IoSlice::new(&core)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(peer)
    }
}

/// What the second process was given: its core and its descriptors.
pub fn receive(control: &UnixStream) -> Result<(usize, [OwnedFd; GIFTS])> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(GIFTS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut core = [0; 4];
    rustix::net::recvmsg(control, &mut [IoSliceMut::new(&mut core)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let messages = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<OwnedFd> = messages.flatten().collect();
    let descriptors = descriptors.try_into().ok().context("the bench starts this by itself; it is no use alone")?;
    Ok((u32::from_le_bytes(core) as usize, descriptors))
}

fn eventfd() -> Result<OwnedFd> {
    use rustix::event::EventfdFlags;
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// The first two cores that this process may use.
pub fn cores() -> Result<[usize; 2]> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    match (cores.next(), cores.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => bail!("two processes need two cores, and this one may use only one"),
    }
}

/// Keeps the calling thread on a core.
pub fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).context("cannot stay on one core")
}
