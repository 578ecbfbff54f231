//! The link for threads: no runtime, and no thread of its own.
//!
//! Of the threads that wait in a call, one drives the link for all of them, so that a byte wakes the thread that
//! wants it, and no other. Between calls nothing runs: what the peer sends waits in the region, and what it
//! opens or closes is looked at in the next call. A program that waits in no call for long leaves its peer's
//! opens without an answer for as long.
//!
//! Every wait may be given a time ([`Stream::set_timeout`] and its like); a call that timed out has done nothing
//! and can be repeated.
//!
//! ```
//! use std::io::{Read, Write};
//! use throughline::{Doorbell, Geometry, Link, Region, Sidecar};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let region = Region::create_memfd("example", &Geometry::default())?;
//! let theirs = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned()?)?;
//! let (sidecar, _file) = Sidecar::create_memfd("example", &region)?;
//! let (here, there) = Doorbell::eventfd_pair()?;
//!
//! let host = Link::host(region, sidecar).doorbell(here).attach_blocking()?;
//! let guest = Link::guest(theirs).doorbell(there).listen(7).attach_blocking()?;
//!
//! let echo = std::thread::spawn(move || -> std::io::Result<()> {
//!     let mut stream = guest.listener(7)?.accept()?.stream()?;
//!     let mut bytes = [0; 5];
//!     stream.read_exact(&mut bytes)?;
//!     stream.write_all(&bytes)
//! });
//!
//! let mut stream = host.connect(7)?;
//! stream.write_all(b"hello")?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer)?;
//! assert_eq!(answer, "hello");
//! echo.join().unwrap()?;
//! # Ok(())
//! # }
//! ```

mod messages;
mod stream;

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use throughline_ring::Identity;

use crate::driver::threads::Seat;
use crate::{
    AdoptError, Carried, ChannelId, ChannelInfo, Connect, Counters, Doorbell, Error, Event, NotTaken, Region,
    Unanswered,
};

pub use messages::{MessageReceiver, MessageSender, Messages};
pub use stream::{Stream, StreamReader, StreamWriter};

/// One side's attachment to a region, for threads. Made by
/// [`attach_blocking`](crate::LinkBuilder::attach_blocking). Cheap to clone; the last one (channels included)
/// ends it.
#[derive(Clone, Debug)]
pub struct Link {
    link: crate::Link,
    seat: Arc<Seat>,
}

impl Link {
    pub(crate) fn new(link: crate::Link, seat: Arc<Seat>) -> Self {
        Self { link, seat }
    }

    /// The same link, for what waits by polling: its channels' futures can be waited for together, with
    /// [`block_on`](Self::block_on).
    pub fn as_async(&self) -> &crate::Link {
        &self.link
    }

    /// Waits for a future of this link, driving it meanwhile if no other thread does; at most for `timeout`,
    /// after which it is dropped. A timeout of zero looks once.
    pub fn block_on<T>(&self, timeout: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
        self.seat.wait_for(self.link.core(), timeout, future)
    }

    /// The region.
    pub fn region(&self) -> &Region {
        self.link.region()
    }

    /// The timeline that this link's positions belong to.
    pub fn timeline(&self) -> u128 {
        self.link.timeline()
    }

    /// Opens a stream to a port, and waits until it is accepted: at most [`Connect::DEFAULT_DEADLINE`].
    pub fn connect(&self, port: u32) -> Result<Stream, Error> {
        self.connect_with(port).stream()
    }

    /// Opens a message channel to a port, and waits until it is accepted: at most
    /// [`Connect::DEFAULT_DEADLINE`].
    pub fn connect_messages(&self, port: u32) -> Result<Messages, Error> {
        self.connect_with(port).messages()
    }

    /// Opens a channel with choices of one's own.
    pub fn connect_with(&self, port: u32) -> Connect<Self> {
        Connect::new(self.clone(), port)
    }

    /// Listens on a port. Opens that came before, and were looked at, found nobody and were refused.
    pub fn listen(&self, port: u32) -> Result<Listener, Error> {
        self.link.listen(port).map(|listener| Listener { inner: listener, patience: Patience::new(self) })
    }

    /// The listener of a port that was given to the builder.
    pub fn listener(&self, port: u32) -> Result<Listener, Error> {
        self.link.listener(port).map(|listener| Listener { inner: listener, patience: Patience::new(self) })
    }

    /// Every channel that this side has open, or had to give up.
    pub fn channels(&self) -> Vec<ChannelInfo> {
        self.link.channels()
    }

    /// Takes a channel that nobody in this process holds: after a restore, or in a new process.
    pub fn adopt(&self, id: ChannelId) -> Result<Channel, AdoptError> {
        self.link.adopt(id).map(|channel| Channel::of(channel, self))
    }

    /// The next event; `None` when `timeout` has passed. One thread at a time gets each event.
    pub fn event(&self, timeout: Option<Duration>) -> Option<Event> {
        self.block_on(timeout, self.link.event())
    }

    /// See [`Link::set_doorbell`](crate::Link::set_doorbell).
    ///
    /// # Errors
    /// The new doorbell cannot be watched; the old one stays.
    pub fn set_doorbell(&self, doorbell: Doorbell) -> std::io::Result<()> {
        self.link.set_doorbell(doorbell)
    }

    /// See [`Link::freeze`](crate::Link::freeze).
    pub fn freeze(&self) {
        self.link.freeze();
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        self.link.thaw();
    }

    /// See [`Link::copy_frozen`](crate::Link::copy_frozen).
    ///
    /// # Errors
    /// Those of writing the files. The link stays frozen.
    pub fn copy_frozen(&self, region: &File, sidecar: &File) -> std::io::Result<Carried> {
        self.link.copy_frozen(region, sidecar)
    }

    /// See [`Link::quiesce`](crate::Link::quiesce).
    ///
    /// # Errors
    /// The guest did not answer in time; the request is taken back.
    pub fn quiesce(&self, deadline: Duration) -> Result<(), Unanswered> {
        self.complete(self.link.quiesce(deadline))
    }

    /// See [`Link::lift_quiesce`](crate::Link::lift_quiesce).
    pub fn lift_quiesce(&self) {
        self.link.lift_quiesce();
    }

    /// See [`Link::give_identity`](crate::Link::give_identity).
    pub fn give_identity(&self, identity: &Identity) {
        self.link.give_identity(identity);
    }

    /// See [`Link::identity_taken`](crate::Link::identity_taken).
    ///
    /// # Errors
    /// The guest did not answer in time, or refused.
    pub fn identity_taken(&self, deadline: Duration) -> Result<(), NotTaken> {
        self.complete(self.link.identity_taken(deadline))
    }

    /// Totals since the attach.
    pub fn counters(&self) -> Counters {
        self.link.counters()
    }

    /// Waits for a future that knows its own deadline.
    fn complete<T>(&self, future: impl Future<Output = T>) -> T {
        self.seat.wait(self.link.core(), future)
    }
}

impl Connect<Link> {
    /// Opens a stream.
    pub fn stream(self) -> Result<Stream, Error> {
        let (link, connect) = self.apart();
        link.complete(connect.stream()).map(|stream| Stream::new(stream, &link))
    }

    /// Opens a message channel.
    pub fn messages(self) -> Result<Messages, Error> {
        let (link, connect) = self.apart();
        link.complete(connect.messages()).map(|messages| Messages::new(messages, &link))
    }

    fn apart(self) -> (Link, Connect) {
        let link = self.link().clone();
        let connect = self.on(link.link.clone());
        (link, connect)
    }
}

/// What a handle waits with.
#[derive(Clone, Debug)]
struct Patience {
    link: Link,
    timeout: Option<Duration>,
}

impl Patience {
    fn new(link: &Link) -> Self {
        Self { link: link.clone(), timeout: None }
    }

    fn wait<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.link.block_on(self.timeout, future).unwrap_or(Err(Error::TimedOut))
    }
}

/// Listens on a port; dropping it refuses what waits and what comes.
#[derive(Debug)]
pub struct Listener {
    inner: crate::Listener,
    patience: Patience,
}

impl Listener {
    /// The port.
    pub fn port(&self) -> u32 {
        self.inner.port()
    }

    /// How long [`accept`](Self::accept) waits; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// Accepts the next channel.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when nobody opened one in time.
    pub fn accept(&mut self) -> Result<Channel, Error> {
        let accepted = self.patience.wait(self.inner.accept())?;
        Ok(Channel::of(accepted, &self.patience.link))
    }
}

/// A channel of either kind.
pub type Channel = crate::Channel<Stream, Messages>;

impl Channel {
    fn of(channel: crate::Channel, link: &Link) -> Self {
        match channel {
            crate::Channel::Stream(stream) => Self::Stream(Stream::new(stream, link)),
            crate::Channel::Messages(messages) => Self::Messages(Messages::new(messages, link)),
        }
    }
}
