//! Two processes under load, of which one or the other is killed, again and again. Their successors go
//! on, and every record is accounted for.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use throughline_ring::{Class, Geometry, Side};
use throughline_shmem::sync::Ordering::SeqCst;
use throughline_shmem::{Mapping, Populate, Words};

use super::killed::{self, BLOCK, Mark, Phase, STOP};
use crate::{Region, Sidecar};

const KILLS: usize = 520;
const WATCHDOG: Duration = Duration::from_secs(100);
const ROLE: &str = "THROUGHLINE_TEST_KILLED";
const TEST: &str = "core::tests::kill::either_end_is_killed_again_and_again_and_every_record_is_accounted_for";

/// What a child is told: its side, and the descriptors that it inherits.
struct Role {
    side: Side,
    fds: [RawFd; 5],
}

impl Role {
    fn parse() -> Option<Self> {
        let text = std::env::var(ROLE).ok()?;
        let numbers: Vec<RawFd> = text.split(',').map(|number| number.parse().unwrap()).collect();
        let side = if numbers[0] == 0 { Side::Host } else { Side::Guest };
        Some(Self { side, fds: numbers[1..].try_into().unwrap() })
    }

    /// A memfd, opened anew.
    fn memory(&self, at: usize) -> OwnedFd {
        let path = format!("/proc/self/fd/{}", self.fds[at]);
        OpenOptions::new().read(true).write(true).open(path).unwrap().into()
    }

    fn bell(&self, at: usize) -> OwnedFd {
        #[expect(unsafe_code, reason = "an inherited descriptor has nothing but its number")]
        // SAFETY: the parent passed this number on, open, and nobody in this process closes it.
        let inherited = unsafe { BorrowedFd::borrow_raw(self.fds[at]) };
        inherited.try_clone_to_owned().unwrap()
    }
}

/// The parent's end of everything.
struct Test {
    files: [OwnedFd; 5],
    marks: Arc<Mapping>,
    region: Region,
    children: [Option<Child>; 2],
}

impl Drop for Test {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A descriptor that children inherit.
fn inheritable(fd: impl AsFd) -> OwnedFd {
    rustix::io::dup(fd).unwrap()
}

impl Test {
    fn new() -> Self {
        let class = Class { opener: Side::Host, count: 2, ring_bytes: 8192 };
        let region = Region::create_memfd("killed", &Geometry::new(vec![class]).unwrap()).unwrap();
        let (sidecar, kept) = Sidecar::create_memfd("killed", &region).unwrap();
        drop(sidecar);
        let scratch = File::from(rustix::fs::memfd_create("marks", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        scratch.set_len(4096).unwrap();
        let marks = Mapping::file(&scratch, 4096, Populate::Now).unwrap();
        let bell = || rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let files = [inheritable(region.as_fd().unwrap()), inheritable(&kept), inheritable(&scratch), bell(), bell()];
        Self { files, marks: Arc::new(marks), region, children: [None, None] }
    }

    fn start(&mut self, side: Side) {
        let mut numbers: Vec<RawFd> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
        if side == Side::Guest {
            numbers.swap(3, 4);
        }
        numbers.insert(0, side as RawFd);
        let role: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", TEST, "--nocapture"]).env(ROLE, role.join(",")).stdout(std::process::Stdio::null());
        self.children[side as usize] = Some(command.spawn().unwrap());
    }

    fn mark(&self, side: Side, mark: Mark) -> u64 {
        self.marks.load(side as usize * BLOCK + mark as usize, SeqCst)
    }

    /// Lets a side make so many more stores, kills it, and says what it was doing.
    fn kill_after(&mut self, side: Side, stores: u64) -> Phase {
        let target = self.mark(side, Mark::Stores) + stores;
        let started = Instant::now();
        while self.mark(side, Mark::Stores) < target {
            for each in [Side::Host, Side::Guest] {
                let ended = self.children[each as usize].as_mut().unwrap().try_wait().unwrap();
                assert!(ended.is_none(), "{each:?} ended by itself: {ended:?}");
            }
            assert!(started.elapsed() < WATCHDOG, "{side:?} makes no progress");
            // A look now and then leaves the processor to those who work.
            std::thread::park_timeout(Duration::from_micros(30));
        }
        let mut child = self.children[side as usize].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        Phase::from_mark(self.mark(side, Mark::Phase))
    }

    /// Waits until every ring has gone round: what the last of the killed had staged and not published
    /// is overwritten by then, and scrubbed with what took its place.
    fn go_round(&self) {
        let ring = self.region.layout().slots()[0].ring_bytes.max(self.region.layout().slots()[1].ring_bytes);
        let started = Instant::now();
        for (side, channel) in [Side::Host, Side::Guest].into_iter().flat_map(|side| [(side, 0), (side, 1)]) {
            let target = self.mark(side, Mark::Sent.of(channel)) + 2 * ring;
            while self.mark(side, Mark::Sent.of(channel)) < target {
                assert!(started.elapsed() < WATCHDOG, "{side:?} makes no progress");
                std::thread::park_timeout(Duration::from_micros(30));
            }
        }
    }

    /// Waits until both have finished by themselves.
    fn finish(&mut self) {
        self.marks.store(STOP, 1, SeqCst);
        let started = Instant::now();
        for side in [0, 1] {
            let mut child = self.children[side].take().unwrap();
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if started.elapsed() > WATCHDOG {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("side {side} does not finish");
                }
                std::thread::park_timeout(Duration::from_millis(1));
            };
            assert!(status.success(), "side {side}: {status}");
        }
    }

    fn account(&self) {
        for (side, channel) in [Side::Host, Side::Guest].into_iter().flat_map(|side| [(side, 0), (side, 1)]) {
            let sent = self.mark(side, Mark::Sent.of(channel));
            let received = self.mark(side.peer(), Mark::Received.of(channel));
            assert_eq!(sent, received, "{side:?}'s channel {channel}");
            assert!(sent > 1 << 20, "{sent} bytes are no load");
        }
        let slots = self.region.layout().slots();
        let rings = slots[0].ring_at(Side::Host)..slots[1].ring_at(Side::Guest) + slots[1].ring_bytes as usize / 8;
        for at in rings {
            assert_eq!(self.region.words().load(at, SeqCst), 0, "word {at} was not scrubbed");
        }
    }
}

#[test]
fn either_end_is_killed_again_and_again_and_every_record_is_accounted_for() {
    if let Some(role) = Role::parse() {
        return killed::run(role.side, [0, 1, 2].map(|at| role.memory(at)), [3, 4].map(|at| role.bell(at)));
    }
    let mut test = Test::new();
    test.start(Side::Host);
    test.start(Side::Guest);
    let mut hits = [0; Phase::ALL.len()];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for kill in 0..KILLS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let side = if kill % 2 == 0 { Side::Host } else { Side::Guest };
        // Some die while they attach, most while they work.
        let stores = if kill % 10 < 2 { random % 60 } else { random % 12_000 };
        hits[test.kill_after(side, stores) as usize] += 1;
        test.start(side);
    }
    test.go_round();
    test.finish();
    test.account();
    let told: Vec<_> = Phase::ALL.iter().zip(hits).collect();
    let bytes: u64 = [0, 1].map(|channel| test.mark(Side::Host, Mark::Received.of(channel))).iter().sum();
    let waits = [Side::Host, Side::Guest].map(|side| test.mark(side, Mark::TimedOut));
    println!("{KILLS} kills, hits {told:?}, {bytes} bytes from the guest, waits that timed out {waits:?}");
    for phase in [Phase::Payload, Phase::Publish, Phase::Scrub, Phase::Sidecar] {
        assert!(hits[phase as usize] > 0, "no kill hit {phase:?}: {told:?}");
    }
}
