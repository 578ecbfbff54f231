//! One side's process behind a driver.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use throughline::{
    Channel, Class, Connect, Doorbell, Error, Geometry, Kind, Link, LinkBuilder, Listener, Messages, Region, Side,
    Sidecar, Stream, blocking,
};
use throughline_sim::{Action, Call, Desk, End, LISTENED, Outcome, Plan, RING};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Who drives a process's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A task on tokio.
    Tokio,
    /// The threads that wait: here the one that runs the list.
    Threads,
}

/// What survives processes: memory and eventfds.
pub struct Machine {
    slots: [u32; 2],
    region: OwnedFd,
    sidecar: OwnedFd,
    bells: [OwnedFd; 2],
}

impl Machine {
    pub fn new(slots: [u32; 2]) -> Self {
        let class = |opener, count| Class { opener, count, ring_bytes: RING };
        let classes = [class(Side::Host, slots[0]), class(Side::Guest, slots[1])];
        let classes = classes.into_iter().filter(|class| class.count > 0).collect();
        let region = Region::create_memfd("simulated", &Geometry::new(classes).unwrap()).unwrap();
        let (_, sidecar) = Sidecar::create_memfd("simulated", &region).unwrap();
        let bells = [0, 1].map(|_| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        let region = region.as_fd().unwrap().try_clone_to_owned().unwrap();
        Self { slots, region, sidecar, bells }
    }

    pub fn openers(&self) -> impl Iterator<Item = Side> {
        let [host, guest] = self.slots.map(|count| count as usize);
        std::iter::repeat_n(Side::Host, host).chain(std::iter::repeat_n(Side::Guest, guest))
    }

    /// Starts a process, once its predecessor has let go of the lease.
    pub async fn attach(&self, side: Side, driver: Driver) -> Process {
        loop {
            if let Some((link, driven)) = self.try_attach(side, driver) {
                let listeners = LISTENED.map(|port| link.listener(port).unwrap());
                return Process { link, driven, listeners, desk: Desk::default(), channels: HashMap::new() };
            }
            tokio::task::yield_now().await;
        }
    }

    fn try_attach(&self, side: Side, driver: Driver) -> Option<(Link, Option<blocking::Link>)> {
        let clone = |fd: &OwnedFd| fd.try_clone().unwrap();
        let region = Region::from_fd(clone(&self.region)).unwrap();
        let [ring, wake] = [side.peer(), side].map(|to| clone(&self.bells[to as usize]));
        let builder = match side {
            Side::Host => {
                let sidecar = Sidecar::from_fd(self.sidecar.as_fd(), &region).ok()?;
                Link::host(region, sidecar)
            }
            Side::Guest => Link::guest(region),
        };
        let bell = Doorbell::eventfds(ring, wake).unwrap();
        let builder = LISTENED.into_iter().fold(builder.doorbell(bell), LinkBuilder::listen);
        match driver {
            Driver::Tokio => builder.attach().ok().map(|link| (link, None)),
            Driver::Threads => builder.attach_blocking().ok().map(|link| (link.as_async().clone(), Some(link))),
        }
    }
}

pub struct Process {
    link: Link,
    /// The same where threads drive it.
    driven: Option<blocking::Link>,
    listeners: [Listener; LISTENED.len()],
    desk: Desk,
    channels: HashMap<(usize, u32), Channel>,
}

impl Process {
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The driver has a turn. On tokio it has one whenever the test yields.
    pub fn drive(&self) {
        if let Some(driven) = &self.driven {
            driven.block_on(Some(Duration::ZERO), std::future::pending::<()>());
        }
    }

    pub fn held_count(&self) -> usize {
        self.desk.held_count()
    }

    /// Lets go of all channels without closing them.
    pub fn release(self) {
        for channel in self.channels.into_values() {
            match channel {
                Channel::Stream(stream) => drop(stream.release()),
                Channel::Messages(messages) => drop(messages.release()),
            }
        }
    }

    fn hold(&mut self, channel: Channel) -> (usize, u32, Kind) {
        let (id, kind) = match &channel {
            Channel::Stream(stream) => (stream.id(), Kind::Stream),
            Channel::Messages(messages) => (messages.id(), Kind::Message),
        };
        self.channels.insert((id.slot, id.generation), channel);
        (id.slot, id.generation, kind)
    }

    fn open(&mut self, kind: Kind, port: u32, cx: &mut Context<'_>) -> Outcome {
        // Where threads drive, an open waits within the call: the list does not, and asks again.
        let deadline = if self.driven.is_some() { Duration::ZERO } else { Connect::DEFAULT_DEADLINE };
        let connect = self.link.connect_with(port).unanswered().deadline(deadline);
        let opened = match kind {
            Kind::Stream => pin!(connect.stream()).poll(cx).map_ok(Channel::Stream),
            Kind::Message => pin!(connect.messages()).poll(cx).map_ok(Channel::Messages),
        };
        if self.driven.is_some() && matches!(opened, Poll::Ready(Err(Error::Busy))) {
            cx.waker().wake_by_ref();
            return Outcome::Pending;
        }
        outcome(opened, |channel| {
            let (slot, generation, _) = self.hold(channel);
            Outcome::Opened(slot, generation)
        })
    }

    fn accept(&mut self, port: u32, cx: &mut Context<'_>) -> Outcome {
        let at = LISTENED.iter().position(|listened| *listened == port).unwrap();
        let accepted = pin!(self.listeners[at].accept()).poll(cx);
        outcome(accepted, |channel| {
            let (slot, generation, kind) = self.hold(channel);
            Outcome::Accepted(slot, generation, kind)
        })
    }

    fn adopt(&mut self) -> Outcome {
        let unheld: Vec<_> = self.link.channels().into_iter().filter(|info| !info.held).collect();
        let adopted = unheld.into_iter().map(|info| self.link.adopt(info.id).unwrap());
        let adopted: Vec<_> = adopted.collect();
        Outcome::Adopted(adopted.into_iter().map(|channel| self.hold(channel)).collect())
    }

    fn on_channel(&mut self, plan: &Plan, (slot, generation): (usize, u32), cx: &mut Context<'_>) -> Outcome {
        if let Action::Close { reset } = plan.action {
            match self.channels.remove(&(slot, generation)) {
                Some(Channel::Stream(stream)) if reset => stream.abort(),
                Some(Channel::Messages(messages)) if reset => messages.abort(),
                closed => drop(closed),
            }
            return Outcome::Done;
        }
        match self.channels.get_mut(&(slot, generation)).unwrap() {
            Channel::Stream(stream) => on_stream(stream, &plan.action, cx),
            Channel::Messages(messages) => on_messages(messages, &plan.action, cx),
        }
    }
}

fn on_stream(stream: &mut Stream, action: &Action, cx: &mut Context<'_>) -> Outcome {
    match action {
        Action::Write { payload, .. } => told(Pin::new(stream).poll_write(cx, payload), Outcome::Wrote),
        Action::Flush => told(Pin::new(stream).poll_flush(cx), |()| Outcome::Done),
        Action::Shutdown => told(Pin::new(stream).poll_shutdown(cx), |()| Outcome::Done),
        Action::Commit { bytes, .. } => outcome(pin!(stream.commit(*bytes as usize)).poll(cx), |()| Outcome::Done),
        Action::Read { max, peek } => {
            let mut out = vec![0; *max];
            let read = if *peek {
                pin!(stream.peek(&mut out)).poll(cx)
            } else {
                let mut buffer = ReadBuf::new(&mut out);
                match Pin::new(stream).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) => Poll::Ready(Ok(buffer.filled().len())),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(of_link(error))),
                    Poll::Pending => Poll::Pending,
                }
            };
            outcome(read, |count| {
                out.truncate(count);
                if count > 0 { Outcome::Got(out) } else { Outcome::End }
            })
        }
        other => panic!("{other:?} is not about a channel"),
    }
}

fn on_messages(messages: &mut Messages, action: &Action, cx: &mut Context<'_>) -> Outcome {
    match action {
        // Fed or sent: the whole channel publishes at once, which is what may be done to what is fed.
        Action::Write { payload, .. } => {
            outcome(pin!(messages.send(payload)).poll(cx), |()| Outcome::Wrote(payload.len()))
        }
        Action::Flush => Outcome::Done,
        Action::Shutdown => outcome(pin!(messages.shutdown()).poll(cx), |()| Outcome::Done),
        Action::Commit { .. } => outcome(pin!(messages.commit()).poll(cx), |()| Outcome::Done),
        Action::Read { peek: true, .. } => {
            let mut out = Vec::new();
            let peeked = pin!(messages.peek(&mut out)).poll(cx);
            outcome(peeked, |there| if there { Outcome::Got(out) } else { Outcome::End })
        }
        Action::Read { .. } => {
            let read = pin!(messages.recv()).poll(cx);
            outcome(read, |message| message.map_or(Outcome::End, Outcome::Got))
        }
        other => panic!("{other:?} is not about a channel"),
    }
}

impl End for Process {
    fn plan(&self, call: &Call) -> Option<Plan> {
        self.desk.plan(call)
    }

    fn perform(&mut self, plan: &Plan) -> Outcome {
        let waker = self.desk.waker(plan);
        let mut cx = Context::from_waker(&waker);
        let outcome = match (plan.on, &plan.action) {
            (Some((slot, generation, _)), _) => self.on_channel(plan, (slot, generation), &mut cx),
            (_, Action::Open { kind, port, .. }) => self.open(*kind, *port, &mut cx),
            (_, Action::Accept { port }) => self.accept(*port, &mut cx),
            (_, Action::Adopt) => self.adopt(),
            (_, Action::Freeze) => {
                self.link.freeze();
                Outcome::Done
            }
            (_, Action::Thaw) => {
                self.link.thaw();
                Outcome::Done
            }
            (_, other) => panic!("{other:?} is the driver's"),
        };
        self.desk.settle(plan, &outcome);
        outcome
    }
}

fn outcome<T>(poll: Poll<Result<T, Error>>, done: impl FnOnce(T) -> Outcome) -> Outcome {
    match poll {
        Poll::Pending => Outcome::Pending,
        Poll::Ready(Ok(value)) => done(value),
        Poll::Ready(Err(error)) => Outcome::Failed(error),
    }
}

fn told<T>(poll: Poll<io::Result<T>>, done: impl FnOnce(T) -> Outcome) -> Outcome {
    outcome(poll.map_err(of_link), done)
}

/// The link's own error within one of the standard library's.
fn of_link(error: io::Error) -> Error {
    *error.into_inner().unwrap().downcast::<Error>().unwrap()
}
