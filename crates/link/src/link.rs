//! Attaching to a region.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use throughline_ring::{Kind, Ledger, Side};
use throughline_shmem::Mapping;

use crate::blocking;
use crate::connect::Connect;
use crate::core::{AttachCoreError, AttachOptions, Core};
use crate::doorbell::{Doorbell, Line};
use crate::driver::Driven;
#[cfg(feature = "tokio")]
use crate::driver::runtime;
use crate::driver::threads::Seat;
use crate::listener::Listener;
use crate::messages::Messages;
use crate::stream::Stream;
use crate::{
    AdoptError, Carried, ChannelId, ChannelInfo, Counters, Error, Event, GuestLeaseError, Lease, Origin, Region,
    Sidecar, Timeline,
};

pub(crate) type LinkCore = Core<Arc<Mapping>, Line>;

/// What the driver and all handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) core: LinkCore,
    pub(crate) driven: Driven,
    pub(crate) sidecar: Option<Sidecar>,
    region: Region,
    _guest_lease: Option<Lease>,
}

/// Ends the driver with the last handle.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
    #[cfg(feature = "tokio")]
    driver: Option<tokio::task::AbortHandle>,
}

#[cfg(feature = "tokio")]
impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// Why a link could not attach.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// No doorbell was given.
    #[error("a link needs a doorbell: give the builder one")]
    NoDoorbell,
    /// There is no tokio runtime here.
    #[error("a link's driver runs on tokio: attach inside a runtime with time and io enabled")]
    NoRuntime,
    /// Another process is the guest of this region.
    #[error(transparent)]
    GuestLease(#[from] GuestLeaseError),
    /// What was kept cannot be taken over.
    #[error(transparent)]
    Core(#[from] AttachCoreError),
    /// The doorbell cannot be waited on, or the system has no randomness.
    #[error("cannot watch the doorbell: {0}")]
    Doorbell(#[from] std::io::Error),
}

/// How to attach. Made by [`Link::host`] and [`Link::guest`].
#[derive(Debug)]
pub struct LinkBuilder {
    region: Region,
    sidecar: Option<Sidecar>,
    doorbell: Option<Doorbell>,
    listen: Vec<u32>,
    spin: Duration,
    agent: Option<u32>,
}

impl LinkBuilder {
    /// The longest time for which the driver polls before it sleeps, where polling pays. The default
    /// is 20 µs: less than the wake-up of an idle core costs.
    pub const DEFAULT_SPIN: Duration = Duration::from_micros(20);

    fn new(region: Region, sidecar: Option<Sidecar>) -> Self {
        Self { region, sidecar, doorbell: None, listen: Vec::new(), spin: Self::DEFAULT_SPIN, agent: None }
    }

    /// The way to wake the peer, and to be woken.
    #[must_use]
    pub fn doorbell(mut self, doorbell: Doorbell) -> Self {
        self.doorbell = Some(doorbell);
        self
    }

    /// Listens on a port before any open is looked at; take the [`Link::listener`] afterwards.
    #[must_use]
    pub fn listen(mut self, port: u32) -> Self {
        self.listen.push(port);
        self
    }

    /// The longest time for which the driver polls before it sleeps; zero for never. It adapts: where
    /// polling does not pay (the peer is slow, or both share one core), it stops by itself.
    #[must_use]
    pub fn spin(mut self, longest: Duration) -> Self {
        self.spin = longest;
        self
    }

    /// Guest: the agent's protocol version, which a host reads before it talks.
    #[must_use]
    pub fn agent_version(mut self, version: u32) -> Self {
        self.agent = Some(version);
        self
    }

    /// Attaches, and spawns the driver onto the current tokio runtime.
    ///
    /// Whatever a predecessor left is taken over: its scrubs are finished, its words shown again, its
    /// channels wait for [`Link::adopt`].
    #[cfg(feature = "tokio")]
    pub fn attach(mut self) -> Result<Link, AttachError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| AttachError::NoRuntime)?;
        let (line, spin) = (self.line()?, self.spin);
        let waiting = runtime::Waiting::new(&line)?;
        let task = Arc::new(runtime::Task::default());
        let shared = self.take_over(line, Driven::Task(task.clone()))?;
        let driver = runtime.spawn(runtime::drive(shared.clone(), task, waiting, spin)).abort_handle();
        Ok(Link(Arc::new(Owner { shared, driver: Some(driver) })))
    }

    /// Attaches without a runtime: the threads that wait drive the link. Otherwise as [`attach`](Self::attach).
    pub fn attach_blocking(mut self) -> Result<blocking::Link, AttachError> {
        let line = self.line()?;
        let seat = Arc::new(Seat::new(&line, self.spin)?);
        let shared = self.take_over(line, Driven::Threads(seat.clone()))?;
        // Bells of a predecessor's time are lost, both ways: the peer looks once, and so does whoever waits.
        let _ = shared.core.ring();
        let owner = Owner {
            shared,
            #[cfg(feature = "tokio")]
            driver: None,
        };
        Ok(blocking::Link::new(Link(Arc::new(owner)), seat))
    }

    fn line(&mut self) -> Result<Line, AttachError> {
        Ok(Line::new(self.doorbell.take().ok_or(AttachError::NoDoorbell)?)?)
    }

    fn take_over(self, line: Line, driven: Driven) -> Result<Arc<Shared>, AttachError> {
        let side = if self.sidecar.is_some() { Side::Host } else { Side::Guest };
        let guest_lease = if side == Side::Guest { self.region.guest_lease()? } else { None };
        let timeline = self.sidecar.as_ref().map(Sidecar::timeline);
        let untold = self.sidecar.as_ref().is_some_and(Sidecar::event_pending);
        let beginning = timeline.filter(|_| untold).and_then(beginning);
        let options = AttachOptions {
            now: Instant::now(),
            side,
            timeline: timeline.map_or(self.region.header().region, |timeline| timeline.epoch),
            random: random()?,
            listen: self.listen,
            agent: self.agent,
        };
        let ledger =
            Ledger::new(self.region.words().clone(), self.sidecar.as_ref().map(|sidecar| sidecar.words().clone()));
        let core = Core::attach(ledger, &self.region.header().geometry, line, &options)?;
        if let Some(event) = beginning {
            core.tell(event);
        }
        Ok(Arc::new(Shared { core, driven, sidecar: self.sidecar, region: self.region, _guest_lease: guest_lease }))
    }
}

/// What a timeline's beginning means to its owner.
fn beginning(timeline: Timeline) -> Option<Event> {
    let Timeline { epoch: to, parent: from, index, origin } = timeline;
    match origin {
        Origin::Restored => Some(Event::Restored { from, to }),
        Origin::Forked => Some(Event::Forked { from, to, index }),
        Origin::RolledBack => Some(Event::RolledBack { from, to }),
        Origin::Created => None,
    }
}

fn random() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_ne_bytes(bytes))
}

/// One side's attachment to a region. Cheap to clone; the last one (streams included) ends it.
#[derive(Clone, Debug)]
pub struct Link(pub(crate) Arc<Owner>);

impl Link {
    /// The host's side: whoever holds the sidecar.
    pub fn host(region: Region, sidecar: Sidecar) -> LinkBuilder {
        LinkBuilder::new(region, Some(sidecar))
    }

    /// The guest's side, or that of the second process of a link without a VM.
    pub fn guest(region: Region) -> LinkBuilder {
        LinkBuilder::new(region, None)
    }

    pub(crate) fn core(&self) -> &LinkCore {
        &self.0.shared.core
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.0.shared.region
    }

    /// What the host keeps; `None` on the guest's side.
    pub fn sidecar(&self) -> Option<&Sidecar> {
        self.0.shared.sidecar.as_ref()
    }

    /// The timeline that this link's positions belong to.
    pub fn timeline(&self) -> u128 {
        self.core().timeline()
    }

    /// Opens a stream to a port, and waits until it is accepted: at most [`Connect::DEFAULT_DEADLINE`].
    /// Dropping the future closes the channel.
    pub async fn connect(&self, port: u32) -> Result<Stream, Error> {
        self.connect_with(port).stream().await
    }

    /// Opens a message channel to a port, and waits until it is accepted: at most
    /// [`Connect::DEFAULT_DEADLINE`]. Dropping the future closes the channel.
    pub async fn connect_messages(&self, port: u32) -> Result<Messages, Error> {
        self.connect_with(port).messages().await
    }

    /// Opens a channel with choices of one's own.
    pub fn connect_with(&self, port: u32) -> Connect {
        Connect::new(self.clone(), port)
    }

    /// Listens on a port. Opens that came before, and found nobody, were refused.
    pub fn listen(&self, port: u32) -> Result<Listener, Error> {
        self.core().listen(port)?;
        Ok(Listener::new(self.clone(), port))
    }

    /// The listener of a port that was given to the builder.
    pub fn listener(&self, port: u32) -> Result<Listener, Error> {
        if !self.core().listens(port) {
            return Err(Error::NoListener(port));
        }
        Ok(Listener::new(self.clone(), port))
    }

    /// Every channel that this side has open, or had to give up.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.core().channels()
    }

    /// Takes a channel that nobody in this process holds: after a restore, or in a new process. With it, its owner
    /// has been told how far it was [rolled back](ChannelInfo::rolled_back).
    pub fn adopt(&self, id: ChannelId) -> Result<Channel, AdoptError> {
        let (this, kind) = self.core().adopt(id).map_err(|error| self.explain(id, error))?;
        Ok(Channel::new(self.clone(), this, kind))
    }

    /// What became of another timeline's channel.
    fn explain(&self, id: ChannelId, error: AdoptError) -> AdoptError {
        let (AdoptError::OtherTimeline { asked: from, .. }, Some(sidecar)) = (error, self.sidecar()) else {
            return error;
        };
        let Timeline { epoch: to, parent, index, origin } = sidecar.timeline();
        let here = ChannelId { timeline: to, ..id };
        let channel = self.channels().into_iter().find(|channel| channel.id == here);
        let how_far = channel.and_then(|channel| channel.rolled_back).filter(|rolled_back| rolled_back.lost == from);
        match origin {
            Origin::Forked if parent == from => AdoptError::Forked { from, to, index },
            Origin::RolledBack if parent == from || how_far.is_some() => AdoptError::RolledBack { from, to, how_far },
            _ => error,
        }
    }

    /// The next event. Cancel-safe. One task at a time gets each event.
    pub async fn event(&self) -> Event {
        let event = std::future::poll_fn(|cx| self.core().poll_event(cx)).await;
        let began = matches!(event, Event::Restored { .. } | Event::Forked { .. } | Event::RolledBack { .. });
        if began && let Some(sidecar) = self.sidecar() {
            sidecar.take_event();
        }
        event
    }

    /// Gives the link another doorbell, because the peer's end of the old one has gone or will go: a VMM's
    /// chardev was closed, a peer process is replaced. The peer is rung and this side looks at everything,
    /// as at an attach; then [`Event::PeerAttached`] tells of it. The old doorbell is closed. Channels and
    /// tasks notice nothing, and it may be done at any moment, during a freeze too.
    ///
    /// # Errors
    /// The new doorbell cannot be watched; the old one stays.
    pub fn set_doorbell(&self, doorbell: Doorbell) -> std::io::Result<()> {
        self.core().bell().replace(doorbell)?;
        // Whatever was rung for on the old one may have been lost: the peer looks once, and the driver does.
        let _ = self.core().ring();
        self.kick();
        Ok(())
    }

    /// Waits until the doorbell's other end is gone, for whoever then gives the link
    /// [another](Self::set_doorbell): unlike [`event`](Self::event), this takes nothing from anybody. Returns
    /// at once while it is gone. Cancel-safe.
    ///
    /// Eventfds do not tell. Until there is another doorbell, the link goes on at the backstop's pace.
    pub async fn hung_up(&self) {
        self.core().bell().hung_up().await;
    }

    /// After this returns, this side publishes nothing until the thaw; every operation pends. Bytes
    /// in flight stay where they are. Cannot fail, and waits for nothing but copies under way.
    pub fn freeze(&self) {
        self.core().freeze();
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        self.core().thaw();
        self.kick();
    }

    /// Copies a frozen link into two empty files, for a snapshot: what of the region is needed, and
    /// the sidecar. The guest must stand still. The copies are what [`Sidecar::rebind`] starts from.
    ///
    /// # Errors
    /// Those of writing the files. The link stays frozen.
    pub fn copy_frozen(&self, region: &File, sidecar: &File) -> std::io::Result<Carried> {
        region.set_len(self.region().layout().region_bytes())?;
        sidecar.set_len(self.region().layout().sidecar_bytes())?;
        self.core().copy_sidecar(|at, bytes| sidecar.write_all_at(bytes, at))?;
        self.core().copy_region(|at, bytes| region.write_all_at(bytes, at))
    }

    /// Host, of a child that does not run yet: resets the channels that were opened with
    /// [`OnFork::Reset`](crate::OnFork::Reset), and wipes their rings. Returns how many there were.
    pub fn reset_forked(&self) -> usize {
        self.core().reset_forked()
    }

    /// Totals since the attach.
    pub fn counters(&self) -> Counters {
        self.core().counters()
    }
}

/// A channel of either kind, on this face of the link or on [the one for threads](crate::blocking).
#[derive(Debug)]
pub enum Channel<S = Stream, M = Messages> {
    /// Bytes.
    Stream(S),
    /// Whole messages.
    Messages(M),
}

impl Channel {
    pub(crate) fn new(link: Link, this: crate::core::Use, kind: Kind) -> Self {
        let handle = crate::handle::Handle::new(link, this);
        match kind {
            Kind::Stream => Self::Stream(Stream::new(handle)),
            Kind::Message => Self::Messages(Messages::new(handle)),
        }
    }
}

impl<S, M> Channel<S, M> {
    /// The stream; an error where it carries messages (and is closed).
    pub fn stream(self) -> Result<S, Error> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Messages(_) => Err(Error::Kind(Kind::Message)),
        }
    }

    /// The messages; an error where it carries a stream (and is closed).
    pub fn messages(self) -> Result<M, Error> {
        match self {
            Self::Messages(messages) => Ok(messages),
            Self::Stream(_) => Err(Error::Kind(Kind::Stream)),
        }
    }
}
