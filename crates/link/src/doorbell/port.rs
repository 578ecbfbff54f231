//! A virtio-serial port's character device: the guest's end.
//!
//! While no host is connected, the device is readable and hung up *all the time* (a level-triggered
//! wait spins), a read gives 0, and a write is refused as if the way were full. Runtimes such as
//! tokio remember a hang-up for good, even edge-triggered. So the port is watched by an epoll of its
//! own, edge-triggered: that one is readable once per change, and never hung up.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Drained, Rung, drain_bytes, set_nonblocking};

/// A host may connect between a refused write and the question why.
const TRIES: usize = 2;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[derive(Debug)]
pub(super) struct Port {
    device: File,
    changes: OwnedFd,
}

impl Port {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        Self::new(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?)
    }

    pub fn new(device: File) -> io::Result<Self> {
        set_nonblocking(&device)?;
        let changes = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&changes, &device, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { device, changes })
    }

    pub fn ring(&self) -> Rung {
        for _ in 0..TRIES {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.device, &[1])) {
                Ok(_) => return Rung::Accepted,
                Err(Errno::AGAIN) => {}
                Err(_) => return Rung::Lost,
            }
            let state = self.state();
            if state.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Rung::Lost;
            }
            if !state.contains(PollFlags::OUT) {
                return Rung::Pending;
            }
        }
        Rung::Lost
    }

    pub fn drain(&self) -> Drained {
        // First the note that something changed, then the change: what comes in between notes anew.
        let mut event = [MaybeUninit::uninit(); 1];
        let _ = epoll::wait(&self.changes, &mut event, Some(&NOW));
        drain_bytes(|bells| rustix::io::read(&self.device, bells))
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    fn state(&self) -> PollFlags {
        let mut polled = [PollFd::new(&self.device, PollFlags::OUT)];
        match poll(&mut polled, Some(&NOW)) {
            Ok(_) => polled[0].revents(),
            Err(_) => PollFlags::ERR,
        }
    }
}
