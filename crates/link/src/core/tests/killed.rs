//! The process that is killed: it drives a core over a real region, and notes what it is doing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use throughline_ring::{Kind, Ledger, Phase as State, Reason, Side};
use throughline_shmem::sync::Ordering;
use throughline_shmem::{AllocateError, Mapping, Populate, Words};

use super::super::{AttachOptions, Core, Publish, Take, Use};
use super::app::{context, options};
use crate::core::ChannelInfo;
use crate::doorbell::Doorbell;
use crate::{Region, Sidecar};

/// Words of a side's marks.
pub(super) const BLOCK: usize = 64;
/// The word that ends the test.
pub(super) const STOP: usize = 500;
/// Port of the first channel, which carries messages; the second one carries a stream.
const PORT: u32 = 7;
const LENGTHS: [usize; 8] = [0, 5, 64, 700, 1500, 8, 333, 2048];

/// A word that a process leaves to its successor, and to the test.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Phase = 0,
    Stores = 1,
    TimedOut = 2,
    /// Per channel: end of what was accepted for sending.
    Sent = 8,
    SentToo = 9,
    /// Per channel: end of what was received, and the furthest that a call under way may get.
    Received = 10,
    ReceivedToo = 11,
    Reading = 12,
    ReadingToo = 13,
}

impl Mark {
    pub(super) fn of(self, channel: usize) -> Self {
        match (self, channel) {
            (Self::Sent, 1) => Self::SentToo,
            (Self::Received, 1) => Self::ReceivedToo,
            (Self::Reading, 1) => Self::ReadingToo,
            (mark, _) => mark,
        }
    }
}

/// What a process is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Anything but a store.
    Other,
    /// Copying payload into the ring.
    Payload,
    /// Storing one of its control words in the region.
    Publish,
    /// Zeroing what was read.
    Scrub,
    /// Storing into the sidecar.
    Sidecar,
}

impl Phase {
    pub(super) const ALL: [Self; 5] = [Self::Other, Self::Payload, Self::Publish, Self::Scrub, Self::Sidecar];

    pub(super) fn from_mark(mark: u64) -> Self {
        Self::ALL[mark as usize]
    }
}

/// Words whose stores are marked, and slow enough to be hit.
#[derive(Clone)]
struct Marked {
    memory: Arc<Mapping>,
    marks: Arc<Mapping>,
    side: Side,
    sidecar: bool,
    control: usize,
}

impl Marked {
    fn during(&self, phase: Phase, stores: impl FnOnce()) {
        let at = self.side as usize * BLOCK;
        let made = self.marks.load(at + Mark::Stores as usize, Ordering::Relaxed);
        self.marks.store(at + Mark::Phase as usize, phase as u64, Ordering::SeqCst);
        dwell();
        stores();
        dwell();
        self.marks.store(at + Mark::Stores as usize, made + 1, Ordering::Relaxed);
        self.marks.store(at + Mark::Phase as usize, Phase::Other as u64, Ordering::SeqCst);
    }
}

/// About as long as a store that misses all caches.
fn dwell() {
    for _ in 0..20 {
        std::hint::spin_loop();
    }
}

impl Words for Marked {
    fn len(&self) -> usize {
        self.memory.len()
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.memory.load(at, order)
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        let phase = match at {
            _ if self.sidecar => Phase::Sidecar,
            at if at < self.control => Phase::Publish,
            _ => Phase::Payload,
        };
        self.during(phase, || self.memory.store(at, value, order));
    }

    fn copy_out(&self, at: usize, out: &mut [u8]) {
        self.memory.copy_out(at, out);
    }

    fn copy_in(&self, at: usize, bytes: &[u8]) {
        // In two halves, so that a kill can leave one of them.
        let half = bytes.len() / 16 * 8;
        self.during(Phase::Payload, || self.memory.copy_in(at, &bytes[..half]));
        self.during(Phase::Payload, || self.memory.copy_in(at + half / 8, &bytes[half..]));
    }

    fn zero(&self, at: usize, count: usize) {
        self.during(Phase::Scrub, || self.memory.zero(at, count / 2));
        self.during(Phase::Scrub, || self.memory.zero(at + count / 2, count - count / 2));
    }

    fn allocate(&self, at: usize, count: usize) -> Result<(), AllocateError> {
        self.memory.allocate(at, count)
    }
}

fn byte(side: Side, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 ^ (side as u8 + 1)
}

fn span(len: usize) -> u64 {
    8 + len.next_multiple_of(8) as u64
}

/// The message that begins at a position.
fn message(side: Side, at: u64) -> Vec<u8> {
    let cycle: u64 = LENGTHS.iter().map(|len| span(*len)).sum();
    let mut rest = at % cycle;
    for len in LENGTHS {
        if rest == 0 {
            return (0..len as u64).map(|index| byte(side, at + index)).collect();
        }
        assert!(rest >= span(len), "a position inside of a message: {at}");
        rest -= span(len);
    }
    unreachable!("positions repeat with the cycle")
}

struct Process {
    side: Side,
    core: Core<Marked, Doorbell>,
    marks: Arc<Mapping>,
    uses: [Option<Use>; 2],
    /// Channels whose peer has ended.
    ended: [bool; 2],
    /// Channels whose kept positions were held against the predecessor's marks.
    checked: [bool; 2],
}

impl Process {
    fn mark(&self, mark: Mark) -> u64 {
        self.marks.load(self.side as usize * BLOCK + mark as usize, Ordering::SeqCst)
    }

    fn set(&self, mark: Mark, value: u64) {
        self.marks.store(self.side as usize * BLOCK + mark as usize, value, Ordering::SeqCst);
    }

    /// Finds a channel that a predecessor had, or opens or accepts it.
    fn take(&mut self, channel: usize) -> bool {
        let port = PORT + channel as u32;
        let found = self.core.channels().into_iter().find(|info| info.port == port);
        let kind = if channel == 0 { Kind::Message } else { Kind::Stream };
        self.uses[channel] = match found {
            Some(info) => Some(self.core.adopt(info.id).unwrap().0),
            None if self.side == Side::Host => self.core.try_open(&options(kind, port)).ok(),
            None => match self.core.poll_accept(port, &mut context()) {
                Poll::Ready(accepted) => Some(accepted.unwrap().0),
                Poll::Pending => None,
            },
        };
        self.uses[channel].is_some()
    }

    /// What a successor finds must be what its predecessor left.
    fn check(&mut self, channel: usize, info: &ChannelInfo) {
        if std::mem::replace(&mut self.checked[channel], true) {
            return;
        }
        assert_eq!(info.corrupt, None);
        let (sent, received) = (info.sent - info.sent_from, info.received - info.received_from);
        let accepted = self.mark(Mark::Sent.of(channel));
        assert!(sent >= accepted, "{accepted} bytes were accepted, and {sent} are there");
        let (done, most) = (self.mark(Mark::Received.of(channel)), self.mark(Mark::Reading.of(channel)));
        assert!(
            (done..=most.max(done)).contains(&received),
            "{done} to {most} bytes were received, and now {received}"
        );
        // What the predecessor did last it had no time to mark, and there may be nothing more to do.
        self.set(Mark::Sent.of(channel), sent);
        self.set(Mark::Received.of(channel), received);
    }

    fn work(&mut self, channel: usize, stop: bool) -> bool {
        let Some(this) = self.uses[channel] else { return self.take(channel) };
        let Some(info) = self.core.channel(this.slot) else { return false };
        self.check(channel, &info);
        let shut = self.core.slots[this.slot].entry.lock().channel.mine.tx_shut;
        let mut worked = false;
        if stop && !shut {
            worked = self.core.poll_shutdown(this, &mut context()).is_ready();
        } else if !shut {
            worked = self.send(channel, this, &info);
        }
        if !self.ended[channel] {
            worked |= self.receive(channel, this, &info);
        } else if shut {
            self.core.close(this, Reason::Normal);
            worked = true;
        }
        worked
    }

    fn send(&self, channel: usize, this: Use, info: &ChannelInfo) -> bool {
        let at = info.sent - info.sent_from;
        let sent = if info.kind == Kind::Message {
            let payload = message(self.side, at);
            let sent = self.core.poll_send(this, Publish::Now, Some(&mut context()), &payload);
            sent.map_ok(|()| span(payload.len()))
        } else {
            let piece: Vec<u8> = (at..at + 1 + at % 613).map(|at| byte(self.side, at)).collect();
            self.core.poll_write(this, Publish::Now, Some(&mut context()), &piece).map_ok(|count| count as u64)
        };
        let Poll::Ready(sent) = sent else { return false };
        self.set(Mark::Sent.of(channel), at + sent.unwrap());
        true
    }

    fn receive(&mut self, channel: usize, this: Use, info: &ChannelInfo) -> bool {
        let at = info.received - info.received_from;
        let peer = self.side.peer();
        // Both ways of reading, by turns.
        let take = if (at / 8).is_multiple_of(2) { Take::Peek } else { Take::Consume };
        let mut out = vec![0; 700];
        let most = if info.kind == Kind::Message { span(message(peer, at).len()) } else { 700 };
        self.set(Mark::Reading.of(channel), at + most);
        let count = if info.kind == Kind::Message {
            let Poll::Ready(received) = self.core.poll_recv(this, take, Some(&mut context()), &mut out) else {
                return false;
            };
            let received = received.unwrap();
            assert!(!received || out == message(peer, at), "a message at {at} is not what was sent");
            if received { span(out.len()) } else { 0 }
        } else {
            let Poll::Ready(received) = self.core.poll_read(this, take, Some(&mut context()), &mut out) else {
                return false;
            };
            let received = received.unwrap();
            let right = out[..received].iter().zip(at..).all(|(found, at)| *found == byte(peer, at));
            assert!(right, "bytes from {at} are not what was sent");
            received as u64
        };
        if count == 0 {
            self.ended[channel] = true;
            return true;
        }
        if take == Take::Peek {
            let pieces = (info.kind == Kind::Stream).then_some(count);
            assert_eq!(self.core.poll_commit(this, pieces, &mut context()), Poll::Ready(Ok(())));
        }
        self.set(Mark::Received.of(channel), at + count);
        true
    }

    fn is_done(&self) -> bool {
        self.ended == [true; 2]
            && self.core.slots.iter().all(|slot| slot.entry.lock().channel.mine.phase == State::Free)
    }

    fn sleep(&self) {
        if !self.core.fall_asleep() {
            return;
        }
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut bell = [PollFd::new(self.core.bell(), PollFlags::IN)];
        if poll(&mut bell, Some(&second)).unwrap() == 0 {
            self.set(Mark::TimedOut, self.mark(Mark::TimedOut) + 1);
        }
        self.core.wake_up();
        let _ = self.core.bell().drain();
    }
}

/// A side's whole life.
pub(super) fn run(side: Side, memories: [OwnedFd; 3], bells: [OwnedFd; 2]) {
    let ([region, sidecar, marks], [ring, wake]) = (memories, bells);
    let region = Region::from_fd(region).unwrap();
    let sidecar = (side == Side::Host).then(|| Sidecar::from_fd(sidecar.as_fd(), &region).unwrap());
    let _lease = (side == Side::Guest).then(|| region.guest_lease().unwrap());
    let marks = Arc::new(Mapping::file(&marks, 4096, Populate::Now).unwrap());
    let marked = |memory: &Arc<Mapping>, sidecar| Marked {
        memory: memory.clone(),
        marks: marks.clone(),
        side,
        sidecar,
        control: region.layout().control_words(),
    };
    let ledger =
        Ledger::new(marked(region.words(), false), sidecar.as_ref().map(|sidecar| marked(sidecar.words(), true)));
    let options = AttachOptions {
        now: std::time::Instant::now(),
        side,
        timeline: region.header().region,
        random: SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        listen: vec![PORT, PORT + 1],
        agent: None,
    };
    let bell = Doorbell::eventfds(ring, wake).unwrap();
    let core = Core::attach(ledger, &region.header().geometry, bell, &options).unwrap();
    let _ = core.ring();
    let mut process = Process { side, core, marks, uses: [None; 2], ended: [false; 2], checked: [false; 2] };
    loop {
        let stop = process.marks.load(STOP, Ordering::SeqCst) == 1;
        let served = process.core.serve() > 0;
        let worked = [0, 1].map(|channel| process.work(channel, stop));
        if stop && process.is_done() {
            return;
        }
        if !served && worked == [false; 2] {
            process.sleep();
        }
    }
}
