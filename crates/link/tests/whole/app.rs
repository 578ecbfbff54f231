//! A program at each end, which knows after every death from its positions where it was.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use shuttle::future::block_on;
use shuttle::thread;
use throughline::core::{OpenOptions, Policy, Publish, Take, Use};
use throughline::{ChannelInfo, Kind, Side};
use throughline_ring::Reason;

use super::line::{PORT, RING, SIDES, TestCore};

/// Connections, one after another.
pub const USES: u32 = 2;
/// Bytes of each message. The first two fill a ring, the third must wait.
const MESSAGES: [usize; 3] = [8, RING as usize - 24, 8];

/// What both programs have on disk, and what a judge reads in the end.
#[derive(Debug, Default)]
pub struct Record {
    /// Per side: what it received, generation and number, in order.
    pub received: [Vec<(u32, usize)>; 2],
    /// Per side: connections that it has closed.
    pub closed: [u32; 2],
}

impl Record {
    /// Everything once, in order.
    pub fn judge(&self) {
        let all: Vec<_> =
            (1..=USES).flat_map(|generation| (0..MESSAGES.len()).map(move |at| (generation, at))).collect();
        for side in SIDES {
            assert_eq!(self.received[side as usize], all, "{side:?}: lost, doubled or out of order");
            assert_eq!(self.closed[side as usize], USES);
        }
    }
}

/// Tells the threads of a process to end between two operations.
#[derive(Debug, Default)]
pub struct Stop {
    set: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Stop {
    fn wakers(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn stop(&self) {
        self.set.store(true, Relaxed);
        let wakers = std::mem::take(&mut *self.wakers());
        wakers.into_iter().for_each(Waker::wake);
    }

    pub fn is_set(&self) -> bool {
        self.set.load(Relaxed)
    }

    /// Does something, unless it is time to end.
    pub fn or<T>(&self, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Option<T> {
        block_on(std::future::poll_fn(|cx| {
            if self.is_set() {
                return Poll::Ready(None);
            }
            {
                let mut wakers = self.wakers();
                wakers.retain(|waker| !waker.will_wake(cx.waker()));
                wakers.push(cx.waker().clone());
            }
            poll(cx).map(Some)
        }))
    }
}

/// One end's program during one life of its process.
#[derive(Clone)]
pub struct App {
    pub side: Side,
    pub opens: bool,
    pub core: Arc<TestCore>,
    pub stop: Arc<Stop>,
    pub record: Arc<Mutex<Record>>,
}

impl App {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Goes on with whatever a predecessor left, until all is done or it is told to end.
    pub fn run(&self) -> Option<()> {
        while self.record().closed[self.side as usize] < USES {
            let (this, info) = self.connection()?;
            let sent = count(info.sent - info.sent_from);
            let reader = {
                let (app, received) = (self.clone(), count(info.received - info.received_from));
                thread::spawn(move || app.receive(this, received))
            };
            let all_sent = self.send(this, sent);
            let all_received = reader.join().unwrap();
            all_sent.and(all_received)?;
            self.core.close(this, Reason::Normal);
            self.record().closed[self.side as usize] += 1;
        }
        Some(())
    }

    /// The connection that there is, or the next one.
    fn connection(&self) -> Option<(Use, ChannelInfo)> {
        let this = match self.core.channel(0) {
            Some(info) => self.core.adopt(info.id).unwrap().0,
            None if self.opens => self.stop.or(|cx| self.core.poll_open(&opening(), cx))?.unwrap(),
            None => self.stop.or(|cx| self.core.poll_accept(PORT, cx))?.unwrap().0,
        };
        Some((this, self.core.channel(0).unwrap()))
    }

    fn send(&self, this: Use, sent: usize) -> Option<()> {
        for (number, len) in MESSAGES.iter().enumerate().skip(sent) {
            let payload = vec![number as u8 + 1; *len];
            self.stop.or(|cx| self.core.poll_send(this, Publish::Now, Some(cx), &payload))?.unwrap();
        }
        self.stop.or(|cx| self.core.poll_shutdown(this, cx))?.unwrap();
        Some(())
    }

    fn receive(&self, this: Use, received: usize) -> Option<()> {
        let (mut payload, mut number) = (Vec::new(), received);
        while self.stop.or(|cx| self.core.poll_recv(this, Take::Consume, Some(cx), &mut payload))?.unwrap() {
            assert_eq!(MESSAGES.get(number), Some(&payload.len()), "lost, doubled or out of order");
            assert!(payload.iter().all(|byte| usize::from(*byte) == number + 1), "torn, or another connection's");
            self.record().received[self.side as usize].push((this.generation.number(), number));
            number += 1;
        }
        Some(())
    }
}

/// How many messages end at a position of a connection.
fn count(position: u64) -> usize {
    let mut end = 0;
    let ends = MESSAGES.iter().map(|len| {
        end += (8 + *len as u64).next_multiple_of(8);
        end
    });
    ends.take_while(|end| *end <= position).count()
}

fn opening() -> OpenOptions {
    OpenOptions { port: PORT, kind: Kind::Message, ring_bytes: RING, label: [0; 32], policy: Policy::default() }
}
