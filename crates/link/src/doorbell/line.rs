//! The doorbell of a live link: it can be replaced while everybody rings it.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
#[cfg(feature = "tokio")]
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{Doorbell, Drained};
use crate::core::{Bell, Rung};
use crate::sync::Mutex;
use rustix::event::epoll;

/// What an event of the epoll instance is about.
const BELL: u64 = 0;
const BESIDE: u64 = 1;

/// A link's doorbell, whichever it is at the moment.
///
/// The doorbell sits in an epoll instance of its own, edge-triggered, which stays the same: a guest's
/// port whose host is away is readable and hung up at once, which a reactor would take for a final state.
#[derive(Debug)]
pub(crate) struct Line {
    poll: Arc<OwnedFd>,
    current: Mutex<Current>,
    /// A bell found nobody: the peer is rung when the way is there again.
    owed: AtomicBool,
    hang_up: Mutex<HangUp>,
}

/// Whether the current doorbell's other end is gone, as far as the driver knows.
#[derive(Debug, Default)]
struct HangUp {
    there: bool,
    wakers: Vec<Waker>,
}

#[derive(Debug)]
struct Current {
    /// Which doorbell of this line it is, from 0.
    number: u64,
    bell: Arc<Doorbell>,
}

/// What came in, and by which doorbell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) number: u64,
    pub(crate) drained: Drained,
}

impl Line {
    pub(crate) fn new(doorbell: Doorbell) -> io::Result<Self> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch_bell(&poll, &doorbell)?;
        Ok(Self {
            poll: Arc::new(poll),
            current: Mutex::new(Current { number: 0, bell: Arc::new(doorbell) }),
            owed: AtomicBool::new(false),
            hang_up: Mutex::new(HangUp::default()),
        })
    }

    /// Waits for a change of the doorbell, or of a descriptor that is [watched beside it](Self::watch_beside);
    /// whether the doorbell's is among what came. Returns at the latest after `longest`.
    pub(crate) fn wait(&self, longest: Option<Duration>) -> bool {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 2];
        let longest = longest.and_then(|longest| longest.try_into().ok());
        // An interruption is a change like another: who waits looks again.
        let came = epoll::wait(&self.poll, &mut events, longest.as_ref());
        came.is_ok_and(|(came, _)| came.iter().any(|event| event.data.u64() == BELL))
    }

    /// Ends the [wait](Self::wait) when a descriptor becomes readable.
    pub(crate) fn watch_beside(&self, other: impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.poll, other, epoll::EventData::new_u64(BESIDE), flags)?)
    }

    /// The epoll instance: readable once for each change of the doorbell.
    #[cfg(feature = "tokio")]
    pub(crate) fn edges(&self) -> Edges {
        Edges(self.poll.clone())
    }

    /// Puts another doorbell in place, which the caller then rings; the old one is closed once nobody is ringing it any more. On an
    /// error the old one stays.
    pub(crate) fn replace(&self, doorbell: Doorbell) -> io::Result<()> {
        let mut current = self.current.lock();
        watch_bell(&self.poll, &doorbell)?;
        let old = std::mem::replace(&mut current.bell, Arc::new(doorbell));
        current.number += 1;
        self.owed.store(false, Ordering::Relaxed);
        self.hang_up.lock().there = false;
        // Closing would not do: whoever shares its description keeps it watched. It was added, so this
        // cannot fail; an edge too many would be harmless.
        let _ = epoll::delete(&self.poll, &*old);
        Ok(())
    }

    /// Which doorbell is in place.
    pub(crate) fn number(&self) -> u64 {
        self.current.lock().number
    }

    /// Takes the bells that came in, up to a bound.
    pub(crate) fn drain(&self) -> Heard {
        let (number, bell) = self.current();
        Heard { number, drained: bell.drain() }
    }

    /// Whether the peer is to be rung because a bell found nobody. Asked once the way is there.
    pub(crate) fn settle_debt(&self) -> bool {
        // The swap costs more, and a lost bell is rare.
        self.owed.load(Ordering::Relaxed) && self.owed.swap(false, Ordering::Relaxed)
    }

    /// Notes whether a doorbell's other end is gone; what is known of a former doorbell says nothing.
    pub(crate) fn note_hang_up(&self, number: u64, hung_up: bool) {
        let current = self.current.lock();
        if current.number == number {
            let mut known = self.hang_up.lock();
            known.there = hung_up;
            if hung_up {
                known.wakers.drain(..).for_each(Waker::wake);
            }
        }
    }

    /// Waits until the current doorbell's other end is gone. Cancel-safe.
    pub(crate) async fn hung_up(&self) {
        poll_fn(|cx| {
            let mut known = self.hang_up.lock();
            if known.there {
                return Poll::Ready(());
            }
            known.wakers.retain(|waker| !waker.will_wake(cx.waker()));
            known.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn current(&self) -> (u64, Arc<Doorbell>) {
        let current = self.current.lock();
        (current.number, current.bell.clone())
    }
}

impl Bell for Line {
    fn ring(&self) -> Rung {
        // Not under the lock: it is a system call. A bell that an old doorbell takes now is repaired by
        // the one that is rung after the replacement.
        let rung = self.current().1.ring();
        if rung == Rung::Lost {
            self.owed.store(true, Ordering::Relaxed);
        }
        rung
    }
}

fn watch_bell(poll: &OwnedFd, doorbell: &Doorbell) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    Ok(epoll::add(poll, doorbell, epoll::EventData::new_u64(BELL), flags)?)
}

/// The epoll instance of a [`Line`], for a reactor.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) struct Edges(Arc<OwnedFd>);

#[cfg(feature = "tokio")]
impl Edges {
    /// Takes the edge, so that the next bell makes another.
    pub(crate) fn take(&self) {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // Nothing to learn from it: the doorbell is drained in any case.
        let _ = epoll::wait(&self.0, &mut events, Some(&now));
    }
}

#[cfg(feature = "tokio")]
impl AsRawFd for Edges {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver may learn of a hang-up just as the owner has dealt with it.
    #[tokio::test]
    async fn a_hang_up_of_a_former_doorbell_says_nothing_of_the_new_one() {
        let bell = || Doorbell::eventfd_pair().unwrap().0;
        let line = Line::new(bell()).unwrap();
        let heard = line.drain();
        line.replace(bell()).unwrap();
        line.note_hang_up(heard.number, true);
        assert!(!line.hang_up.lock().there);
        line.note_hang_up(line.number(), true);
        line.hung_up().await;
    }
}
